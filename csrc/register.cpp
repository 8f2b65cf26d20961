// SPDX-License-Identifier: Apache-2.0
// The library's one definition of its own; each operator registers its kernels in its own file, for the schema that
// gangealing_fast/ops/<operator>.py defines.
#include "common.h"

#include <string>

// Compiler and vector levels, for `python -m gangealing_fast.env`.
extern "C" __attribute__((visibility("default"))) const char* gangealing_fast_build() {
#ifdef __clang__
  static const std::string text = std::string("clang ") + __clang_version__;
#else
  static const std::string text = std::string("gcc ") + __VERSION__;
#endif
  return text.c_str();
}
