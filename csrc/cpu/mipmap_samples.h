// SPDX-License-Identifier: Apache-2.0
// Which texels of a mip-map pyramid a block of grid points reads, and the reading itself. Maths:
// gangealing_fast/ops/mipmap_warp.py.
#pragma once

#include "../mipmap_taps.h"
#include "mipmap_levels.h"

// The vectors below never cross a function that is not inlined, so how they are passed is of no concern.
#pragma GCC diagnostic ignored "-Wpsabi"

namespace ggf::mipmap_warp {

inline constexpr int64_t block = 64;  // grid points handled together

typedef float Float4 __attribute__((vector_size(16)));
typedef double Double4 __attribute__((vector_size(32)));
template <typename A>
using Vec4 = std::conditional_t<std::is_same_v<A, double>, Double4, Float4>;

template <typename A>
struct Problem {
  const A* grid;  // [N, rows, columns, 2]
  int64_t rows, columns, channels, padding;
  A scale_x, scale_y;  // half of width - 1 and of height - 1: from grid units to the pixels of step 1
  A largest;           // the largest level
  Axis<A> horizontal, vertical;
};

// The weights of three texels of a level along one axis, and their derivatives by the normalised coordinate.
template <typename A>
struct AxisTaps {
  int32_t offset[3][block];
  A weight[3][block], slope[3][block];
};

template <typename A>
struct Samples {
  int32_t level[block];
  A squared[block], fraction[block], finite[block];  // fraction: the weight of the next level
  A low_x[block], part_x[block], slope_x[block], low_y[block], part_y[block], slope_y[block];
};

template <Padding padding, typename A>
GGF_INLINE void locate_block(const Problem<A>& problem, const A* GGF_RESTRICT grid, const A* GGF_RESTRICT squared,
                             int64_t count, Samples<A>& samples) {
  for (int64_t p = 0; p < count; ++p) {
    const Position<A> x = locate<padding>(grid[2 * p], problem.horizontal);
    const Position<A> y = locate<padding>(grid[2 * p + 1], problem.vertical);
    samples.low_x[p] = x.low;
    samples.part_x[p] = x.part;
    samples.slope_x[p] = x.slope;
    samples.low_y[p] = y.low;
    samples.part_y[p] = y.part;
    samples.slope_y[p] = y.slope;
    samples.finite[p] = x.finite * y.finite;
  }
  for (int64_t p = 0; p < count; ++p) {
    const A known = squared[p] - squared[p] == 0 ? A(1) : A(0);
    samples.finite[p] *= known;
    samples.squared[p] = samples.finite[p] > 0 ? squared[p] : A(1);
    const A level = binary_log(samples.squared[p]) / 2;
    const A limited = level < problem.largest ? level : problem.largest;
    const A whole = std::floor(limited);
    samples.level[p] = static_cast<int32_t>(whole);
    samples.fraction[p] = limited - whole;
  }
}

// Taps along one axis of `size` pixels, for every sample in its level plus `up`.
template <typename A>
GGF_INLINE void find_taps(const A* GGF_RESTRICT low, const A* GGF_RESTRICT part, const A* GGF_RESTRICT slope,
                          const Samples<A>& samples, int64_t count, int32_t up, A size, const A* shifts, const A* scales,
                          const A* lasts, const int32_t* firsts, const int32_t* strides, int32_t texel,
                          AxisTaps<A>& taps) {
  A shift[block], scale[block], last_texel[block];
  int32_t first[block], stride[block];
  for (int64_t p = 0; p < count; ++p) {
    const int32_t level = samples.level[p] + (samples.fraction[p] > 0 ? up : 0);
    shift[p] = shifts[level];
    scale[p] = scales[level];
    last_texel[p] = lasts[level];
    first[p] = texel ? 0 : firsts[level];
    stride[p] = texel ? texel : strides[level];
  }
  const A last = size - 1;
  for (int64_t p = 0; p < count; ++p) {
    const LevelTaps<A> found = level_taps(low[p], part[p], slope[p], last, {shift[p], scale[p], last_texel[p]});
    taps.weight[0][p] = found.weight0;
    taps.weight[1][p] = found.weight1;
    taps.weight[2][p] = found.weight2;
    taps.slope[0][p] = found.slope0;
    taps.slope[1][p] = found.slope1;
    taps.slope[2][p] = found.slope2;
    const A base = found.base;
    const A end = last_texel[p], one = base + 1, two = base + 2;
    taps.offset[0][p] = first[p] + static_cast<int32_t>(base) * stride[p];
    taps.offset[1][p] = first[p] + static_cast<int32_t>(one < end ? one : end) * stride[p];
    taps.offset[2][p] = first[p] + static_cast<int32_t>(two < end ? two : end) * stride[p];
  }
}

template <typename A>
GGF_INLINE void locate_block(int64_t padding, const Problem<A>& problem, int64_t point, const A* squared, int64_t count,
                             Samples<A>& samples) {
  const A* grid = problem.grid + 2 * point;
  if (padding == zeros) locate_block<zeros>(problem, grid, squared + point, count, samples);
  if (padding == border) locate_block<border>(problem, grid, squared + point, count, samples);
  if (padding == reflection) locate_block<reflection>(problem, grid, squared + point, count, samples);
}

template <typename A>
struct Taps {
  AxisTaps<A> x, y;
};

template <typename A>
GGF_INLINE void find_taps(const Problem<A>& problem, const Pyramid<A>& pyramid, const Samples<A>& samples,
                          int64_t count, int32_t up, Taps<A>& taps) {
  find_taps(samples.low_x, samples.part_x, samples.slope_x, samples, count, up, problem.horizontal.size,
            pyramid.shift_x.data(), pyramid.scale_x.data(), pyramid.last_x.data(), pyramid.first.data(),
            pyramid.stride.data(), 4, taps.x);
  find_taps(samples.low_y, samples.part_y, samples.slope_y, samples, count, up, problem.vertical.size,
            pyramid.shift_y.data(), pyramid.scale_y.data(), pyramid.last_y.data(), pyramid.first.data(),
            pyramid.stride.data(), 0, taps.y);
}

template <typename A>
GGF_INLINE Vec4<A> read(const A* texel) {
  Vec4<A> value;
  __builtin_memcpy(&value, texel, sizeof(value));
  return value;
}

template <typename A>
struct Sampled {
  Vec4<A> value, by_x, by_y;
};

// Level 0 needs 2 texels an axis, the others 3.
template <int taps_per_axis, bool derivatives, typename A>
GGF_INLINE Sampled<A> sample(const A* texels, const Taps<A>& taps, int64_t p) {
  Sampled<A> result{};
  for (int r = 0; r < taps_per_axis; ++r) {
    const A* row = texels + taps.y.offset[r][p];
    Vec4<A> value{}, slope{};
    for (int k = 0; k < taps_per_axis; ++k) {
      const Vec4<A> texel = read(row + taps.x.offset[k][p]);
      value += taps.x.weight[k][p] * texel;
      if constexpr (derivatives) slope += taps.x.slope[k][p] * texel;
    }
    result.value += taps.y.weight[r][p] * value;
    if constexpr (derivatives) {
      result.by_x += taps.y.weight[r][p] * slope;
      result.by_y += taps.y.slope[r][p] * value;
    }
  }
  return result;
}

template <bool derivatives, typename A>
GGF_INLINE Sampled<A> sample_level(const A* texels, const Taps<A>& taps, int64_t p, int32_t level) {
  return level == 0 ? sample<2, derivatives>(texels, taps, p) : sample<3, derivatives>(texels, taps, p);
}

}  // namespace ggf::mipmap_warp
