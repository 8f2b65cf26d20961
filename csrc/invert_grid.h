// SPDX-License-Identifier: Apache-2.0
// One cell of a bilinear grid: which points it holds, and where in it they lie; the inverse at a point, given the cells that
// hold it. Shared by CPU and CUDA: both round alike but for fused multiply-adds, which a GPU uses where `product` does not
// forbid them.
// Maths: gangealing_fast/ops/invert_grid.py.
#pragma once

#include "nearest_grid_point.h"

#include <cmath>
#include <limits>

namespace ggf::invert_grid {

template <typename A>
struct Vector {
  A x, y;
};

template <typename A>
GGF_INLINE Vector<A> operator-(Vector<A> a, Vector<A> b) {
  return {a.x - b.x, a.y - b.y};
}

template <typename A>
GGF_INLINE Vector<A> operator*(A scale, Vector<A> a) {
  return {scale * a.x, scale * a.y};
}

template <typename A>
GGF_INLINE A cross(Vector<A> a, Vector<A> b) {
  return product(a.x, b.y) - product(a.y, b.x);
}

// Whether the ray from `point` towards larger x crosses the edge from `start` to `end`. Both cells beside an edge must give
// its ends in the same order.
template <typename A>
GGF_INLINE bool crosses(Vector<A> start, Vector<A> end, Vector<A> point) {
  const A side = cross(end - start, point - start);
  const bool straddles = (start.y > point.y) != (end.y > point.y);
  return straddles & (end.y > start.y ? side > 0 : side < 0);
}

// The corners of a cell, 00, 10, 01, 11: x first.
template <typename A>
struct Cell {
  Vector<A> first, right, lower, last;
};

// Cell (x, y) of the grid [H, W, 2]; what would lie beyond its last column or row is that column or row itself. As Index int32_t
// will do for fewer than 2^29 vertices.
template <typename A, typename Index>
GGF_INLINE Cell<A> cell_at(const A* grid, Index height, Index width, Index x, Index y) {
  const Index across = x + 1 < width ? 2 : 0, down = y + 1 < height ? 2 * width : 0;
  const A* corner = grid + 2 * (y * width + x);
  return {{corner[0], corner[1]},
          {corner[across], corner[across + 1]},
          {corner[down], corner[down + 1]},
          {corner[down + across], corner[down + across + 1]}};
}

template <typename A>
GGF_INLINE bool is_finite(const Cell<A>& cell) {
  A zero = 0;  // NaN once anything is not finite
  const Vector<A> corners[4] = {cell.first, cell.right, cell.lower, cell.last};
  for (int i = 0; i < 4; ++i) zero += (corners[i].x - corners[i].x) + (corners[i].y - corners[i].y);
  return zero == 0;
}

inline constexpr double margin = 1e-3, largest_step = 1e-2, smallest_area = 1e-6;  // as in ops/invert_grid.py

template <typename A>
struct Place {
  A u, v;
  bool found;  // inside the cell, up to the margin
};

template <typename A>
GGF_INLINE void widen(A& longest, Vector<A> edge) {
  const A x = std::fabs(edge.x), y = std::fabs(edge.y);
  longest = x > longest ? x : longest;
  longest = y > longest ? y : longest;
}

template <typename A>
GGF_INLINE Place<A> solve(const Cell<A>& cell, Vector<A> point) {
  Vector<A> e = cell.right - cell.first, f = cell.lower - cell.first, h = cell.last - cell.right - f;
  Vector<A> d = point - cell.first;
  A longest = 0;
  widen(longest, e);
  widen(longest, f);
  widen(longest, h);
  const A scale = 1 / longest;
  e = scale * e;
  f = scale * f;
  h = scale * h;
  d = scale * d;
  const A a = -cross(e, h), b = cross(d, h) - cross(e, f), c = cross(d, f);
  const A discriminant = b * b - 4 * a * c;
  const A q = -(b + std::copysign(discriminant > 0 ? std::sqrt(discriminant) : A(0), b)) / 2;
  const A roots[2] = {c / q, q / a};
  A u = 0, v = 0, distance = std::numeric_limits<A>::infinity();
  bool any = false;
  for (int i = 0; i < 2; ++i) {
    const A root = roots[i];
    const Vector<A> w{f.x + root * h.x, f.y + root * h.y}, rest = d - root * e;
    const A other = (rest.x * w.x + rest.y * w.y) / (w.x * w.x + w.y * w.y);
    const A across = std::fabs(root - A(0.5)), down = std::fabs(other - A(0.5));
    if (across < distance && down < distance) {
      any = true;
      u = root;
      v = other;
      distance = across > down ? across : down;
    }
  }
  const Vector<A> right{e.x + v * h.x, e.y + v * h.y}, lower{f.x + u * h.x, f.y + u * h.y};
  const Vector<A> rest{d.x - u * e.x - v * f.x - u * v * h.x, d.y - u * e.y - v * f.y - u * v * h.y};
  const A area = cross(right, lower);
  const A step_u = cross(rest, lower) / area, step_v = cross(right, rest) / area;
  u += step_u;
  v += step_v;
  const bool solved =
      any && std::fabs(area) > A(smallest_area) && std::fabs(step_u) < A(largest_step) && std::fabs(step_v) < A(largest_step);
  const A reach = A(0.5) + A(margin);
  return {u, v, solved && std::fabs(u - A(0.5)) <= reach && std::fabs(v - A(0.5)) <= reach};
}

// What the operator gives for a point.
template <typename A, typename Index>
struct Inverse {
  Index x, y;  // of the cell, or the nearest vertex where no cell serves
  A u, v, confidence;
};

// `nearest` is the index of the vertex nearest to the point, below 0 if no vertex has a finite distance. `holders` cells hold the
// point; `first` is the first vertex of the first of them in reading order.
template <typename A, typename Index>
GGF_INLINE Inverse<A, Index> invert(const A* grid, Index height, Index width, Vector<A> point, Index nearest, Index holders,
                                    Index first) {
  constexpr A nan = std::numeric_limits<A>::quiet_NaN();
  if (nearest < 0) return {0, 0, nan, nan, 0};
  // A point that no cell holds may lie within the margin of one: the cells around the nearest vertex are tried.
  const int tries = holders > 0 ? 1 : 4;
  for (int k = 0; k < tries; ++k) {
    const Index x = holders > 0 ? first % width : nearest % width - 1 + k % 2;
    const Index y = holders > 0 ? first / width : nearest / width - 1 + k / 2;
    if (x < 0 || y < 0 || x + 1 >= width || y + 1 >= height) continue;
    const Place<A> place = solve(cell_at(grid, height, width, x, y), point);
    if (place.found) return {x, y, place.u, place.v, holders > 0 ? A(1) / static_cast<A>(holders) : A(1)};
  }
  return {nearest % width, nearest / width, 0, 0, 0};
}

// Whether what `invert` gave has a gradient: it lies in a cell of the grid.
template <typename A>
GGF_INLINE bool has_gradient(A confidence, int64_t x, int64_t y, int64_t height, int64_t width) {
  return confidence > 0 && x >= 0 && y >= 0 && x + 1 < width && y + 1 < height;
}

// The weight of corner k (00, 10, 01, 11: x first) at (u, v) in its cell.
template <typename A>
GGF_INLINE A corner_weight(A u, A v, int k) {
  return (k % 2 ? u : 1 - u) * (k / 2 ? v : 1 - v);
}

// The gradient of the point from that of (u, v) in the cell: the transposed inverse Jacobian.
template <typename A>
GGF_INLINE Vector<A> point_gradient(const Cell<A>& cell, A u, A v, A grad_u, A grad_v) {
  const Vector<A> e = cell.right - cell.first, f = cell.lower - cell.first, h = cell.last - cell.right - f;
  const Vector<A> right{e.x + v * h.x, e.y + v * h.y}, lower{f.x + u * h.x, f.y + u * h.y};
  const A area = cross(right, lower);
  return {(grad_u * lower.y - grad_v * right.y) / area, (grad_v * right.x - grad_u * lower.x) / area};
}

}  // namespace ggf::invert_grid
