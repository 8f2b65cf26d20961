// SPDX-License-Identifier: Apache-2.0
// The backward pass of mipmap_warp for one block of grid points. Maths: gangealing_fast/ops/mipmap_warp.py.
#pragma once

#include "levels.h"
#include "mipmap_samples.h"

#include <algorithm>

namespace ggf::mipmap_warp {

// What a block's gradient by the grid is made of: derivatives of the result by x, by y and by the level.
template <typename A>
struct Slopes {
  A x[block] = {}, y[block] = {}, level[block] = {};
};

// Adds what comes through level 0.
template <Layout layout, typename A>
GGF_INLINE void add_image_slopes(const Problem<A>& problem, const A* x, const Samples<A>& samples,
                                 const grid_sample::Points<A>& points, int64_t count, const A* grad, Slopes<A>& slopes) {
  grid_sample::Rows<A> rows;
  A by_x[block] = {}, by_y[block] = {}, dot[block] = {};
  for (int64_t c = 0; c < problem.image.channels; ++c) {
    const A* GGF_RESTRICT g = grad + c * problem.image.points;
    grid_sample::differentiate_channel<layout>(problem.image, x, c, points, count, rows,
                                               [&](int64_t p, A value, A slope_x, A slope_y) GGF_INLINE_LAMBDA {
                                                 dot[p] += g[p] * value;
                                                 by_x[p] += g[p] * slope_x;
                                                 by_y[p] += g[p] * slope_y;
                                               });
  }
  for (int64_t p = 0; p < count; ++p) {
    const A weight = 1 - samples.fraction[p];
    slopes.x[p] += samples.level[p] == 0 ? weight * by_x[p] : A(0);
    slopes.y[p] += samples.level[p] == 0 ? weight * by_y[p] : A(0);
    slopes.level[p] -= samples.level[p] == 0 && samples.fraction[p] > 0 ? dot[p] : A(0);
  }
}

// Adds what comes through the pyramid, for four channels whose gradients stand side by side.
template <typename A>
GGF_INLINE void add_pyramid_slopes(const A* texels, const Samples<A>& samples, const Taps<A>& lower, const Taps<A>& upper,
                                   int64_t count, const A (&grad)[block][4], Slopes<A>& slopes) {
  alignas(64) A by_x[block][4], by_y[block][4], by_level[block][4];
  for (int64_t p = 0; p < count; ++p) {
    const Vec4<A> g = read<Vec4<A>>(grad[p]);
    Sampled<A> result{};
    Vec4<A> level{};
    if (samples.level[p] > 0) {
      result = sample<true>(texels, lower, p);
      level -= result.value;
      result.by_x *= 1 - samples.fraction[p];
      result.by_y *= 1 - samples.fraction[p];
    }
    if (samples.fraction[p] > 0) {
      const Sampled<A> coarse = sample<true>(texels, upper, p);
      level += coarse.value;
      result.by_x += samples.fraction[p] * coarse.by_x;
      result.by_y += samples.fraction[p] * coarse.by_y;
    }
    const Vec4<A> x = g * result.by_x, y = g * result.by_y, z = g * level;
    __builtin_memcpy(by_x[p], &x, sizeof(x));
    __builtin_memcpy(by_y[p], &y, sizeof(y));
    __builtin_memcpy(by_level[p], &z, sizeof(z));
  }
  for (int64_t p = 0; p < count; ++p) {
    slopes.x[p] += (by_x[p][0] + by_x[p][1]) + (by_x[p][2] + by_x[p][3]);
    slopes.y[p] += (by_y[p][0] + by_y[p][1]) + (by_y[p][2] + by_y[p][3]);
    const A level = (by_level[p][0] + by_level[p][1]) + (by_level[p][2] + by_level[p][3]);
    slopes.level[p] += samples.fraction[p] > 0 ? level : A(0);
  }
}

// Puts the gradients of up to four channels side by side; 0 where there is no channel, and for points that are not finite.
template <typename A>
GGF_INLINE void interleave_gradient(const A* grad, int64_t plane, int64_t channels, const Samples<A>& samples, int64_t count,
                                    A (&result)[block][4]) {
  for (int64_t c = 0; c < 4; ++c) {
    const A* GGF_RESTRICT g = grad + std::min(c, channels - 1) * plane;
    const A used = c < channels ? A(1) : A(0);
    for (int64_t p = 0; p < count; ++p) result[p][c] = samples.finite[p] * used > 0 ? g[p] : A(0);
  }
}

template <typename A>
GGF_INLINE void scatter_to_pyramid(const Samples<A>& samples, const Taps<A>& lower, const Taps<A>& upper, int64_t count,
                                   const A (&grad)[block][4], A* texels) {
  for (int64_t p = 0; p < count; ++p) {
    const Vec4<A> g = read<Vec4<A>>(grad[p]);
    if (samples.level[p] > 0) scatter(texels, lower, p, (1 - samples.fraction[p]) * g);
    if (samples.fraction[p] > 0) scatter(texels, upper, p, samples.fraction[p] * g);
  }
}

// grad, planes: those of the sample. `image`: the problem of sampling a contiguous image, such as the gradient.
template <typename A>
GGF_INLINE void scatter_to_image(const grid_sample::Problem<A>& image, const Samples<A>& samples,
                                 const grid_sample::Points<A>& points, int64_t count, const A* grad, A* planes) {
  A weight[4][grid_sample::block], share[block];
  grid_sample::multiply_weights(points, count, weight);
  for (int64_t c = 0; c < image.channels; ++c) {
    const A* GGF_RESTRICT g = grad + c * image.points;
    for (int64_t p = 0; p < count; ++p) {
      const A fine = samples.level[p] == 0 ? (1 - samples.fraction[p]) * g[p] : A(0);
      share[p] = samples.finite[p] > 0 ? fine : A(0);
    }
    grid_sample::scatter_channel(image, weight, points, count, share, planes + c * image.height * image.width);
  }
}

// level = log2(squared) / 2 below the largest level; there is no slope at a whole level, nor where it is capped. Returns
// whether any derivative by the squared distance is not 0.
template <typename A>
GGF_INLINE bool finish_slopes(const Problem<A>& problem, const Samples<A>& samples, int64_t count, const Slopes<A>& slopes,
                              A* GGF_RESTRICT grad_grid, A* GGF_RESTRICT by_square) {
  const A factor = static_cast<A>(0.5 / 0.69314718055994530942);
  int32_t active = 0;
  for (int64_t p = 0; p < count; ++p) {
    const bool finite = samples.finite[p] > 0;
    const A slope = slopes.level[p] * factor / samples.squared[p];
    const A uncapped = samples.uncapped[p] <= problem.largest ? slope : A(0);
    const A result = finite ? uncapped : A(0);
    by_square[p] = result;
    active |= result == 0 ? 0 : 1;
    grad_grid[2 * p] = finite ? slopes.x[p] : A(0);
    grad_grid[2 * p + 1] = finite ? slopes.y[p] : A(0);
  }
  return active != 0;
}

// Where the results of a backward pass go; null what is not wanted.
template <typename A>
struct Gradients {
  A* grid;       // [N, rows, columns, 2], without what comes through the level
  A* by_square;  // [N, rows, columns]: the derivative by the squared distance
  char* active;  // [N, rows]: whether a row of it holds anything but 0
  A* pyramid;    // of one sample
  A* planes;     // [N, C, H, W]
};

// grad: [N, C, rows, columns]
template <Layout layout, typename A>
void backward_block(const Problem<A>& problem, const grid_sample::Problem<A>& contiguous, const Pyramid<A>& pyramid,
                    const A* texels, const A* squared, const A* grad, const Gradients<A>& gradients, const Run& run) {
  const int64_t plane = problem.image.points, channels = problem.image.channels, count = run.count;
  const int64_t point = run.sample * plane + run.point;
  grad += run.sample * channels * plane + run.point;
  Samples<A> samples;
  Taps<A> lower, upper;
  grid_sample::Points<A> points;
  Slopes<A> slopes;
  locate_block(problem, point, squared, count, samples);
  find_taps<true>(problem, pyramid, samples, count, lower, upper);
  if (samples.on_image() && gradients.grid) {
    grid_sample::find_points<true>(problem.image, run.sample, run.point, count, A(0), points);
    at_level<add_image_slopes<layout, A>>(problem, problem.image.x + run.sample * problem.image.sample_stride, samples, points,
                                          count, grad, slopes);
  }
  for (int64_t c = 0; c < channels && samples.on_pyramid(); c += 4) {
    alignas(64) A side_by_side[block][4];
    at_level<interleave_gradient<A>>(grad + c * plane, plane, std::min<int64_t>(4, channels - c), samples, count, side_by_side);
    if (gradients.grid)
      at_level<add_pyramid_slopes<A>>(texels + c * pyramid.texels, samples, lower, upper, count, side_by_side, slopes);
    if (gradients.pyramid)
      at_level<scatter_to_pyramid<A>>(samples, lower, upper, count, side_by_side, gradients.pyramid + c * pyramid.texels);
  }
  if (samples.on_image() && gradients.planes) {
    // The points are there already, unless the image lies otherwise in memory than its gradient.
    const bool found = gradients.grid && contiguous.row_stride == problem.image.row_stride &&
                       contiguous.column_stride == problem.image.column_stride;
    if (!found) grid_sample::find_points<false>(contiguous, run.sample, run.point, count, A(0), points);
    at_level<scatter_to_image<A>>(contiguous, samples, points, count, grad,
                                  gradients.planes + run.sample * channels * contiguous.height * contiguous.width);
  }
  if (gradients.grid &&
      at_level<finish_slopes<A>>(problem, samples, count, slopes, gradients.grid + 2 * point, gradients.by_square + point))
    gradients.active[point / problem.columns] = 1;
}

}  // namespace ggf::mipmap_warp
