// SPDX-License-Identifier: Apache-2.0
// Anti-aliased grid sampling from a mip-map pyramid. Maths: gangealing_fast/ops/mipmap_warp.py.
//
// The pyramid holds groups of four channels side by side, so that one vector load reads a texel. A level is never
// brought to full size: along one axis a sample reads two neighbouring full-size texels, each a blend of two
// neighbouring small ones, so three small ones in all, whose weights are worked out for a block of grid points at a
// time. Work is divided by grid rows and, where gradients are scattered, by samples: no result depends on the number of
// threads.
#include "mipmap_samples.h"

#include <algorithm>
#include <array>
#include <limits>
#include <memory>
#include <tuple>

namespace ggf::mipmap_warp {

// The largest squared distance to the four neighbours, 1 or more (NaN or infinity where one is not finite), and which
// neighbour it is: 0 left, 1 right, 2 above, 3 below.
template <typename A>
GGF_MULTIVERSION void measure_row(const Problem<A>& problem, int64_t row, A* GGF_RESTRICT squared,
                                  int32_t* GGF_RESTRICT nearest) {
  const int64_t columns = problem.columns, y = row % problem.rows;
  const A* here = problem.grid + 2 * row * columns;
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
}

// One row of the grid, counted over all samples. texels: the pyramid of its sample; output: [N, C, rows, columns]
template <typename A>
GGF_MULTIVERSION void forward_row(const Problem<A>& problem, const Pyramid<A>& pyramid, const A* texels,
                                  const A* squared, A* output, int64_t row) {
  const int64_t n = row / problem.rows, y = row % problem.rows, plane = problem.rows * problem.columns;
  Samples<A> samples;
  Taps<A> lower, upper;
  for (int64_t begin = 0; begin < problem.columns; begin += block) {
    const int64_t count = std::min(block, problem.columns - begin), point = row * problem.columns + begin;
    locate_block(problem.padding, problem, point, squared, count, samples);
    find_taps(problem, pyramid, samples, count, 0, lower);
    find_taps(problem, pyramid, samples, count, 1, upper);
    for (int64_t group = 0; group < pyramid.groups; ++group) {
      const A* source = texels + 4 * group * pyramid.texels;
      alignas(64) A values[block][4];
      for (int64_t p = 0; p < count; ++p) {
        Vec4<A> value = sample_level<false>(source, lower, p, samples.level[p]).value;
        if (samples.fraction[p] > 0)
          value += samples.fraction[p] * (sample<3, false>(source, upper, p).value - value);
        __builtin_memcpy(values[p], &value, sizeof(value));
      }
      for (int64_t c = 0; c < std::min<int64_t>(4, problem.channels - 4 * group); ++c) {
        A* GGF_RESTRICT out = output + (n * problem.channels + 4 * group + c) * plane + y * problem.columns + begin;
        for (int64_t p = 0; p < count; ++p)
          out[p] = samples.finite[p] > 0 ? values[p][c] : std::numeric_limits<A>::quiet_NaN();
      }
    }
  }
}

template <typename A>
GGF_INLINE void add_scaled(A* target, A factor, const Vec4<A>& value) {
  const Vec4<A> sum = read(target) + factor * value;
  __builtin_memcpy(target, &sum, sizeof(sum));
}

template <int taps_per_axis, typename A>
GGF_INLINE void scatter(A* texels, const Taps<A>& taps, int64_t p, const Vec4<A>& value) {
  for (int r = 0; r < taps_per_axis; ++r) {
    A* row = texels + taps.y.offset[r][p];
    const Vec4<A> part = taps.y.weight[r][p] * value;
    for (int k = 0; k < taps_per_axis; ++k) add_scaled(row + taps.x.offset[k][p], taps.x.weight[k][p], part);
  }
}

template <typename A>
GGF_INLINE Vec4<A> gradient_at(const A* grad, int64_t plane, int64_t channels, int64_t p) {
  Vec4<A> value{};
  for (int64_t c = 0; c < channels; ++c) value[c] = grad[c * plane + p];
  return value;
}

// grad: [N, C, rows, columns]. Writes grad_grid [N, rows, columns, 2], without what comes through the level, and
// by_square, the derivative by the squared distance; scatters to grad_texels. Either of grad_grid and grad_texels may
// be null.
template <typename A>
GGF_MULTIVERSION void backward_row(const Problem<A>& problem, const Pyramid<A>& pyramid, const A* texels,
                                   const A* squared, const A* grad, A* grad_grid, A* by_square, A* grad_texels,
                                   int64_t row) {
  const int64_t n = row / problem.rows, y = row % problem.rows, plane = problem.rows * problem.columns;
  Samples<A> samples;
  Taps<A> lower, upper;
  A by_x[block], by_y[block], by_level[block];
  for (int64_t begin = 0; begin < problem.columns; begin += block) {
    const int64_t count = std::min(block, problem.columns - begin), point = row * problem.columns + begin;
    locate_block(problem.padding, problem, point, squared, count, samples);
    find_taps(problem, pyramid, samples, count, 0, lower);
    find_taps(problem, pyramid, samples, count, 1, upper);
    for (int64_t p = 0; p < count; ++p) by_x[p] = by_y[p] = by_level[p] = 0;
    for (int64_t group = 0; group < pyramid.groups; ++group) {
      const A* source = texels + 4 * group * pyramid.texels;
      const A* gradient = grad + (n * problem.channels + 4 * group) * plane + y * problem.columns + begin;
      const int64_t channels = std::min<int64_t>(4, problem.channels - 4 * group);
      for (int64_t p = 0; p < count; ++p) {
        if (samples.finite[p] == 0) continue;
        const Vec4<A> g = gradient_at(gradient, plane, channels, p);
        const A fraction = samples.fraction[p];
        const int32_t level = samples.level[p];
        if (grad_grid) {
          Sampled<A> result = sample_level<true>(source, lower, p, level);
          if (fraction > 0) {
            const Sampled<A> coarse = sample<3, true>(source, upper, p);
            const Vec4<A> through = g * (coarse.value - result.value);
            by_level[p] += through[0] + through[1] + through[2] + through[3];
            result.by_x += fraction * (coarse.by_x - result.by_x);
            result.by_y += fraction * (coarse.by_y - result.by_y);
          }
          const Vec4<A> x = g * result.by_x, y = g * result.by_y;
          by_x[p] += x[0] + x[1] + x[2] + x[3];
          by_y[p] += y[0] + y[1] + y[2] + y[3];
        }
        if (grad_texels) {
          A* target = grad_texels + 4 * group * pyramid.texels;
          if (level == 0)
            scatter<2>(target, lower, p, (1 - fraction) * g);
          else
            scatter<3>(target, lower, p, (1 - fraction) * g);
          if (fraction > 0) scatter<3>(target, upper, p, fraction * g);
        }
      }
    }
    if (!grad_grid) continue;
    // level = log2(squared) / 2 below the largest level; there is no slope at a whole level, nor where it is capped.
    const A factor = static_cast<A>(0.5 / 0.69314718055994530942);
    for (int64_t p = 0; p < count; ++p) {
      const A level = binary_log(samples.squared[p]) / 2;
      const A slope = level <= problem.largest ? by_level[p] * factor / samples.squared[p] : A(0);
      by_square[point + p] = samples.finite[p] > 0 ? slope : A(0);
      grad_grid[2 * (point + p)] = by_x[p];
      grad_grid[2 * (point + p) + 1] = by_y[p];
    }
  }
}

// Hands the derivative by the squared distance on to the two grid points it is measured between, for one sample.
template <typename A>
void distance_gradient(const Problem<A>& problem, const int32_t* nearest, const A* by_square, A* grad_grid, int64_t n) {
  const int64_t points = problem.rows * problem.columns, first = n * points;
  const int64_t step[4] = {-1, 1, -problem.columns, problem.columns};
  for (int64_t p = first; p < first + points; ++p) {
    if (by_square[p] == 0) continue;
    const int64_t other = p + step[nearest[p]];
    for (int64_t axis = 0; axis < 2; ++axis) {
      const A scale = axis ? problem.scale_y : problem.scale_x;
      const A slope = 2 * by_square[p] * scale * scale * (problem.grid[2 * other + axis] - problem.grid[2 * p + axis]);
      grad_grid[2 * other + axis] += slope;
      grad_grid[2 * p + axis] -= slope;
    }
  }
}

// Memory that is not cleared.
template <typename A>
struct Scratch {
  explicit Scratch(int64_t size) : data(new A[size]) {}
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
  std::array<int64_t, 4> strides;

  Plan(const Tensor& x_, const Tensor& grid_, int64_t padding, double max_levels)
      : x(std::is_same_v<A, double> ? in_type(x_, ScalarType::Double) : x_),
        grid(converted(grid_, compute_scalar_type<A>)),
        squared(grid.numel()),
        nearest(grid.numel()) {
    const int64_t height = x.size(2), width = x.size(3);
    problem = {grid.const_data_ptr<A>(), grid.size(1), grid.size(2), x.size(1), padding,
               static_cast<A>(width - 1) / 2, static_cast<A>(height - 1) / 2, static_cast<A>(max_levels - 1),
               axis_of<A>(width, false), axis_of<A>(height, false)};
    const int64_t rows = x.size(0) * problem.rows;
    parallel_for(0, rows, grain(8 * problem.columns), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row)
        measure_row<A>(problem, row, squared.data.get() + row * problem.columns,
                       nearest.data.get() + row * problem.columns);
    });
    A largest = 1;
    for (int64_t i = 0; i < rows * problem.columns; ++i) {
      const A value = squared.data[i];
      largest = value > largest && value - value == 0 ? value : largest;
    }
    // A little more than the logarithm, so that its rounding cannot ask for a level that is not there.
    const double depth = std::min(std::log2(static_cast<double>(largest)) / 2 + 1e-6, max_levels - 1);
    pyramid = plan_pyramid<A>(problem.channels, height, width, static_cast<int64_t>(std::ceil(depth)) + 1);
    strides = {x.stride(0), x.stride(1), x.stride(2), x.stride(3)};
  }

  void build(int64_t sample, A* texels, A* line) const {
    dispatch_floating(x.scalar_type(), "mipmap_warp", [&]<typename T>() {
      if constexpr (std::is_same_v<Compute<T>, A>)
        build_pyramid<T>(pyramid, x.const_data_ptr<T>() + sample * strides[0], {strides[1], strides[2], strides[3]},
                         problem.channels, texels, line);
    });
  }
};

void check(const Tensor& x, const Tensor& grid, int64_t padding, double max_levels) {
  STD_TORCH_CHECK(padding >= zeros && padding <= reflection, "mipmap_warp: padding mode must be 0, 1 or 2");
  STD_TORCH_CHECK(x.dim() == 4 && grid.dim() == 4 && grid.size(3) == 2 && x.size(0) == grid.size(0) && x.size(2) > 0 &&
                      x.size(3) > 0 && max_levels >= 1 && max_levels <= 16,
                  "mipmap_warp: x must be [N, C, H, W], grid [N, h, w, 2], max_levels 1 to 16");
  STD_TORCH_CHECK(x.size(2) < (1 << 24) && x.size(3) < (1 << 24), "mipmap_warp: x must have fewer than 2^24 rows");
}

template <typename A>
Tensor forward_as(const Tensor& x, const Tensor& grid, int64_t padding, double max_levels) {
  const Tensor output = empty({x.size(0), x.size(1), grid.size(1), grid.size(2)}, compute_scalar_type<A>);
  if (output.numel() == 0) return output;
  const Plan<A> plan(x, grid, padding, max_levels);
  A* data = output.mutable_data_ptr<A>();
  const int64_t rows = plan.problem.rows;
  // The inner loop runs in parallel where the outer one, for a single sample, does not.
  parallel_for(0, x.size(0), 1, [&](int64_t begin, int64_t end) {
    const Scratch<A> texels(plan.pyramid.size()), line(4 * x.size(3));
    for (int64_t n = begin; n < end; ++n) {
      plan.build(n, texels.data.get(), line.data.get());
      parallel_for(n * rows, (n + 1) * rows, grain(32 * plan.problem.columns), [&](int64_t first, int64_t last) {
        for (int64_t row = first; row < last; ++row)
          forward_row<A>(plan.problem, plan.pyramid, texels.data.get(), plan.squared.data.get(), data, row);
      });
    }
  });
  return output;
}

Tensor forward(const Tensor& x, const Tensor& grid, int64_t padding, double max_levels) {
  check(x, grid, padding, max_levels);
  const Tensor output = widest(x, grid) == ScalarType::Double ? forward_as<double>(x, grid, padding, max_levels)
                                                              : forward_as<float>(x, grid, padding, max_levels);
  return in_type(output, x.scalar_type());
}

template <typename A>
std::tuple<Tensor, Tensor> backward_as(const Tensor& grad_, const Tensor& x, const Tensor& grid, int64_t padding,
                                       double max_levels, bool need_x, bool need_grid) {
  const Tensor grad = converted(grad_, compute_scalar_type<A>);
  const Tensor grad_x = empty(need_x ? sizes_of(x) : std::vector<int64_t>{0}, compute_scalar_type<A>);
  const Tensor grad_grid = empty(need_grid ? sizes_of(grid) : std::vector<int64_t>{0}, compute_scalar_type<A>);
  if (grad.numel() == 0 || (!need_x && !need_grid)) {
    for (const Tensor& gradient : {grad_x, grad_grid})
      std::fill_n(gradient.mutable_data_ptr<A>(), gradient.numel(), A(0));
    return {grad_x, grad_grid};
  }
  const Plan<A> plan(x, grid, padding, max_levels);
  const Problem<A>& problem = plan.problem;
  const int64_t size = plan.pyramid.size(), image = problem.channels * x.size(2) * x.size(3);
  const Scratch<A> by_square(need_grid ? grid.numel() : 0);
  const A* grad_data = grad.const_data_ptr<A>();
  A* grid_data = need_grid ? grad_grid.mutable_data_ptr<A>() : nullptr;
  A* image_data = need_x ? grad_x.mutable_data_ptr<A>() : nullptr;
  parallel_for(0, x.size(0), 1, [&](int64_t begin, int64_t end) {
    const Scratch<A> texels(need_grid ? size : 0), grad_texels(need_x ? size : 0), line(4 * x.size(3));
    for (int64_t n = begin; n < end; ++n) {
      if (need_grid) plan.build(n, texels.data.get(), line.data.get());
      const auto rows = [&](A* target, int64_t first, int64_t last) {
        for (int64_t row = first; row < last; ++row)
          backward_row<A>(problem, plan.pyramid, texels.data.get(), plan.squared.data.get(), grad_data, grid_data,
                          by_square.data.get(), target, row);
      };
      if (need_x) {
        // Samples overlap in the image: one thread adds them up, in the order of the grid.
        std::fill_n(grad_texels.data.get(), size, A(0));
        rows(grad_texels.data.get(), n * problem.rows, (n + 1) * problem.rows);
        collect_gradient(plan.pyramid, grad_texels.data.get(), line.data.get(), problem.channels,
                         image_data + n * image);
      } else {
        parallel_for(n * problem.rows, (n + 1) * problem.rows, grain(64 * problem.columns),
                     [&](int64_t first, int64_t last) { rows(nullptr, first, last); });
      }
      if (need_grid) distance_gradient(problem, plan.nearest.data.get(), by_square.data.get(), grid_data, n);
    }
  });
  return {grad_x, grad_grid};
}

std::tuple<Tensor, Tensor> backward(const Tensor& grad, const Tensor& x, const Tensor& grid, int64_t padding,
                                    double max_levels, bool need_x, bool need_grid) {
  check(x, grid, padding, max_levels);
  STD_TORCH_CHECK(grad.dim() == 4 && grad.size(0) == x.size(0) && grad.size(1) == x.size(1) &&
                      grad.size(2) == grid.size(1) && grad.size(3) == grid.size(2),
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
