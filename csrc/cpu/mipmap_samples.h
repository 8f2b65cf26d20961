// SPDX-License-Identifier: Apache-2.0
// Blocks of grid points of mipmap_warp: their levels, the texels of a level that they read, and the reading. Maths:
// gangealing_fast/ops/mipmap_warp.py.
#pragma once

#include "../mipmap_taps.h"
#include "levels.h"
#include "grid_points.h"
#include "mipmap_pyramid.h"

// The vectors below never cross a function that is not inlined, so how they are passed is of no concern.
#pragma GCC diagnostic ignored "-Wpsabi"

namespace ggf::mipmap_warp {

inline constexpr int64_t block = 128;  // grid points handled together
static_assert(block <= grid_sample::block);

typedef float Float4 __attribute__((vector_size(16)));
typedef float Float16 __attribute__((vector_size(64)));
typedef double Double4 __attribute__((vector_size(32)));
typedef double Double16 __attribute__((vector_size(128)));
template <typename A>
using Vec4 = std::conditional_t<std::is_same_v<A, double>, Double4, Float4>;
template <typename A>
using Vec16 = std::conditional_t<std::is_same_v<A, double>, Double16, Float16>;

template <typename Vector, typename A>
GGF_INLINE Vector read(const A* numbers) {
  Vector value;
  __builtin_memcpy(&value, numbers, sizeof(value));
  return value;
}

using grid_sample::Layout;

// A block of points in one row of the grid.
struct Run {
  int64_t sample, point, count;  // point: the first one within its sample
};

template <typename A>
struct Problem {
  grid_sample::Problem<A> image;  // level 0, and the grid
  int64_t rows, columns;          // of the grid
  A scale_x, scale_y;             // half of width - 1 and of height - 1: from grid units to the pixels of step 1
  A largest;                      // the largest level
};

template <typename A>
struct Samples {
  int32_t level[block];
  A squared[block], fraction[block], finite[block];  // fraction: the weight of the next level
  A uncapped[block];                                 // level, before it is limited to the largest
  A low_x[block], part_x[block], slope_x[block], low_y[block], part_y[block], slope_y[block];
  int32_t lowest, highest;  // level of any point
  bool between;             // whether any fraction is more than 0
  bool on_image() const { return lowest == 0; }
  bool on_pyramid() const { return highest > 0 || between; }
};

template <Padding padding, typename A>
GGF_INLINE void locate_points(const Problem<A>& problem, const A* GGF_RESTRICT grid, const A* GGF_RESTRICT squared, int64_t count,
                              Samples<A>& samples) {
  const Axis<A> horizontal = problem.image.horizontal, vertical = problem.image.vertical;
  const A largest = problem.largest;
  for (int64_t p = 0; p < count; ++p) {
    const Position<A> x = locate<padding>(grid[2 * p], horizontal);
    const Position<A> y = locate<padding>(grid[2 * p + 1], vertical);
    samples.low_x[p] = x.low;
    samples.part_x[p] = x.part;
    samples.slope_x[p] = x.slope;
    samples.low_y[p] = y.low;
    samples.part_y[p] = y.part;
    samples.slope_y[p] = y.slope;
    samples.finite[p] = x.finite * y.finite;
  }
  int32_t lowest = most_levels, highest = 0, between = 0;
  for (int64_t p = 0; p < count; ++p) {
    const A known = squared[p] - squared[p] == 0 ? A(1) : A(0);
    const A finite = samples.finite[p] * known;
    const A distance = finite > 0 ? squared[p] : A(1);
    const A level = binary_log(distance) / 2;
    const A limited = level < largest ? level : largest;
    const A whole = std::floor(limited);
    const int32_t index = static_cast<int32_t>(whole);
    samples.finite[p] = finite;
    samples.squared[p] = distance;
    samples.uncapped[p] = level;
    samples.level[p] = index;
    samples.fraction[p] = limited - whole;
    lowest = index < lowest ? index : lowest;
    highest = index > highest ? index : highest;
    between |= limited > whole ? 1 : 0;
  }
  samples.lowest = lowest;
  samples.highest = highest;
  samples.between = between != 0;
}

// The same where there is level 0 alone: nothing but which points are finite.
template <typename A>
GGF_INLINE void find_finite(const Problem<A>& problem, const A* GGF_RESTRICT grid, const A* GGF_RESTRICT squared, int64_t count,
                            Samples<A>& samples) {
  const Axis<A> horizontal = problem.image.horizontal, vertical = problem.image.vertical;
  for (int64_t p = 0; p < count; ++p) {
    const A x = (grid[2 * p] + 1) * horizontal.scale, y = (grid[2 * p + 1] + 1) * vertical.scale;
    // A number less itself is 0, and NaN if it is not finite.
    samples.finite[p] = (x - x) + (y - y) + (squared[p] - squared[p]) == 0 ? A(1) : A(0);
    samples.squared[p] = 1;
    samples.fraction[p] = samples.uncapped[p] = 0;
    samples.level[p] = 0;
  }
  samples.lowest = samples.highest = 0;
  samples.between = false;
}

template <typename A>
inline void locate_block(const Problem<A>& problem, int64_t point, const A* squared, int64_t count, Samples<A>& samples) {
  const A* grid = problem.image.grid + 2 * point;
  squared += point;
  if (problem.largest == 0) return at_level<find_finite<A>>(problem, grid, squared, count, samples);
  if (problem.image.padding == zeros) at_level<locate_points<zeros, A>>(problem, grid, squared, count, samples);
  if (problem.image.padding == border) at_level<locate_points<border, A>>(problem, grid, squared, count, samples);
  if (problem.image.padding == reflection) at_level<locate_points<reflection, A>>(problem, grid, squared, count, samples);
}

// The weights of three texels in a row, and their derivatives by the normalised coordinate.
template <typename A>
struct AxisTaps {
  A weight[3][block], slope[3][block];
};

// Nine texels of a level: from `offset` on three of its row, and those of the two rows below.
template <typename A>
struct Taps {
  int32_t offset[block], stride[block];
  AxisTaps<A> x, y;
};

template <bool derivatives, typename A>
GGF_INLINE A axis_taps(A low, A part, A slope, A last, A shift, A scale, int64_t p, AxisTaps<A>& taps) {
  const LevelTaps<A> found = level_taps(low, part, slope, last, {shift, scale, A(0)});
  taps.weight[0][p] = found.weight0;
  taps.weight[1][p] = found.weight1;
  taps.weight[2][p] = found.weight2;
  if constexpr (derivatives) {
    taps.slope[0][p] = found.slope0;
    taps.slope[1][p] = found.slope1;
    taps.slope[2][p] = found.slope2;
  }
  return found.base;
}

// Taps of a block in its levels plus `up`; where that level does not exist, no fraction asks for it.
template <bool derivatives, typename A>
GGF_INLINE void find_taps_of_level(const Problem<A>& problem, const Pyramid<A>& pyramid, const Samples<A>& samples, int64_t count,
                                   int32_t up, Taps<A>& taps) {
  const int32_t deepest = static_cast<int32_t>(pyramid.levels.size()) - 1;
  const int32_t lowest = std::min(samples.lowest + up, deepest), highest = std::min(samples.highest + up, deepest);
  const A last_x = problem.image.horizontal.size - 1, last_y = problem.image.vertical.size - 1;
  const A shift_x = static_cast<A>(pyramid.left), shift_y = static_cast<A>(pyramid.top);
  A scale_x[block], scale_y[block];
  // Most blocks lie in one level, or between two: this is cheaper than to look every point up.
  for (int32_t level = lowest; level <= highest; ++level) {
    const A level_x = pyramid.scale_x[level], level_y = pyramid.scale_y[level];
    const int32_t first = pyramid.first[level], stride = pyramid.stride[level], from = level == lowest ? 0 : level - up;
    for (int64_t p = 0; p < count; ++p) {
      const bool here = samples.level[p] >= from;
      scale_x[p] = here ? level_x : scale_x[p];
      scale_y[p] = here ? level_y : scale_y[p];
      taps.offset[p] = here ? first : taps.offset[p];
      taps.stride[p] = here ? stride : taps.stride[p];
    }
  }
  for (int64_t p = 0; p < count; ++p) {
    const A x =
        axis_taps<derivatives>(samples.low_x[p], samples.part_x[p], samples.slope_x[p], last_x, shift_x, scale_x[p], p, taps.x);
    const A y =
        axis_taps<derivatives>(samples.low_y[p], samples.part_y[p], samples.slope_y[p], last_y, shift_y, scale_y[p], p, taps.y);
    taps.offset[p] += static_cast<int32_t>(y) * taps.stride[p] + 4 * static_cast<int32_t>(x);
  }
}

// The taps of both levels between which the points lie, as far as any point needs them.
template <bool derivatives, typename A>
inline void find_taps(const Problem<A>& problem, const Pyramid<A>& pyramid, const Samples<A>& samples, int64_t count,
                      Taps<A>& lower, Taps<A>& upper) {
  if (samples.highest > 0) at_level<find_taps_of_level<derivatives, A>>(problem, pyramid, samples, count, 0, lower);
  if (samples.between) at_level<find_taps_of_level<derivatives, A>>(problem, pyramid, samples, count, 1, upper);
}

template <typename A>
struct Sampled {
  Vec4<A> value, by_x, by_y;
};

// w[0] times the first texel of four plus w[1] times the second plus w[2] times the third.
template <typename A>
GGF_INLINE Vec4<A> across(const Vec16<A>& texels, const A (&weight)[3][block], int64_t p) {
  return weight[0][p] * __builtin_shufflevector(texels, texels, 0, 1, 2, 3) +
         weight[1][p] * __builtin_shufflevector(texels, texels, 4, 5, 6, 7) +
         weight[2][p] * __builtin_shufflevector(texels, texels, 8, 9, 10, 11);
}

// Four channels of one sample. A row is read four texels at a time, of which three count.
template <bool derivatives, typename A>
GGF_INLINE Sampled<A> sample(const A* texels, const Taps<A>& taps, int64_t p) {
  const A* texel = texels + taps.offset[p];
  const int64_t stride = taps.stride[p];
  const Vec16<A> row0 = read<Vec16<A>>(texel), row1 = read<Vec16<A>>(texel + stride);
  const Vec16<A> row2 = read<Vec16<A>>(texel + 2 * stride);
  const Vec16<A> mixed = taps.y.weight[0][p] * row0 + taps.y.weight[1][p] * row1 + taps.y.weight[2][p] * row2;
  Sampled<A> result{};
  result.value = across<A>(mixed, taps.x.weight, p);
  if constexpr (derivatives) {
    const Vec16<A> slopes = taps.y.slope[0][p] * row0 + taps.y.slope[1][p] * row1 + taps.y.slope[2][p] * row2;
    result.by_x = across<A>(mixed, taps.x.slope, p);
    result.by_y = across<A>(slopes, taps.x.weight, p);
  }
  return result;
}

template <typename A>
GGF_INLINE void scatter(A* texels, const Taps<A>& taps, int64_t p, const Vec4<A>& value) {
  for (int64_t r = 0; r < 3; ++r) {
    A* texel = texels + taps.offset[p] + r * taps.stride[p];
    const Vec4<A> part = taps.y.weight[r][p] * value;
    for (int64_t k = 0; k < 3; ++k, texel += 4) {
      const Vec4<A> sum = read<Vec4<A>>(texel) + taps.x.weight[k][p] * part;
      __builtin_memcpy(texel, &sum, sizeof(sum));
    }
  }
}

}  // namespace ggf::mipmap_warp
