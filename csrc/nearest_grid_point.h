// SPDX-License-Identifier: Apache-2.0
// Distances between points and grid vertices, rounded alike everywhere: shared by nearest_grid_point and invert_grid, on
// CPU and CUDA. Maths: gangealing_fast/ops/nearest_grid_point.py.
#pragma once

#include "common.h"

namespace ggf {

// a * b, rounded before anything is added to it: a fused multiply-add would move ties between vertices, and let two
// neighbouring cells disagree about their common edge. On a CPU the file that includes this forbids contraction.
template <typename A>
GGF_INLINE A product(A a, A b) {
#ifdef __CUDA_ARCH__
  if constexpr (sizeof(A) == sizeof(double))
    return __dmul_rn(a, b);
  else
    return __fmul_rn(a, b);
#else
  return a * b;
#endif
}

template <typename A>
GGF_INLINE A squared_distance(A vertex_x, A vertex_y, A x, A y) {
  const A dx = vertex_x - x, dy = vertex_y - y;
  return product(dx, dx) + product(dy, dy);
}

// At most the squared distance, as computed above, of (x, y) to any vertex in the box: rounding keeps order.
template <typename A>
GGF_INLINE A squared_distance_to_box(A left, A right, A top, A bottom, A x, A y) {
  A dx = left - x, dy = top - y;
  dx = x - right > dx ? x - right : dx;
  dy = y - bottom > dy ? y - bottom : dy;
  dx = dx > 0 ? dx : A(0);
  dy = dy > 0 ? dy : A(0);
  return product(dx, dx) + product(dy, dy);
}

}  // namespace ggf
