// SPDX-License-Identifier: Apache-2.0
// The level of levels.h that is in use, and the operators by which gangealing_fast/ops/_levels.py asks and chooses.
#include "levels.h"

namespace ggf {
namespace {

Level highest_level() {
#if GGF_LEVELS
  __builtin_cpu_init();
  if (__builtin_cpu_supports("x86-64-v4")) return Level::avx512;
  if (__builtin_cpu_supports("x86-64-v3")) return Level::avx2;
#endif
  return Level::baseline;
}

int64_t highest() { return static_cast<int64_t>(highest_level()); }

int64_t current() { return static_cast<int64_t>(level_in_use.load(std::memory_order_relaxed)); }

void choose(int64_t level) {
  STD_TORCH_CHECK(level >= 0 && level <= highest(), "choose: this processor and this build have levels 0 to ", highest());
  level_in_use.store(static_cast<Level>(level), std::memory_order_relaxed);
}

}  // namespace

std::atomic<Level> level_in_use{highest_level()};

}  // namespace ggf

STABLE_TORCH_LIBRARY(gangealing_fast_levels, m) {
  m.def("highest() -> int");
  m.def("current() -> int");
  m.def("choose(int level) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(gangealing_fast_levels, CompositeExplicitAutograd, m) {
  m.impl("highest", TORCH_BOX(&ggf::highest));
  m.impl("current", TORCH_BOX(&ggf::current));
  m.impl("choose", TORCH_BOX(&ggf::choose));
}
