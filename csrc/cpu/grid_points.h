// SPDX-License-Identifier: Apache-2.0
// Blocks of grid points, and the texels that they read, for grid_sample. Maths: gangealing_fast/ops/grid_sample.py.
#pragma once

#include "../sampling.h"

namespace ggf::grid_sample {

inline constexpr int64_t block = 256;  // grid points handled together

// The weights of the first and the second of two neighbouring texels, and the derivatives of the weights by the
// normalised coordinate.
template <typename A>
struct AxisWeights {
  A first[block], second[block], slope_first[block], slope_second[block];
};

// A block of grid points. Each reads the texel at its offset, the next one of the row, and the two below these; all four
// lie inside the image.
template <typename A>
struct Points {
  int32_t offset[block];
  A finite[block];
  AxisWeights<A> x, y;
};

template <typename A>
struct Problem {
  const A* x;     // [N, C, H, W] with the strides below
  const A* grid;  // [N, points, 2]
  int64_t channels, height, width, points, padding;
  int64_t sample_stride, channel_stride, row_stride, column_stride;
  Axis<A> horizontal, vertical;
};

// Two neighbouring texels, both inside the image, that stand for the texels low and low + 1, of which one or both may lie
// outside (and weigh 0 then).
template <typename A>
struct Pair {
  A first, weight_first, weight_second, slope_first, slope_second;
};

template <Padding padding, typename A>
GGF_INLINE Pair<A> inner_pair(const Position<A>& at, A last_first, A has_second) {
  const A rest = 1 - at.part;
  A first = at.low < last_first ? at.low : last_first;
  if constexpr (padding == zeros) {
    first = first > 0 ? first : A(0);
    const A shift = at.low - first;
    A weight_first = shift == 0 ? rest : A(0), weight_second = shift == 0 ? at.part : A(0);
    A slope_first = shift == 0 ? -at.slope : A(0), slope_second = shift == 0 ? at.slope : A(0);
    weight_first = shift < 0 ? at.part : weight_first;
    slope_first = shift < 0 ? at.slope : slope_first;
    weight_second = shift == 1 ? rest : weight_second;
    slope_second = shift == 1 ? -at.slope : slope_second;
    return {first, weight_first, has_second * weight_second, slope_first, has_second * slope_second};
  } else {
    const A weight = at.low > first ? A(1) : at.part;
    return {first, 1 - weight, weight, -at.slope, at.slope};
  }
}

template <Padding padding, bool derivatives, typename A>
GGF_INLINE void find_weights(const Problem<A>& problem, const A* GGF_RESTRICT grid, int64_t count, A broken, Points<A>& points) {
  const Axis<A> horizontal = problem.horizontal, vertical = problem.vertical;
  const bool wide = problem.width > 1, high = problem.height > 1;
  const A last_x = wide ? horizontal.size - 2 : A(0), last_y = high ? vertical.size - 2 : A(0);
  const A second_x = wide ? A(1) : A(0), second_y = high ? A(1) : A(0);
  const int32_t row = static_cast<int32_t>(problem.row_stride), column = static_cast<int32_t>(problem.column_stride);
  for (int64_t p = 0; p < count; ++p) {
    const Position<A> at_x = locate<padding>(grid[2 * p], horizontal);
    const Position<A> at_y = locate<padding>(grid[2 * p + 1], vertical);
    const Pair<A> x = inner_pair<padding>(at_x, last_x, second_x), y = inner_pair<padding>(at_y, last_y, second_y);
    const A finite = at_x.finite * at_y.finite;
    points.offset[p] = static_cast<int32_t>(y.first) * row + static_cast<int32_t>(x.first) * column;
    points.x.first[p] = x.weight_first;
    points.x.second[p] = x.weight_second;
    points.y.first[p] = finite > 0 ? y.weight_first : broken;
    points.y.second[p] = finite > 0 ? y.weight_second : broken;
    if constexpr (derivatives) {
      points.finite[p] = finite;
      points.x.slope_first[p] = x.slope_first;
      points.x.slope_second[p] = x.slope_second;
      points.y.slope_first[p] = y.slope_first;
      points.y.slope_second[p] = y.slope_second;
    }
  }
}

// Points [begin, begin + count) of a sample. `broken` becomes the weight of points that are not finite.
template <bool derivatives, typename A>
inline void find_points(const Problem<A>& problem, int64_t sample, int64_t begin, int64_t count, A broken, Points<A>& points) {
  const A* grid = problem.grid + 2 * (sample * problem.points + begin);
  if (problem.padding == zeros) at_level<find_weights<zeros, derivatives, A>>(problem, grid, count, broken, points);
  if (problem.padding == border) at_level<find_weights<border, derivatives, A>>(problem, grid, count, broken, points);
  if (problem.padding == reflection) at_level<find_weights<reflection, derivatives, A>>(problem, grid, count, broken, points);
}

// How the texels of an image lie in memory, which decides how they are fetched.
enum class Layout {
  rows,     // neighbours of a row are adjacent
  triples,  // three channels, adjacent
  vectors,  // many channels, adjacent
  strided,
};

template <typename A>
Layout layout_of(const Problem<A>& problem) {
  if (problem.channel_stride == 1 && problem.channels >= 8) return Layout::vectors;
  if (problem.width > 1 && problem.column_stride == 1) return Layout::rows;
  if (problem.width > 1 && problem.channels == 3 && problem.channel_stride == 1 && problem.column_stride == 3)
    return Layout::triples;
  return Layout::strided;
}

// Distance from a texel to the next of its row, and to the one below; 0 where there is none.
template <typename A>
GGF_INLINE int64_t step_across(const Problem<A>& problem) {
  return problem.width > 1 ? problem.column_stride : 0;
}
template <typename A>
GGF_INLINE int64_t step_down(const Problem<A>& problem) {
  return problem.height > 1 ? problem.row_stride : 0;
}

// The texels of one channel that a block of points reads in one row: that of point p and the one beside it, for
// p = 0 ... at first[2 p] and second[2 p].
template <typename A>
struct Texels {
  const A *first, *second;
};

// Many channels are many streams, more than the hardware prefetches: ask for what comes next of one.
template <typename A>
GGF_INLINE void prefetch(const A* next, int64_t count) {
  for (int64_t i = 0; i < count; i += 64 / static_cast<int64_t>(sizeof(A))) __builtin_prefetch(next + i);
}

// Copies texels two at a time: one load instead of two.
template <typename A>
GGF_INLINE void fetch_pairs(const A* x, const int32_t* GGF_RESTRICT offset, int64_t count, A* GGF_RESTRICT texels) {
  for (int64_t p = 0; p < count; ++p) __builtin_memcpy(texels + 2 * p, x + offset[p], 2 * sizeof(A));
}

// Room for one row of texels of up to three channels.
template <typename A>
struct Row {
  alignas(64) A texels[3][2 * block];
};

// Texels of channel c, read from `x`, the image of a sample or the same moved down by a row. Of triples all channels are
// fetched when the first is asked for.
template <Layout layout, typename A>
GGF_INLINE Texels<A> fetch(const Problem<A>& problem, const A* x, int64_t c, const Points<A>& points, int64_t count, Row<A>& row) {
  A* texels = row.texels[0];
  if constexpr (layout == Layout::rows) {
    fetch_pairs(x + c * problem.channel_stride, points.offset, count, texels);
  } else if constexpr (layout == Layout::triples) {
    if (c == 0)
      for (int64_t k = 0; k < 3; ++k) fetch_pairs(x + 2 * k, points.offset, count, row.texels[k]);
    // The six numbers of two neighbouring texels, in pairs: 0 1, 2 0, 1 2.
    const A *pair0 = row.texels[0], *pair1 = row.texels[1], *pair2 = row.texels[2];
    return c == 0 ? Texels<A>{pair0, pair1 + 1} : c == 1 ? Texels<A>{pair0 + 1, pair2} : Texels<A>{pair1, pair2 + 1};
  } else {
    const A *left = x + c * problem.channel_stride, *right = left + step_across(problem);
    A* GGF_RESTRICT out = texels;
    for (int64_t p = 0; p < count; ++p) {
      out[2 * p] = left[points.offset[p]];
      out[2 * p + 1] = right[points.offset[p]];
    }
  }
  return {texels, texels + 1};
}

template <typename A>
struct Rows {
  Row<A> upper, lower;
};

// Samples channel c of `x`, the image of one sample: value(p, v) for every point of the block.
template <Layout layout, typename A, typename Value>
GGF_INLINE void sample_channel(const Problem<A>& problem, const A* x, int64_t c, const Points<A>& points, int64_t count,
                               Rows<A>& rows, const Value& value) {
  const Texels<A> top = fetch<layout>(problem, x, c, points, count, rows.upper);
  const Texels<A> bottom = fetch<layout>(problem, x + step_down(problem), c, points, count, rows.lower);
  for (int64_t p = 0; p < count; ++p) {
    const A above = points.x.first[p] * top.first[2 * p] + points.x.second[p] * top.second[2 * p];
    const A below = points.x.first[p] * bottom.first[2 * p] + points.x.second[p] * bottom.second[2 * p];
    value(p, points.y.first[p] * above + points.y.second[p] * below);
  }
}

// As sample_channel, with the derivatives by the normalised coordinates: value(p, v, by_x, by_y).
template <Layout layout, typename A, typename Value>
GGF_INLINE void differentiate_channel(const Problem<A>& problem, const A* x, int64_t c, const Points<A>& points, int64_t count,
                                      Rows<A>& rows, const Value& value) {
  const Texels<A> top = fetch<layout>(problem, x, c, points, count, rows.upper);
  const Texels<A> bottom = fetch<layout>(problem, x + step_down(problem), c, points, count, rows.lower);
  for (int64_t p = 0; p < count; ++p) {
    const A t0 = top.first[2 * p], t1 = top.second[2 * p], b0 = bottom.first[2 * p], b1 = bottom.second[2 * p];
    const A above = points.x.first[p] * t0 + points.x.second[p] * t1;
    const A below = points.x.first[p] * b0 + points.x.second[p] * b1;
    const A slope_above = points.x.slope_first[p] * t0 + points.x.slope_second[p] * t1;
    const A slope_below = points.x.slope_first[p] * b0 + points.x.slope_second[p] * b1;
    value(p, points.y.first[p] * above + points.y.second[p] * below,
          points.y.first[p] * slope_above + points.y.second[p] * slope_below,
          points.y.slope_first[p] * above + points.y.slope_second[p] * below);
  }
}

// Adds a block's gradient to one plane [height, width], through points found for such a plane.
template <typename A>
GGF_INLINE void scatter_channel(const Problem<A>& problem, const A (&weight)[4][block], const Points<A>& points, int64_t count,
                                const A* GGF_RESTRICT grad, A* plane) {
  const int64_t across = problem.width > 1 ? 1 : 0, down = problem.height > 1 ? problem.width : 0;
  for (int64_t p = 0; p < count; ++p) {
    A* texel = plane + points.offset[p];
    texel[0] += weight[0][p] * grad[p];
    texel[across] += weight[1][p] * grad[p];
    texel[down] += weight[2][p] * grad[p];
    texel[down + across] += weight[3][p] * grad[p];
  }
}

// The products of the weights of both axes, for scatter_channel.
template <typename A>
GGF_INLINE void multiply_weights(const Points<A>& points, int64_t count, A (&weight)[4][block]) {
  for (int64_t p = 0; p < count; ++p) {
    weight[0][p] = points.y.first[p] * points.x.first[p];
    weight[1][p] = points.y.first[p] * points.x.second[p];
    weight[2][p] = points.y.second[p] * points.x.first[p];
    weight[3][p] = points.y.second[p] * points.x.second[p];
  }
}

// Whether all offsets into a sample of x fit into 32 bits.
inline bool has_short_offsets(const Tensor& x) {
  return (x.size(2) - 1) * x.stride(2) + (x.size(3) - 1) * x.stride(3) <= INT32_MAX;
}

// `x` of type A, with strides that the kernels can use.
template <typename A>
Tensor readable(const Tensor& x) {
  const Tensor result = in_type(x, compute_scalar_type<A>);
  return has_short_offsets(result) ? result : in_layout(result, false);
}

template <typename A>
Problem<A> problem_of(const Tensor& x, const Tensor& grid, int64_t padding, bool align_corners) {
  return {x.const_data_ptr<A>(),
          grid.const_data_ptr<A>(),
          x.size(1),
          x.size(2),
          x.size(3),
          grid.size(1) * grid.size(2),
          padding,
          x.stride(0),
          x.stride(1),
          x.stride(2),
          x.stride(3),
          axis_of<A>(x.size(3), align_corners),
          axis_of<A>(x.size(2), align_corners)};
}

}  // namespace ggf::grid_sample
