// SPDX-License-Identifier: Apache-2.0
// How far the points of a grid lie apart, which decides their mip-map levels, and the derivative of that. Maths:
// gangealing_fast/ops/mipmap_warp.py.
#pragma once

#include "mipmap_samples.h"

#include <algorithm>

namespace ggf::mipmap_warp {

// The largest squared distance to the four neighbours, 1 or more (NaN or infinity where one is not finite), and which
// neighbour it is: 0 left, 1 right, 2 above, 3 below. Returns the largest finite one of the row.
template <typename A>
GGF_INLINE A measure_row(const Problem<A>& problem, int64_t row, A* GGF_RESTRICT squared, int32_t* GGF_RESTRICT nearest) {
  const int64_t columns = problem.columns, y = row % problem.rows;
  const A* here = problem.image.grid + 2 * row * columns;
  const A* above = y > 0 ? here - 2 * columns : here;
  const A* below = y + 1 < problem.rows ? here + 2 * columns : here;
  const A scale_x = problem.scale_x, scale_y = problem.scale_y;
  const auto measure = [&](int64_t i, int64_t left, int64_t right) __attribute__((always_inline)) {
    const A x = here[2 * i], y = here[2 * i + 1];
    const auto distance = [&](const A* other) __attribute__((always_inline)) {
      const A dx = (other[0] - x) * scale_x, dy = (other[1] - y) * scale_y;
      return dx * dx + dy * dy;
    };
    const A d0 = distance(here + 2 * left), d1 = distance(here + 2 * right);
    const A d2 = distance(above + 2 * i), d3 = distance(below + 2 * i);
    A largest = d0;
    int32_t which = 0;
    which = d1 > largest ? 1 : which;
    largest = d1 > largest ? d1 : largest;
    which = d2 > largest ? 2 : which;
    largest = d2 > largest ? d2 : largest;
    which = d3 > largest ? 3 : which;
    largest = d3 > largest ? d3 : largest;
    largest = largest < 1 ? A(1) : largest;
    // d - d is 0 for finite numbers and NaN for all others.
    squared[i] = largest + ((d0 - d0) + (d1 - d1) + (d2 - d2) + (d3 - d3));
    nearest[i] = which;
  };
  measure(0, 0, std::min<int64_t>(1, columns - 1));
  for (int64_t i = 1; i < columns - 1; ++i) measure(i, i - 1, i + 1);
  if (columns > 1) measure(columns - 1, columns - 2, columns - 1);
  constexpr int64_t lanes = 16;
  A best[lanes];
  std::fill_n(best, lanes, A(1));
  for (int64_t i = 0; i < columns; i += lanes)
    for (int64_t k = 0; k < std::min(lanes, columns - i); ++k) {
      const A value = squared[i + k] - squared[i + k] == 0 ? squared[i + k] : A(1);
      best[k] = value > best[k] ? value : best[k];
    }
  return *std::max_element(best, best + lanes);
}

// Adds what comes through the level to a row of the grid's gradient: the derivatives by the squared distances between its
// points and their neighbours, of which every distance moves the two points it is measured between.
template <typename A>
GGF_INLINE void distance_gradient_row(const Problem<A>& problem, int64_t row, const int32_t* GGF_RESTRICT nearest,
                                      const A* GGF_RESTRICT by_square, A* GGF_RESTRICT grad_grid) {
  const int64_t columns = problem.columns, y = row % problem.rows, start = row * columns;
  const int64_t up = y > 0 ? -columns : 0, down = y + 1 < problem.rows ? columns : 0;
  const A has_above = y > 0 ? A(1) : A(0), has_below = y + 1 < problem.rows ? A(1) : A(0);
  const A scale_x = 2 * problem.scale_x * problem.scale_x, scale_y = 2 * problem.scale_y * problem.scale_y;
  const A* grid = problem.image.grid;
  const auto add = [&](int64_t p, int64_t left, int64_t right, A has_left, A has_right) GGF_INLINE_LAMBDA {
    const A own = by_square[p];
    const int32_t which = nearest[p];
    // The part of each neighbour: of the distance measured from here, and of the one measured from there.
    const A from_left = nearest[p + left] == 1 ? by_square[p + left] : A(0);
    const A from_right = nearest[p + right] == 0 ? by_square[p + right] : A(0);
    const A from_above = nearest[p + up] == 3 ? by_square[p + up] : A(0);
    const A from_below = nearest[p + down] == 2 ? by_square[p + down] : A(0);
    const A to_left = (which == 0 ? own : A(0)) + has_left * from_left;
    const A to_right = (which == 1 ? own : A(0)) + has_right * from_right;
    const A to_above = (which == 2 ? own : A(0)) + has_above * from_above;
    const A to_below = (which == 3 ? own : A(0)) + has_below * from_below;
    // A difference to a point that is not finite has no part, and must not make NaN of the sum.
    const auto share = [](A part, A difference) GGF_INLINE_LAMBDA {
      const A product = part * difference;
      return part == 0 ? A(0) : product;
    };
    const auto slope = [&](int64_t axis) GGF_INLINE_LAMBDA {
      const A here = grid[2 * p + axis];
      return share(to_left, here - grid[2 * (p + left) + axis]) + share(to_right, here - grid[2 * (p + right) + axis]) +
             share(to_above, here - grid[2 * (p + up) + axis]) + share(to_below, here - grid[2 * (p + down) + axis]);
    };
    grad_grid[2 * p] += scale_x * slope(0);
    grad_grid[2 * p + 1] += scale_y * slope(1);
  };
  add(start, 0, columns > 1 ? 1 : 0, A(0), columns > 1 ? A(1) : A(0));
  for (int64_t p = start + 1; p < start + columns - 1; ++p) add(p, -1, 1, A(1), A(1));
  if (columns > 1) add(start + columns - 1, -1, 0, A(1), A(0));
}

}  // namespace ggf::mipmap_warp
