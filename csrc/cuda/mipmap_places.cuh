// SPDX-License-Identifier: Apache-2.0
// Where one grid point reads the mip-map pyramid, and the reading itself. Maths: gangealing_fast/ops/mipmap_warp.py.
#pragma once

#include "../mipmap_taps.h"
#include "mipmap_pyramid.cuh"

namespace ggf::cuda::mipmap_warp {

using ggf::mipmap_warp::binary_log;
using ggf::mipmap_warp::level_taps;
using ggf::mipmap_warp::LevelAxis;
using ggf::mipmap_warp::LevelTaps;

template <typename T>
struct Problem {
  using A = Compute<T>;
  Image<T> x;                                      // [N, C, H, W]
  const A* grid;                                   // [N, rows, columns, 2]
  const A* small;                                  // [N, C, texels]: levels 1, 2, ...
  int32_t channels, chunk, chunks, rows, columns;  // chunk: channels of a thread
  int64_t padding;
  A pixels_x, pixels_y;  // half of width - 1 and of height - 1: from grid units to the pixels of step 1
  A largest;             // the largest level
  Axis<A> horizontal, vertical;
};

// The largest squared distance to the four neighbours, 1 or more, and which neighbour it is: 0 left, 1 right, 2 above, 3 below.
template <typename A>
struct Distance {
  A squared;
  int32_t neighbour;
  bool finite;
};

// `point` in its sample, whose grid starts at `grid`.
template <typename T>
__device__ __forceinline__ Distance<Compute<T>> measure(const Problem<T>& p, const Compute<T>* grid, int32_t point) {
  using A = Compute<T>;
  const int32_t row = point / p.columns, column = point % p.columns;
  const int32_t others[4] = {column > 0 ? point - 1 : point, column + 1 < p.columns ? point + 1 : point,
                             row > 0 ? point - p.columns : point, row + 1 < p.rows ? point + p.columns : point};
  const A x = grid[2 * int64_t(point)], y = grid[2 * int64_t(point) + 1];
  Distance<A> result{-1, 0, true};
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    const A dx = (grid[2 * int64_t(others[k])] - x) * p.pixels_x, dy = (grid[2 * int64_t(others[k]) + 1] - y) * p.pixels_y;
    const A squared = dx * dx + dy * dy;
    result.finite = result.finite && squared - squared == 0;
    result.neighbour = squared > result.squared ? k : result.neighbour;
    result.squared = squared > result.squared ? squared : result.squared;
  }
  if (!(result.squared > 1)) result.squared = 1;
  return result;
}

// Three texels of a level along one axis, their weights, and the weights' derivatives by the normalised coordinate.
template <typename A>
struct AxisTaps {
  int32_t index[3];
  A weight[3], slope[3];
};

template <typename A>
GGF_INLINE AxisTaps<A> axis_taps(const Position<A>& at, A size, A shift, A scale, int32_t level_size) {
  const LevelTaps<A> taps = level_taps(at.low, at.part, at.slope, size - 1, LevelAxis<A>{shift, scale, A(level_size - 1)});
  const int32_t base = static_cast<int32_t>(taps.base), end = level_size - 1;
  return {{base, base + 1 < end ? base + 1 : end, base + 2 < end ? base + 2 : end},
          {taps.weight0, taps.weight1, taps.weight2},
          {taps.slope0, taps.slope1, taps.slope2}};
}

// Where a grid point samples the pyramid.
template <typename A>
struct Place {
  Position<A> x, y;
  Distance<A> distance;
  A level, fraction;  // fraction: the weight of the level after `lower`
  int32_t lower;
  bool finite;
};

template <typename T>
__device__ __forceinline__ Place<Compute<T>> place_of(const Problem<T>& p, int64_t sample, uint32_t point) {
  using A = Compute<T>;
  const A* grid = p.grid + sample * p.rows * p.columns * 2;
  const A x = grid[2 * int64_t(point)], y = grid[2 * int64_t(point) + 1];
  Place<A> place;
  if (p.padding == zeros) {
    place.x = locate<zeros>(x, p.horizontal);
    place.y = locate<zeros>(y, p.vertical);
  } else if (p.padding == border) {
    place.x = locate<border>(x, p.horizontal);
    place.y = locate<border>(y, p.vertical);
  } else {
    place.x = locate<reflection>(x, p.horizontal);
    place.y = locate<reflection>(y, p.vertical);
  }
  place.distance = measure(p, grid, static_cast<int32_t>(point));
  place.finite = place.distance.finite && place.x.finite * place.y.finite > 0;
  if (!place.finite) place.distance.squared = 1;
  place.level = binary_log(place.distance.squared) / 2;
  const A limited = place.level < p.largest ? place.level : p.largest;
  place.lower = static_cast<int32_t>(std::floor(limited));
  place.fraction = limited - std::floor(limited);
  return place;
}

// The taps of one level, as offsets from its first texel in a plane.
template <typename A>
struct Taps {
  AxisTaps<A> x, y;
};

template <typename T>
__device__ __forceinline__ Taps<Compute<T>> taps_in(const Problem<T>& p, const Level<Compute<T>>& level,
                                                    const Place<Compute<T>>& place) {
  return {axis_taps(place.x, p.horizontal.size, level.shift_x, level.scale_x, level.width),
          axis_taps(place.y, p.vertical.size, level.shift_y, level.scale_y, level.height)};
}

template <typename A>
struct Sampled {
  A value, by_x, by_y;
};

// Level 0 needs 2 texels an axis, the others 3.
template <int taps_per_axis, bool derivatives, typename T>
__device__ __forceinline__ Sampled<Compute<T>> sample(const T* plane, int64_t row_stride, int64_t column_stride,
                                                      const Taps<Compute<T>>& taps) {
  using A = Compute<T>;
  Sampled<A> result{};
#pragma unroll
  for (int r = 0; r < taps_per_axis; ++r) {
    const T* row = plane + taps.y.index[r] * row_stride;
    A value = 0, slope = 0;
#pragma unroll
    for (int k = 0; k < taps_per_axis; ++k) {
      const A texel = load(row[taps.x.index[k] * column_stride]);
      value += taps.x.weight[k] * texel;
      if constexpr (derivatives) slope += taps.x.slope[k] * texel;
    }
    result.value += taps.y.weight[r] * value;
    if constexpr (derivatives) {
      result.by_x += taps.y.weight[r] * slope;
      result.by_y += taps.y.slope[r] * value;
    }
  }
  return result;
}

// Channel c of a sample at one level.
template <bool derivatives, typename T>
__device__ __forceinline__ Sampled<Compute<T>> sample_level(const Problem<T>& p, const Pyramid<Compute<T>>& pyramid, int32_t level,
                                                            const Taps<Compute<T>>& taps, int64_t n, int32_t c) {
  if (level == 0)
    return sample<2, derivatives>(p.x.data + n * p.x.sample_stride + c * p.x.channel_stride, p.x.row_stride, p.x.column_stride,
                                  taps);
  const Level<Compute<T>>& from = pyramid.levels[level];
  return sample<3, derivatives>(p.small + (n * p.channels + c) * pyramid.texels + from.offset, from.width, 1, taps);
}

}  // namespace ggf::cuda::mipmap_warp
