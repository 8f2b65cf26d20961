// SPDX-License-Identifier: Apache-2.0
// Anti-aliased grid sampling from a mip-map pyramid. Maths: gangealing_fast/ops/mipmap_warp.py.
//
// Level 0 is sampled from the image, as by grid_sample. The other levels, groups of four channels side by side, are never
// brought to full size: along one axis a sample reads two neighbouring full-size texels, each a blend of two
// neighbouring small ones, so three small ones in all, which one vector load reads. Weights are worked out for a block of
// grid points at a time. Work is divided by grid rows and, where gradients are scattered, by samples: no result depends on
// the number of threads.
#include "levels.h"
#include "mipmap_distances.h"
#include "mipmap_gradients.h"
#include "mipmap_samples.h"

#include <algorithm>
#include <array>
#include <limits>
#include <memory>
#include <tuple>

namespace ggf::mipmap_warp {

// Four channels of the part of a block that is read from the pyramid; 0 for points on level 0 with no fraction.
template <typename A>
GGF_INLINE void sample_pyramid(const A* texels, const Samples<A>& samples, const Taps<A>& lower, const Taps<A>& upper,
                               int64_t count, A (&values)[block][4]) {
  for (int64_t p = 0; p < count; ++p) {
    Vec4<A> value{};
    if (samples.level[p] > 0) value = (1 - samples.fraction[p]) * sample<false>(texels, lower, p).value;
    if (samples.fraction[p] > 0) value += samples.fraction[p] * sample<false>(texels, upper, p).value;
    __builtin_memcpy(values[p], &value, sizeof(value));
  }
}

// How the two parts of a result are put together: weight * level 0 + what the pyramid gives + poison, which is 0 or NaN.
template <typename A>
struct Mixture {
  A weight[block], poison[block];
};

template <typename A>
GGF_INLINE void find_mixture(const Samples<A>& samples, int64_t count, Mixture<A>& mixture) {
  for (int64_t p = 0; p < count; ++p) {
    const A rest = 1 - samples.fraction[p];
    mixture.weight[p] = samples.level[p] == 0 ? rest : A(0);
    mixture.poison[p] = samples.finite[p] > 0 ? A(0) : std::numeric_limits<A>::quiet_NaN();
  }
}

// Finishes channel c of a block; x: level 0 of the sample, values: what the pyramid gives.
template <Layout layout, typename A>
GGF_INLINE void finish_channel(const Problem<A>& problem, const A* x, int64_t c, const Samples<A>& samples,
                               const grid_sample::Points<A>& points, const Mixture<A>& mixture, const A (&values)[block][4],
                               int64_t count, grid_sample::Rows<A>& rows, A* GGF_RESTRICT out) {
  A coarse[block];
  for (int64_t p = 0; p < count; ++p) coarse[p] = values[p][c % 4] + mixture.poison[p];
  if (samples.on_image())
    grid_sample::sample_channel<layout>(problem.image, x, c, points, count, rows, [&](int64_t p, A value) GGF_INLINE_LAMBDA {
      const A fine = mixture.weight[p] * value;
      coarse[p] += mixture.weight[p] > 0 ? fine : A(0);
    });
  std::copy_n(coarse, count, out);
}

// Calls body.operator()<layout>() for the layout of level 0.
template <typename A, typename Body>
void dispatch_layout(const Problem<A>& problem, const Body& body) {
  const Layout layout = grid_sample::layout_of(problem.image);
  if (layout == Layout::rows)
    body.template operator()<Layout::rows>();
  else if (layout == Layout::triples)
    body.template operator()<Layout::triples>();
  else
    body.template operator()<Layout::strided>();
}

// texels: the pyramid of the sample; output: [N, C, rows, columns]
template <Layout layout, typename A>
void forward_block(const Problem<A>& problem, const Pyramid<A>& pyramid, const A* texels, const A* squared, A* output,
                   const Run& run) {
  const int64_t plane = problem.image.points, channels = problem.image.channels;
  Samples<A> samples;
  Taps<A> lower, upper;
  grid_sample::Points<A> points;
  grid_sample::Rows<A> rows;
  Mixture<A> mixture;
  alignas(64) A values[block][4] = {};
  locate_block(problem, run.sample * plane + run.point, squared, run.count, samples);
  find_taps<false>(problem, pyramid, samples, run.count, lower, upper);
  at_level<find_mixture<A>>(samples, run.count, mixture);
  if (samples.on_image()) grid_sample::find_points<false>(problem.image, run.sample, run.point, run.count, A(0), points);
  const A* x = problem.image.x + run.sample * problem.image.sample_stride;
  for (int64_t c = 0; c < channels; ++c) {
    if (c % 4 == 0 && samples.on_pyramid())
      at_level<sample_pyramid<A>>(texels + c * pyramid.texels, samples, lower, upper, run.count, values);
    at_level<finish_channel<layout, A>>(problem, x, c, samples, points, mixture, values, run.count, rows,
                                        output + (run.sample * channels + c) * plane + run.point);
  }
}

// Memory that is not cleared.
template <typename A>
struct Scratch {
  explicit Scratch(int64_t size) : data(new A[size]) {}
  A* get() const { return data.get(); }
  std::unique_ptr<A[]> data;
};

// What forward and backward have in common: the levels of the grid and the shape of the pyramid, as deep as they need.
template <typename A>
struct Plan {
  Tensor x, grid;
  Scratch<A> squared;
  Scratch<int32_t> nearest;
  Problem<A> problem;
  Pyramid<A> pyramid;

  Plan(const Tensor& x_, const Tensor& grid_, int64_t padding, double max_levels)
      : x(grid_sample::readable<A>(x_)), grid(converted(grid_, compute_scalar_type<A>)), squared(grid.numel() / 2),
        nearest(grid.numel() / 2), problem{grid_sample::problem_of<A>(x, grid, padding, false),
                                           grid.size(1),
                                           grid.size(2),
                                           static_cast<A>(x.size(3) - 1) / 2,
                                           static_cast<A>(x.size(2) - 1) / 2,
                                           static_cast<A>(max_levels - 1)} {
    const int64_t rows = x.size(0) * problem.rows;
    std::vector<A> largest(rows);
    parallel_for(0, rows, grain(8 * problem.columns), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row)
        largest[row] =
            at_level<measure_row<A>>(problem, row, squared.get() + row * problem.columns, nearest.get() + row * problem.columns);
    });
    // A little more than the logarithm, so that its rounding cannot ask for a level that is not there.
    const double distance = *std::max_element(largest.begin(), largest.end());
    const double depth = std::min(std::log2(distance) / 2 + 1e-6, max_levels - 1);
    const int64_t count = distance > 1 ? static_cast<int64_t>(std::ceil(depth)) + 1 : 1;
    pyramid = plan_pyramid<A>(x.size(1), x.size(2), x.size(3), count);
  }

  void build(int64_t sample, A* texels, A* line) const {
    const grid_sample::Problem<A>& image = problem.image;
    build_pyramid(pyramid, image.x + sample * image.sample_stride, {image.channel_stride, image.row_stride, image.column_stride},
                  image.channels, texels, line);
  }

  // Calls body(run) for the blocks of rows [first, last) of a sample.
  template <typename Body>
  void for_each_block(int64_t sample, int64_t first, int64_t last, const Body& body) const {
    for (int64_t row = first; row < last; ++row)
      for (int64_t begin = 0; begin < problem.columns; begin += block)
        body(Run{sample, row * problem.columns + begin, std::min(block, problem.columns - begin)});
  }
};

void check(const Tensor& x, const Tensor& grid, int64_t padding, double max_levels) {
  STD_TORCH_CHECK(padding >= zeros && padding <= reflection, "mipmap_warp: padding mode must be 0, 1 or 2");
  STD_TORCH_CHECK(x.dim() == 4 && grid.dim() == 4 && grid.size(3) == 2 && x.size(0) == grid.size(0) && x.size(2) > 0 &&
                      x.size(3) > 0 && max_levels >= 1 && max_levels <= 16,
                  "mipmap_warp: x must be [N, C, H, W], grid [N, h, w, 2], max_levels 1 to 16");
  STD_TORCH_CHECK(x.size(2) <= INT32_MAX / x.size(3) && x.size(2) < (1 << 24) && x.size(3) < (1 << 24),
                  "mipmap_warp: a plane of x must have fewer than 2^31 texels, an axis fewer than 2^24");
}

template <typename A>
Tensor forward_as(const Tensor& x, const Tensor& grid, int64_t padding, double max_levels) {
  const Tensor output = empty({x.size(0), x.size(1), grid.size(1), grid.size(2)}, compute_scalar_type<A>);
  if (output.numel() == 0) return output;
  const Plan<A> plan(x, grid, padding, max_levels);
  A* data = output.mutable_data_ptr<A>();
  // The inner loop runs in parallel where the outer one, for a single sample, does not.
  parallel_for(0, x.size(0), grain(plan.pyramid.size() + 32 * plan.problem.rows * plan.problem.columns),
               [&](int64_t begin, int64_t end) {
                 const Scratch<A> texels(plan.pyramid.size()), line(plan.pyramid.longest_line());
                 for (int64_t n = begin; n < end; ++n) {
                   plan.build(n, texels.get(), line.get());
                   dispatch_layout(plan.problem, [&]<Layout layout>() {
                     parallel_for(0, plan.problem.rows, grain(32 * plan.problem.columns), [&](int64_t first, int64_t last) {
                       plan.for_each_block(n, first, last, [&](const Run& run) {
                         forward_block<layout>(plan.problem, plan.pyramid, texels.get(), plan.squared.get(), data, run);
                       });
                     });
                   });
                 }
               });
  return output;
}

// The samples; and nothing, as a CPU makes the small levels of one sample at a time, where they stay in its cache.
std::tuple<Tensor, Tensor> forward(const Tensor& x, const Tensor& grid, int64_t padding, double max_levels) {
  check(x, grid, padding, max_levels);
  const Tensor output = widest(x, grid) == ScalarType::Double ? forward_as<double>(x, grid, padding, max_levels)
                                                              : forward_as<float>(x, grid, padding, max_levels);
  return {in_type(output, x.scalar_type()), empty({0}, x.scalar_type())};
}

template <typename A>
std::tuple<Tensor, Tensor> backward_as(const Tensor& grad_, const Tensor& x, const Tensor& grid, int64_t padding, double max_levels,
                                       bool need_x, bool need_grid) {
  const Tensor grad = converted(grad_, compute_scalar_type<A>);
  const Tensor grad_x = empty(need_x ? sizes_of(x) : std::vector<int64_t>{0}, compute_scalar_type<A>);
  const Tensor grad_grid = empty(need_grid ? sizes_of(grid) : std::vector<int64_t>{0}, compute_scalar_type<A>);
  if (need_x) std::fill_n(grad_x.mutable_data_ptr<A>(), grad_x.numel(), A(0));
  if (grad.numel() == 0 || (!need_x && !need_grid)) {
    std::fill_n(grad_grid.mutable_data_ptr<A>(), grad_grid.numel(), A(0));
    return {grad_x, grad_grid};
  }
  const Plan<A> plan(x, grid, padding, max_levels);
  const Problem<A>& problem = plan.problem;
  const int64_t size = plan.pyramid.size(), image = x.size(1) * x.size(2) * x.size(3);
  const Scratch<A> by_square(need_grid ? grid.numel() / 2 : 0);
  std::vector<char> active(x.size(0) * problem.rows);
  const A* grad_data = grad.const_data_ptr<A>();
  A* grid_data = need_grid ? grad_grid.mutable_data_ptr<A>() : nullptr;
  A* image_data = need_x ? grad_x.mutable_data_ptr<A>() : nullptr;
  grid_sample::Problem<A> contiguous = problem.image;
  contiguous.row_stride = contiguous.width;
  contiguous.column_stride = 1;
  parallel_for(0, x.size(0), grain(size + 64 * problem.rows * problem.columns), [&](int64_t begin, int64_t end) {
    const Scratch<A> texels(need_grid ? size : 0), scattered(need_x ? size : 0), line(plan.pyramid.longest_line());
    for (int64_t n = begin; n < end; ++n) {
      if (need_grid) plan.build(n, texels.get(), line.get());
      const Gradients<A> gradients{grid_data, by_square.get(), active.data(), need_x ? scattered.get() : nullptr, image_data};
      dispatch_layout(problem, [&]<Layout layout>() {
        const auto rows = [&](int64_t first, int64_t last) {
          plan.for_each_block(n, first, last, [&](const Run& run) {
            backward_block<layout>(problem, contiguous, plan.pyramid, texels.get(), plan.squared.get(), grad_data, gradients, run);
          });
        };
        if (need_x) {
          // Samples overlap in the image: one thread adds them up, in the order of the grid.
          std::fill_n(scattered.get(), size, A(0));
          rows(0, problem.rows);
          collect_gradient(plan.pyramid, scattered.get(), line.get(), x.size(1), image_data + n * image);
        } else {
          parallel_for(0, problem.rows, grain(64 * problem.columns), rows);
        }
      });
      for (int64_t row = n * problem.rows; need_grid && row < (n + 1) * problem.rows; ++row)
        if (active[row] || (row > n * problem.rows && active[row - 1]) || (row + 1 < (n + 1) * problem.rows && active[row + 1]))
          at_level<distance_gradient_row<A>>(problem, row, plan.nearest.get(), by_square.get(), grid_data);
    }
  });
  return {grad_x, grad_grid};
}

std::tuple<Tensor, Tensor> backward(const Tensor& grad, const Tensor& x, const Tensor& grid, int64_t padding, double max_levels,
                                    const Tensor&, bool need_x, bool need_grid) {
  check(x, grid, padding, max_levels);
  STD_TORCH_CHECK(grad.dim() == 4 && grad.size(0) == x.size(0) && grad.size(1) == x.size(1) && grad.size(2) == grid.size(1) &&
                      grad.size(3) == grid.size(2),
                  "mipmap_warp_backward: grad does not fit x and grid");
  const auto [grad_x, grad_grid] = widest(x, grid) == ScalarType::Double
                                       ? backward_as<double>(grad, x, grid, padding, max_levels, need_x, need_grid)
                                       : backward_as<float>(grad, x, grid, padding, max_levels, need_x, need_grid);
  return {in_type(grad_x, x.scalar_type()), in_type(grad_grid, grid.scalar_type())};
}

}  // namespace ggf::mipmap_warp

STABLE_TORCH_LIBRARY_IMPL(gangealing_fast, CPU, m) {
  m.impl("mipmap_warp", TORCH_BOX(&ggf::mipmap_warp::forward));
  m.impl("mipmap_warp_backward", TORCH_BOX(&ggf::mipmap_warp::backward));
}
