// SPDX-License-Identifier: Apache-2.0
// What both layouts of lpips_distance share: the problem, and the factors that make a pixel's features a unit vector. Maths:
// gangealing_fast/ops/lpips_distance.py.
#pragma once

#include "../common.h"

#include <cmath>

namespace ggf::lpips_distance {

inline constexpr double epsilon = 1e-10;
inline constexpr int64_t piece = 256;  // pixels whose sums are taken together
inline constexpr int64_t row = 64;     // pixels of a contiguous map that are handled together; divides piece

template <typename T>
struct Problem {
  using A = Compute<T>;
  const T* a;
  const T* b;
  const A* head;
  const A* grad;  // [N], times 2 / positions; null in the forward
  T* grad_a;      // null where not wanted
  T* grad_b;
  A* head_sums;                              // [pieces, C], or null
  A* distance;                               // [pieces], forward only
  int64_t channels, positions, pieces_each;  // pieces_each: pieces of one sample
  int64_t elements;                          // of a map
};

// The difference of the two unit vectors is (a * of_a - b * of_b) * scale: exactly 0 for equal features, however the compiler
// contracts it, as one of the factors is 1 then.
template <typename A>
struct Factors {
  A of_a, of_b, scale;
};

template <typename A>
GGF_INLINE Factors<A> factors(A inverse_a, A inverse_b) {
  return inverse_a > 0 ? Factors<A>{1, inverse_b / inverse_a, inverse_a} : Factors<A>{0, 1, inverse_b};
}

template <typename A>
GGF_INLINE A inverse_norm(A squared) {
  return squared > 0 ? 1 / (std::sqrt(squared) + A(epsilon)) : A(0);
}

// 1 / (norm * (norm + epsilon)), the curvature of the sphere, from the inverse norm; 0 for a dead pixel.
template <typename A>
GGF_INLINE A along(A inverse) {
  return inverse > 0 ? inverse / (1 / inverse - A(epsilon)) : A(0);
}

}  // namespace ggf::lpips_distance
