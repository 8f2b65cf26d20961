// SPDX-License-Identifier: Apache-2.0
// Bilinear sampling at grid points. Maths: gangealing_fast/ops/grid_sample.py.
//
// For a block of grid points the four offsets and weights are worked out once, in loops that vectorise, and then used
// for every channel. Half-precision tensors are converted before and after. The image's gradient is scattered plane by
// plane, each plane by one thread in the order of the grid, so that the result does not depend on the number of
// threads.
#include "../sampling.h"

#include <algorithm>
#include <limits>
#include <tuple>

namespace ggf::grid_sample {

inline constexpr int64_t block = 128;  // grid points handled together

// What a block of points reads: value = sum_k weight[k] * texel[offset[k]], and likewise its derivatives by the grid's
// x, y.
template <typename A>
struct Taps {
  int32_t offset[4][block];
  A weight[4][block], by_x[4][block], by_y[4][block];
};

template <typename A>
struct Problem {
  const A* x;     // [N, C, H, W]
  const A* grid;  // [N, points, 2]
  int64_t channels, height, width, points;
  int64_t padding;
  bool align_corners;
};

template <typename A>
GGF_INLINE A clamp(A value, A last) {
  const A lifted = value > 0 ? value : A(0);
  return lifted < last ? lifted : last;
}

template <Padding padding, bool derivatives, typename A>
GGF_INLINE void find_taps(const Problem<A>& problem, const A* GGF_RESTRICT grid, int64_t count, A broken,
                          Taps<A>& taps) {
  const Axis<A> horizontal = axis_of<A>(problem.width, problem.align_corners);
  const Axis<A> vertical = axis_of<A>(problem.height, problem.align_corners);
  const A last_column = horizontal.size - 1, last_row = vertical.size - 1;
  const int32_t width = static_cast<int32_t>(problem.width);
  for (int64_t p = 0; p < count; ++p) {
    const Position<A> x = locate<padding>(grid[2 * p], horizontal);
    const Position<A> y = locate<padding>(grid[2 * p + 1], vertical);
    const A finite = x.finite * y.finite;
    // A texel outside the image counts as 0: it is read at the nearest place inside, with weight 0.
    const A left = clamp(x.low, last_column), right = clamp(x.low + 1, last_column);
    const A top = clamp(y.low, last_row), bottom = clamp(y.low + 1, last_row);
    const A in_left = left == x.low ? finite : A(0), in_right = right == x.low + 1 ? finite : A(0);
    const A in_top = top == y.low ? A(1) : A(0), in_bottom = bottom == y.low + 1 ? A(1) : A(0);
    const A weight_left = in_left * (1 - x.part), weight_right = in_right * x.part;
    const A weight_top = in_top * (1 - y.part), weight_bottom = in_bottom * y.part;
    const int32_t first = static_cast<int32_t>(left), second = static_cast<int32_t>(right);
    const int32_t upper = static_cast<int32_t>(top) * width, lower = static_cast<int32_t>(bottom) * width;
    taps.offset[0][p] = upper + first;
    taps.offset[1][p] = upper + second;
    taps.offset[2][p] = lower + first;
    taps.offset[3][p] = lower + second;
    taps.weight[0][p] = finite > 0 ? weight_top * weight_left : broken;
    taps.weight[1][p] = weight_top * weight_right;
    taps.weight[2][p] = weight_bottom * weight_left;
    taps.weight[3][p] = weight_bottom * weight_right;
    if constexpr (derivatives) {
      taps.by_x[0][p] = -weight_top * in_left * x.slope;
      taps.by_x[1][p] = weight_top * in_right * x.slope;
      taps.by_x[2][p] = -weight_bottom * in_left * x.slope;
      taps.by_x[3][p] = weight_bottom * in_right * x.slope;
      taps.by_y[0][p] = -in_top * weight_left * y.slope;
      taps.by_y[1][p] = -in_top * weight_right * y.slope;
      taps.by_y[2][p] = in_bottom * weight_left * y.slope;
      taps.by_y[3][p] = in_bottom * weight_right * y.slope;
    }
  }
}

template <bool derivatives, typename A>
GGF_INLINE void find_taps(const Problem<A>& problem, int64_t point, int64_t count, A broken, Taps<A>& taps) {
  const A* grid = problem.grid + 2 * point;
  if (problem.padding == zeros) find_taps<zeros, derivatives>(problem, grid, count, broken, taps);
  if (problem.padding == border) find_taps<border, derivatives>(problem, grid, count, broken, taps);
  if (problem.padding == reflection) find_taps<reflection, derivatives>(problem, grid, count, broken, taps);
}

// output: [N, C, points]; points [begin, end) of one sample
template <typename A>
GGF_MULTIVERSION void forward_block(const Problem<A>& problem, A* output, int64_t sample, int64_t begin, int64_t end) {
  const int64_t count = end - begin, plane = problem.height * problem.width;
  Taps<A> taps;
  find_taps<false>(problem, sample * problem.points + begin, count, std::numeric_limits<A>::quiet_NaN(), taps);
  for (int64_t c = 0; c < problem.channels; ++c) {
    const A* GGF_RESTRICT x = problem.x + (sample * problem.channels + c) * plane;
    A value[block];
    for (int64_t p = 0; p < count; ++p)
      value[p] = taps.weight[0][p] * x[taps.offset[0][p]] + taps.weight[1][p] * x[taps.offset[1][p]] +
                  taps.weight[2][p] * x[taps.offset[2][p]] + taps.weight[3][p] * x[taps.offset[3][p]];
    std::copy_n(value, count, output + (sample * problem.channels + c) * problem.points + begin);
  }
}

// grad: [N, C, points]; grad_grid: [N, points, 2]
template <typename A>
GGF_MULTIVERSION void grid_block(const Problem<A>& problem, const A* grad, A* grad_grid, int64_t sample, int64_t begin,
                                 int64_t end) {
  const int64_t count = end - begin, plane = problem.height * problem.width;
  Taps<A> taps;
  find_taps<true>(problem, sample * problem.points + begin, count, A(0), taps);
  A by_x[block], by_y[block];
  for (int64_t p = 0; p < count; ++p) by_x[p] = by_y[p] = 0;
  for (int64_t c = 0; c < problem.channels; ++c) {
    const A* GGF_RESTRICT x = problem.x + (sample * problem.channels + c) * plane;
    const A* GGF_RESTRICT g = grad + (sample * problem.channels + c) * problem.points + begin;
    for (int64_t p = 0; p < count; ++p) {
      const A t0 = x[taps.offset[0][p]], t1 = x[taps.offset[1][p]];
      const A t2 = x[taps.offset[2][p]], t3 = x[taps.offset[3][p]];
      by_x[p] += g[p] * (taps.by_x[0][p] * t0 + taps.by_x[1][p] * t1 + taps.by_x[2][p] * t2 + taps.by_x[3][p] * t3);
      by_y[p] += g[p] * (taps.by_y[0][p] * t0 + taps.by_y[1][p] * t1 + taps.by_y[2][p] * t2 + taps.by_y[3][p] * t3);
    }
  }
  A* GGF_RESTRICT result = grad_grid + 2 * (sample * problem.points + begin);
  for (int64_t p = 0; p < count; ++p) {
    result[2 * p] = by_x[p];
    result[2 * p + 1] = by_y[p];
  }
}

// The gradient of planes [begin, end) of the image, counted over all samples; grad_x is 0 before.
template <typename A>
GGF_MULTIVERSION void image_planes(const Problem<A>& problem, const A* grad, A* grad_x, int64_t begin, int64_t end) {
  const int64_t plane = problem.height * problem.width;
  Taps<A> taps;
  // Planes of one sample share their taps: the points are the outer loop.
  while (begin < end) {
    const int64_t sample = begin / problem.channels, last = std::min(end, (sample + 1) * problem.channels);
    for (int64_t first = 0; first < problem.points; first += block) {
      const int64_t count = std::min(block, problem.points - first);
      find_taps<false>(problem, sample * problem.points + first, count, A(0), taps);
      for (int64_t item = begin; item < last; ++item) {
        const A* GGF_RESTRICT g = grad + item * problem.points + first;
        A* result = grad_x + item * plane;
        for (int64_t p = 0; p < count; ++p) {
          const A value = g[p];
          result[taps.offset[0][p]] += taps.weight[0][p] * value;
          result[taps.offset[1][p]] += taps.weight[1][p] * value;
          result[taps.offset[2][p]] += taps.weight[2][p] * value;
          result[taps.offset[3][p]] += taps.weight[3][p] * value;
        }
      }
    }
    begin = last;
  }
}

void check(const Tensor& x, const Tensor& grid, int64_t padding) {
  STD_TORCH_CHECK(padding >= zeros && padding <= reflection, "grid_sample: padding mode must be 0, 1 or 2");
  STD_TORCH_CHECK(x.dim() == 4 && grid.dim() == 4 && grid.size(3) == 2 && x.size(0) == grid.size(0) && x.size(2) > 0 &&
                      x.size(3) > 0,
                  "grid_sample: x must be [N, C, H, W] and grid [N, h, w, 2]");
  STD_TORCH_CHECK(x.size(2) <= INT32_MAX / x.size(3) && x.size(2) < (1 << 24) && x.size(3) < (1 << 24),
                  "grid_sample: a plane of x must have fewer than 2^31 texels, an axis fewer than 2^24");
}

template <typename A>
Problem<A> problem_of(const Tensor& x, const Tensor& grid, int64_t padding, bool align_corners) {
  return {x.const_data_ptr<A>(), grid.const_data_ptr<A>(), x.size(1), x.size(2), x.size(3),
          grid.size(1) * grid.size(2), padding, align_corners};
}

template <typename Body>
void for_each_block(int64_t batch, int64_t points, int64_t channels, const Body& body) {
  const int64_t blocks = ceil_divide(points, block);
  parallel_for(0, batch * blocks, grain(4 * channels * block), [&](int64_t first, int64_t last) {
    for (int64_t item = first; item < last; ++item)
      body(item / blocks, item % blocks * block, std::min(points, (item % blocks + 1) * block));
  });
}

template <typename A>
Tensor forward_as(const Tensor& x_, const Tensor& grid_, int64_t padding, bool align_corners) {
  const Tensor x = converted(x_, compute_scalar_type<A>), grid = converted(grid_, compute_scalar_type<A>);
  const Tensor output = empty({x.size(0), x.size(1), grid.size(1), grid.size(2)}, compute_scalar_type<A>);
  if (output.numel() == 0) return output;
  const Problem<A> problem = problem_of<A>(x, grid, padding, align_corners);
  A* data = output.mutable_data_ptr<A>();
  for_each_block(x.size(0), problem.points, problem.channels, [&](int64_t sample, int64_t begin, int64_t end) {
    forward_block<A>(problem, data, sample, begin, end);
  });
  return output;
}

Tensor forward(const Tensor& x, const Tensor& grid, int64_t padding, bool align_corners) {
  check(x, grid, padding);
  const Tensor output = widest(x, grid) == ScalarType::Double ? forward_as<double>(x, grid, padding, align_corners)
                                                              : forward_as<float>(x, grid, padding, align_corners);
  return in_type(output, x.scalar_type());
}

template <typename A>
std::tuple<Tensor, Tensor> backward_as(const Tensor& grad_, const Tensor& x_, const Tensor& grid_, int64_t padding,
                                       bool align_corners, bool need_x, bool need_grid) {
  const Tensor x = converted(x_, compute_scalar_type<A>), grid = converted(grid_, compute_scalar_type<A>);
  const Tensor grad = converted(grad_, compute_scalar_type<A>);
  const Tensor grad_x = empty(need_x ? sizes_of(x) : std::vector<int64_t>{0}, compute_scalar_type<A>);
  const Tensor grad_grid = empty(need_grid ? sizes_of(grid) : std::vector<int64_t>{0}, compute_scalar_type<A>);
  const Problem<A> problem = problem_of<A>(x, grid, padding, align_corners);
  const int64_t batch = x.size(0), planes = batch * problem.channels;
  const A* grad_data = grad.const_data_ptr<A>();
  if (grad_x.numel() > 0) {
    A* data = grad_x.mutable_data_ptr<A>();
    std::fill_n(data, grad_x.numel(), A(0));
    parallel_for(0, planes, grain(4 * problem.points),
                 [&](int64_t begin, int64_t end) { image_planes<A>(problem, grad_data, data, begin, end); });
  }
  if (grad_grid.numel() > 0) {
    A* data = grad_grid.mutable_data_ptr<A>();
    for_each_block(batch, problem.points, problem.channels, [&](int64_t sample, int64_t begin, int64_t end) {
      grid_block<A>(problem, grad_data, data, sample, begin, end);
    });
  }
  return {grad_x, grad_grid};
}

std::tuple<Tensor, Tensor> backward(const Tensor& grad, const Tensor& x, const Tensor& grid, int64_t padding,
                                    bool align_corners, bool need_x, bool need_grid) {
  check(x, grid, padding);
  STD_TORCH_CHECK(grad.dim() == 4 && grad.size(0) == x.size(0) && grad.size(1) == x.size(1) &&
                      grad.size(2) == grid.size(1) && grad.size(3) == grid.size(2),
                  "grid_sample_backward: grad does not fit x and grid");
  const auto [grad_x, grad_grid] =
      widest(x, grid) == ScalarType::Double
          ? backward_as<double>(grad, x, grid, padding, align_corners, need_x, need_grid)
          : backward_as<float>(grad, x, grid, padding, align_corners, need_x, need_grid);
  return {in_type(grad_x, x.scalar_type()), in_type(grad_grid, grid.scalar_type())};
}

}  // namespace ggf::grid_sample

STABLE_TORCH_LIBRARY_IMPL(gangealing_fast, CPU, m) {
  m.impl("grid_sample", TORCH_BOX(&ggf::grid_sample::forward));
  m.impl("grid_sample_backward", TORCH_BOX(&ggf::grid_sample::backward));
}
