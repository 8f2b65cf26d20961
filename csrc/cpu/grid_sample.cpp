// SPDX-License-Identifier: Apache-2.0
// Bilinear sampling at grid points. Maths: gangealing_fast/ops/grid_sample.py.
//
// For a block of grid points offsets and weights are worked out once, in loops that vectorise, and then used for every
// channel. The image is read where it lies, whatever its strides. Half-precision tensors are converted before and after.
// The image's gradient is scattered plane by plane, each plane by one thread in the order of the grid, so that the result
// does not depend on the number of threads.
#include "levels.h"
#include "grid_points.h"

#include <algorithm>
#include <limits>
#include <tuple>

namespace ggf::grid_sample {

// A run of grid points of one sample.
struct Run {
  int64_t sample, begin, count;
};

// output: [N, C, points]
template <Layout layout, typename A>
GGF_INLINE void forward_channels(const Problem<A>& problem, const Run& run, const Points<A>& points, A* output) {
  const A* x = problem.x + run.sample * problem.sample_stride;
  Rows<A> rows;
  for (int64_t c = 0; c < problem.channels; ++c) {
    A* GGF_RESTRICT out = output + (run.sample * problem.channels + c) * problem.points + run.begin;
    sample_channel<layout>(problem, x, c, points, run.count, rows, [&](int64_t p, A value) GGF_INLINE_LAMBDA { out[p] = value; });
  }
}

// grad: [N, C, points]; grad_grid: [N, points, 2]
template <Layout layout, typename A>
GGF_INLINE void grid_channels(const Problem<A>& problem, const Run& run, const Points<A>& points, const A* grad,
                              A* GGF_RESTRICT grad_grid) {
  const A* x = problem.x + run.sample * problem.sample_stride;
  Rows<A> rows;
  A by_x[block], by_y[block];
  for (int64_t p = 0; p < run.count; ++p) by_x[p] = by_y[p] = 0;
  for (int64_t c = 0; c < problem.channels; ++c) {
    const A* GGF_RESTRICT g = grad + (run.sample * problem.channels + c) * problem.points + run.begin;
    prefetch(g + run.count, block);
    differentiate_channel<layout>(problem, x, c, points, run.count, rows,
                                  [&](int64_t p, A, A slope_x, A slope_y) GGF_INLINE_LAMBDA {
                                    by_x[p] += g[p] * slope_x;
                                    by_y[p] += g[p] * slope_y;
                                  });
  }
  for (int64_t p = 0; p < run.count; ++p) {
    grad_grid[2 * p] = points.finite[p] > 0 ? by_x[p] : A(0);
    grad_grid[2 * p + 1] = points.finite[p] > 0 ? by_y[p] : A(0);
  }
}

inline constexpr int64_t lanes = 16;  // adjacent channels handled together
inline constexpr int64_t few = 64;    // points handled together with that many channels

// As forward_channels, for adjacent channels: vectors of channels instead of vectors of points. Points [begin, end) of the
// block, at most `few`.
template <typename A>
GGF_INLINE void forward_vectors(const Problem<A>& problem, const Run& run, const Points<A>& points, int64_t begin, int64_t end,
                                A* output) {
  const int64_t across = step_across(problem), down = step_down(problem);
  A values[few][lanes];
  for (int64_t c = 0; c < problem.channels; c += lanes) {
    const int64_t width = std::min(lanes, problem.channels - c);
    const A* x = problem.x + run.sample * problem.sample_stride + c;
    for (int64_t p = begin; p < end; ++p) {
      const A* GGF_RESTRICT top = x + points.offset[p];
      const A* GGF_RESTRICT bottom = top + down;
      const A x0 = points.x.first[p], x1 = points.x.second[p], y0 = points.y.first[p], y1 = points.y.second[p];
      const auto value = [&](int64_t k) GGF_INLINE_LAMBDA {
        return y0 * (x0 * top[k] + x1 * top[k + across]) + y1 * (x0 * bottom[k] + x1 * bottom[k + across]);
      };
      if (width == lanes)
        for (int64_t k = 0; k < lanes; ++k) values[p - begin][k] = value(k);
      else
        for (int64_t k = 0; k < width; ++k) values[p - begin][k] = value(k);
    }
    for (int64_t k = 0; k < width; ++k) {
      A* GGF_RESTRICT out = output + (run.sample * problem.channels + c + k) * problem.points + run.begin;
      for (int64_t p = begin; p < end; ++p) out[p] = values[p - begin][k];
    }
  }
}

// As grid_channels, likewise.
template <typename A>
GGF_INLINE void grid_vectors(const Problem<A>& problem, const Run& run, const Points<A>& points, int64_t begin, int64_t end,
                             const A* grad, A* GGF_RESTRICT grad_grid) {
  const int64_t across = step_across(problem), down = step_down(problem);
  A gradient[few][lanes], by_x[few][lanes], by_y[few][lanes];
  for (int64_t p = begin; p < end; ++p)
    for (int64_t k = 0; k < lanes; ++k) by_x[p - begin][k] = by_y[p - begin][k] = 0;
  for (int64_t c = 0; c < problem.channels; c += lanes) {
    const int64_t width = std::min(lanes, problem.channels - c);
    for (int64_t k = 0; k < width; ++k) {
      const A* GGF_RESTRICT g = grad + (run.sample * problem.channels + c + k) * problem.points + run.begin;
      prefetch(g + end, few);
      for (int64_t p = begin; p < end; ++p) gradient[p - begin][k] = g[p];
    }
    const A* x = problem.x + run.sample * problem.sample_stride + c;
    for (int64_t p = begin; p < end; ++p) {
      const A* GGF_RESTRICT top = x + points.offset[p];
      const A* GGF_RESTRICT bottom = top + down;
      const A x0 = points.x.first[p], x1 = points.x.second[p], y0 = points.y.first[p], y1 = points.y.second[p];
      const A dx0 = points.x.slope_first[p], dx1 = points.x.slope_second[p];
      const A dy0 = points.y.slope_first[p], dy1 = points.y.slope_second[p];
      const auto add = [&](int64_t k) GGF_INLINE_LAMBDA {
        const A t0 = top[k], t1 = top[k + across], b0 = bottom[k], b1 = bottom[k + across];
        by_x[p - begin][k] += gradient[p - begin][k] * (y0 * (dx0 * t0 + dx1 * t1) + y1 * (dx0 * b0 + dx1 * b1));
        by_y[p - begin][k] += gradient[p - begin][k] * (dy0 * (x0 * t0 + x1 * t1) + dy1 * (x0 * b0 + x1 * b1));
      };
      if (width == lanes)
        for (int64_t k = 0; k < lanes; ++k) add(k);
      else
        for (int64_t k = 0; k < width; ++k) add(k);
    }
  }
  for (int64_t p = begin; p < end; ++p) {
    for (int64_t half = lanes / 2; half > 0; half /= 2)
      for (int64_t k = 0; k < half; ++k) {
        by_x[p - begin][k] += by_x[p - begin][k + half];
        by_y[p - begin][k] += by_y[p - begin][k + half];
      }
    grad_grid[2 * p] = points.finite[p] > 0 ? by_x[p - begin][0] : A(0);
    grad_grid[2 * p + 1] = points.finite[p] > 0 ? by_y[p - begin][0] : A(0);
  }
}

// Adds a run's gradient to planes [begin, end) of the image's gradient, counted over all samples; grad: [N, C, points]
template <typename A>
GGF_INLINE void scatter(const Problem<A>& problem, const Run& run, const Points<A>& points, const A* grad, A* grad_x, int64_t begin,
                        int64_t end) {
  A weight[4][block];
  multiply_weights(points, run.count, weight);
  for (int64_t item = begin; item < end; ++item)
    scatter_channel(problem, weight, points, run.count, grad + item * problem.points + run.begin,
                    grad_x + item * problem.height * problem.width);
}

// As forward_channels, for few channels whose neighbours of a row are adjacent: nothing is kept between a point and its texels.
// out: the first channel's results, which those of the others follow at a distance of `points`
template <Padding padding, int64_t channels, typename A>
GGF_INLINE void forward_at_once(const Problem<A>& problem, const A* GGF_RESTRICT grid, const A* GGF_RESTRICT x, int64_t count,
                                A broken, A* GGF_RESTRICT out) {
  const Axis<A> horizontal = problem.horizontal, vertical = problem.vertical;
  const bool high = problem.height > 1;
  const A last_x = horizontal.size - 2, last_y = high ? vertical.size - 2 : A(0);
  const A second_y = high ? A(1) : A(0);
  const int32_t row = static_cast<int32_t>(problem.row_stride);
  const int64_t down = step_down(problem), plane = problem.channel_stride, points = problem.points;
  for (int64_t p = 0; p < count; ++p) {
    const Position<A> at_x = locate<padding>(grid[2 * p], horizontal);
    const Position<A> at_y = locate<padding>(grid[2 * p + 1], vertical);
    const Pair<A> across = inner_pair<padding>(at_x, last_x, A(1)), below = inner_pair<padding>(at_y, last_y, second_y);
    const A finite = at_x.finite * at_y.finite;
    const A y0 = finite > 0 ? below.weight_first : broken, y1 = finite > 0 ? below.weight_second : broken;
    int32_t offset = static_cast<int32_t>(below.first) * row + static_cast<int32_t>(across.first);
    // This keeps the loop from vectorising: with AVX2 several channels are read faster number by number than by gathers.
    if constexpr (channels > 1) asm("" : "+r"(offset));
    for (int64_t c = 0; c < channels; ++c) {
      const A* upper = x + c * plane;
      const A* lower = upper + down;
      const A above = across.weight_first * upper[offset] + across.weight_second * (upper + 1)[offset];
      const A beneath = across.weight_first * lower[offset] + across.weight_second * (lower + 1)[offset];
      out[c * points + p] = y0 * above + y1 * beneath;
    }
  }
}

template <int64_t channels, typename A>
void forward_few(const Problem<A>& problem, const Run& run, A* output) {
  const A* grid = problem.grid + 2 * (run.sample * problem.points + run.begin);
  const A* x = problem.x + run.sample * problem.sample_stride;
  A* out = output + run.sample * channels * problem.points + run.begin;
  const A broken = std::numeric_limits<A>::quiet_NaN();
  if (problem.padding == zeros) at_level<forward_at_once<zeros, channels, A>>(problem, grid, x, run.count, broken, out);
  if (problem.padding == border) at_level<forward_at_once<border, channels, A>>(problem, grid, x, run.count, broken, out);
  if (problem.padding == reflection) at_level<forward_at_once<reflection, channels, A>>(problem, grid, x, run.count, broken, out);
}

void check(const Tensor& x, const Tensor& grid, int64_t padding) {
  STD_TORCH_CHECK(padding >= zeros && padding <= reflection, "grid_sample: padding mode must be 0, 1 or 2");
  STD_TORCH_CHECK(
      x.dim() == 4 && grid.dim() == 4 && grid.size(3) == 2 && x.size(0) == grid.size(0) && x.size(2) > 0 && x.size(3) > 0,
      "grid_sample: x must be [N, C, H, W] and grid [N, h, w, 2]");
  STD_TORCH_CHECK(x.size(2) <= INT32_MAX / x.size(3) && x.size(2) < (1 << 24) && x.size(3) < (1 << 24),
                  "grid_sample: a plane of x must have fewer than 2^31 texels, an axis fewer than 2^24");
}

template <typename A, typename Body>
void for_each_run(const Problem<A>& problem, int64_t batch, const Body& body) {
  const int64_t blocks = ceil_divide(problem.points, block);
  parallel_for(0, batch * blocks, grain(4 * problem.channels * block), [&](int64_t first, int64_t last) {
    for (int64_t item = first; item < last; ++item) {
      const int64_t begin = item % blocks * block;
      body(Run{item / blocks, begin, std::min(block, problem.points - begin)});
    }
  });
}

template <typename A>
Tensor forward_as(const Tensor& x_, const Tensor& grid_, int64_t padding, bool align_corners) {
  const Tensor x = readable<A>(x_), grid = converted(grid_, compute_scalar_type<A>);
  const Tensor output = empty({x.size(0), x.size(1), grid.size(1), grid.size(2)}, compute_scalar_type<A>);
  if (output.numel() == 0) return output;
  const Problem<A> problem = problem_of<A>(x, grid, padding, align_corners);
  const Layout layout = layout_of(problem);
  A* data = output.mutable_data_ptr<A>();
  const bool one = layout == Layout::rows && problem.channels == 1;
  // AVX-512 gathers fast enough.
  const bool three = layout == Layout::rows && problem.channels == 3 && level_in_use.load() != Level::avx512;
  for_each_run(problem, x.size(0), [&](const Run& run) {
    if (one) return forward_few<1>(problem, run, data);
    if (three) return forward_few<3>(problem, run, data);
    Points<A> points;
    find_points<false>(problem, run.sample, run.begin, run.count, std::numeric_limits<A>::quiet_NaN(), points);
    if (layout == Layout::rows) at_level<forward_channels<Layout::rows, A>>(problem, run, points, data);
    if (layout == Layout::triples) at_level<forward_channels<Layout::triples, A>>(problem, run, points, data);
    if (layout == Layout::strided) at_level<forward_channels<Layout::strided, A>>(problem, run, points, data);
    for (int64_t p = 0; p < run.count && layout == Layout::vectors; p += few)
      at_level<forward_vectors<A>>(problem, run, points, p, std::min(p + few, run.count), data);
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
void image_gradient(const Problem<A>& problem, int64_t batch, const A* grad, A* grad_x) {
  parallel_for(0, batch * problem.channels, grain(4 * problem.points), [&](int64_t begin, int64_t end) {
    Points<A> points;
    // Planes of one sample share their points: these are the outer loop.
    while (begin < end) {
      const int64_t sample = begin / problem.channels, last = std::min(end, (sample + 1) * problem.channels);
      for (int64_t first = 0; first < problem.points; first += block) {
        const Run run{sample, first, std::min(block, problem.points - first)};
        find_points<false>(problem, sample, first, run.count, A(0), points);
        at_level<scatter<A>>(problem, run, points, grad, grad_x, begin, last);
      }
      begin = last;
    }
  });
}

template <typename A>
void grid_gradient(const Problem<A>& problem, int64_t batch, const A* grad, A* grad_grid) {
  const Layout layout = layout_of(problem);
  for_each_run(problem, batch, [&](const Run& run) {
    Points<A> points;
    find_points<true>(problem, run.sample, run.begin, run.count, A(0), points);
    A* result = grad_grid + 2 * (run.sample * problem.points + run.begin);
    if (layout == Layout::rows) at_level<grid_channels<Layout::rows, A>>(problem, run, points, grad, result);
    if (layout == Layout::triples) at_level<grid_channels<Layout::triples, A>>(problem, run, points, grad, result);
    if (layout == Layout::strided) at_level<grid_channels<Layout::strided, A>>(problem, run, points, grad, result);
    for (int64_t p = 0; p < run.count && layout == Layout::vectors; p += few)
      at_level<grid_vectors<A>>(problem, run, points, p, std::min(p + few, run.count), grad, result);
  });
}

// Grid points of a sample up to which both gradients are taken together: what this saves is little beside larger planes, which
// stay in the caches better one after the other.
inline constexpr int64_t few_points = 64 * 64;

// Both gradients, of images that lie in memory as their gradients do: the points serve twice.
template <typename A>
void both_gradients(const Problem<A>& problem, int64_t batch, const A* grad, A* grad_x, A* grad_grid) {
  parallel_for(0, batch, grain(8 * problem.channels * problem.points), [&](int64_t begin, int64_t end) {
    Points<A> points;
    for (int64_t sample = begin; sample < end; ++sample)
      for (int64_t first = 0; first < problem.points; first += block) {
        const Run run{sample, first, std::min(block, problem.points - first)};
        find_points<true>(problem, sample, first, run.count, A(0), points);
        at_level<grid_channels<Layout::rows, A>>(problem, run, points, grad, grad_grid + 2 * (sample * problem.points + first));
        at_level<scatter<A>>(problem, run, points, grad, grad_x, sample * problem.channels, (sample + 1) * problem.channels);
      }
  });
}

template <typename A>
std::tuple<Tensor, Tensor> backward_as(const Tensor& grad_, const Tensor& x_, const Tensor& grid_, int64_t padding,
                                       bool align_corners, bool need_x, bool need_grid) {
  const Tensor grad = converted(grad_, compute_scalar_type<A>), grid = converted(grid_, compute_scalar_type<A>);
  const Tensor grad_x = empty(need_x ? sizes_of(x_) : std::vector<int64_t>{0}, compute_scalar_type<A>);
  const Tensor grad_grid = empty(need_grid ? sizes_of(grid) : std::vector<int64_t>{0}, compute_scalar_type<A>);
  const A* grad_data = grad.const_data_ptr<A>();
  if (grad_x.numel() > 0) std::fill_n(grad_x.mutable_data_ptr<A>(), grad_x.numel(), A(0));
  // A sample for every thread: with fewer, its planes are shared out.
  const bool small = grid.size(1) * grid.size(2) <= few_points && x_.size(0) >= torch::stable::get_num_threads();
  if (small && grad_x.numel() > 0 && grad_grid.numel() > 0 && x_.is_contiguous()) {
    const Tensor x = readable<A>(x_);
    const Problem<A> problem = problem_of<A>(x, grid, padding, align_corners);
    if (layout_of(problem) == Layout::rows) {
      both_gradients(problem, x.size(0), grad_data, grad_x.mutable_data_ptr<A>(), grad_grid.mutable_data_ptr<A>());
      return {grad_x, grad_grid};
    }
  }
  if (grad_x.numel() > 0) {
    A* data = grad_x.mutable_data_ptr<A>();
    // Of the image the shape alone matters: offsets are those of the gradient.
    image_gradient(problem_of<A>(grad_x, grid, padding, align_corners), x_.size(0), grad_data, data);
  }
  if (grad_grid.numel() > 0) {
    const Tensor x = readable<A>(x_);
    grid_gradient(problem_of<A>(x, grid, padding, align_corners), x.size(0), grad_data, grad_grid.mutable_data_ptr<A>());
  }
  return {grad_x, grad_grid};
}

std::tuple<Tensor, Tensor> backward(const Tensor& grad, const Tensor& x, const Tensor& grid, int64_t padding, bool align_corners,
                                    bool need_x, bool need_grid) {
  check(x, grid, padding);
  STD_TORCH_CHECK(grad.dim() == 4 && grad.size(0) == x.size(0) && grad.size(1) == x.size(1) && grad.size(2) == grid.size(1) &&
                      grad.size(3) == grid.size(2),
                  "grid_sample_backward: grad does not fit x and grid");
  const auto [grad_x, grad_grid] = widest(x, grid) == ScalarType::Double
                                       ? backward_as<double>(grad, x, grid, padding, align_corners, need_x, need_grid)
                                       : backward_as<float>(grad, x, grid, padding, align_corners, need_x, need_grid);
  return {in_type(grad_x, x.scalar_type()), in_type(grad_grid, grid.scalar_type())};
}

}  // namespace ggf::grid_sample

STABLE_TORCH_LIBRARY_IMPL(gangealing_fast, CPU, m) {
  m.impl("grid_sample", TORCH_BOX(&ggf::grid_sample::forward));
  m.impl("grid_sample_backward", TORCH_BOX(&ggf::grid_sample::backward));
}
