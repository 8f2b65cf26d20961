// SPDX-License-Identifier: Apache-2.0
// One portable binary for the vectors of the machine that it runs on: at_level calls a function compiled once for each level.
// Which level serves is decided when the library is loaded, and GGF_CPU_LEVEL chooses another. Not by the compiler's own
// target_clones: what these pick cannot be changed, and they pick before the process has an environment to ask.
#pragma once

#include "../common.h"

#include <atomic>

// What a function calls must be GGF_INLINE, or it is compiled for the lowest level alone. A lambda given to parallel_for is
// not inlined, so let it call at_level for its range. The sanitized build has one level.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12 && !defined(__SANITIZE_ADDRESS__) && \
    !defined(__SANITIZE_THREAD__)
#define GGF_LEVELS 1
#else
#define GGF_LEVELS 0
#endif

namespace ggf {

// In the order of gangealing_fast/ops/_levels.py.
enum class Level : int32_t { baseline, avx2, avx512 };

// The level in use: the highest that this processor has, unless set_level chose a lower one.
extern std::atomic<Level> level_in_use;

#if GGF_LEVELS
#define GGF_AT_AVX512 __attribute__((target("arch=x86-64-v4"), noinline))
#define GGF_AT_AVX2 __attribute__((target("arch=x86-64-v3"), noinline))
#endif

template <auto function>
struct Versions;

template <typename Result, typename... Parameters, Result (*function)(Parameters...)>
struct Versions<function> {
#if GGF_LEVELS
  GGF_AT_AVX512 static Result avx512(Parameters... parameters) { return function(parameters...); }
  GGF_AT_AVX2 static Result avx2(Parameters... parameters) { return function(parameters...); }
#endif
  static Result baseline(Parameters... parameters) { return function(parameters...); }
};

// The function, which is GGF_INLINE, as compiled for the level in use.
template <auto function, typename... Arguments>
GGF_INLINE decltype(auto) at_level(Arguments&&... arguments) {
#if GGF_LEVELS
  const Level level = level_in_use.load(std::memory_order_relaxed);
  if (level == Level::avx512) return Versions<function>::avx512(arguments...);
  if (level == Level::avx2) return Versions<function>::avx2(arguments...);
#endif
  return Versions<function>::baseline(arguments...);
}

// For code that differs from level to level, in its tiles for example: the function takes the level as a template argument.
// `body` is a lambda without captures, of the form []<Level level>(const Product& p) GGF_INLINE_LAMBDA { ... }.
template <auto body, typename... Arguments>
GGF_INLINE void at_each_level(const Arguments&... arguments) {
  struct Compiled {
#if GGF_LEVELS
    GGF_AT_AVX512 static void avx512(const Arguments&... all) { body.template operator()<Level::avx512>(all...); }
    GGF_AT_AVX2 static void avx2(const Arguments&... all) { body.template operator()<Level::avx2>(all...); }
#endif
    static void baseline(const Arguments&... all) { body.template operator()<Level::baseline>(all...); }
  };
#if GGF_LEVELS
  const Level level = level_in_use.load(std::memory_order_relaxed);
  if (level == Level::avx512) return Compiled::avx512(arguments...);
  if (level == Level::avx2) return Compiled::avx2(arguments...);
#endif
  Compiled::baseline(arguments...);
}

}  // namespace ggf
