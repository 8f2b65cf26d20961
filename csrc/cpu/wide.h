// SPDX-License-Identifier: Apache-2.0
// Dispatch for operators whose Python side converts the narrow types.
#pragma once

#include "../common.h"

namespace ggf {

// Calls body.operator()<T>() for float or double.
template <typename Body>
decltype(auto) dispatch_wide(ScalarType type, const char* operation, const Body& body) {
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double, operation, ": unsupported dtype ",
                  torch::headeronly::toString(type));
  return type == ScalarType::Float ? body.template operator()<float>() : body.template operator()<double>();
}

}  // namespace ggf
