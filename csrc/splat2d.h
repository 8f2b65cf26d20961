// SPDX-License-Identifier: Apache-2.0
// Which pixels a splatted point reaches, along one axis, and with what weight. Shared by CPU and CUDA.
// Maths: gangealing_fast/ops/splat2d.py.
#pragma once

#include "common.h"

#include <cmath>

namespace ggf::splat2d {

inline constexpr double epsilon = 1e-8;

// Pixels [begin, end) of an axis.
struct Window {
  int32_t begin, end;
};

template <typename A>
GGF_INLINE bool paints(A x, A y, A sigma, A width, A height) {
  return x >= 0 && x < width && y >= 0 && y < height && sigma > 0;
}

// The pixels within 2 sigma of a centre that lies in [0, size); the comparisons bring infinities into range first.
template <typename A>
GGF_INLINE Window window(A centre, A sigma, A size) {
  const A first = std::floor(centre - 2 * sigma), last = std::ceil(centre + 2 * sigma);
  return {static_cast<int32_t>(first > 0 ? first : A(0)), static_cast<int32_t>(last < size ? last + 1 : size)};
}

// Squared distances beyond this give no weight: exp(-174 / 2) is 1e-38.
inline constexpr double reach = 174;

template <typename A>
GGF_INLINE A divisor(A total, bool soft) {
  return (soft && total < 1 ? A(1) : total) + A(epsilon);
}

}  // namespace ggf::splat2d
