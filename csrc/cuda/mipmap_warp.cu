// SPDX-License-Identifier: Apache-2.0
// Anti-aliased grid sampling from a mip-map pyramid. Maths: gangealing_fast/ops/mipmap_warp.py.
//
// Level 0 is the image where it lies, in any layout; the small levels, a third of it, are made first, one launch each. A level
// is never brought to full size: along one axis a sample reads two neighbouring full-size texels, each a blend of two
// neighbouring small ones, so three small ones in all. How many levels there are follows from max_levels alone, so nothing
// waits for the device and CUDA graphs can record it all. The forward hands them to the backward. The image's gradient is scattered into integers (exact_sum.cuh), that
// of the grid is gathered: results are bit-identical between runs.
#include "mipmap_places.cuh"

#include <limits>
#include <tuple>

namespace ggf::cuda::mipmap_warp {

// Which point and channels a thread handles.
struct Share {
  int64_t sample;
  uint32_t point;
  int32_t first, last;  // channels
};

template <typename T>
__device__ __forceinline__ Share share_of(const Problem<T>& p, uint32_t thread, uint32_t per_sample, int64_t first_sample) {
  const uint32_t in_sample = thread % per_sample, points = p.rows * p.columns;
  const int32_t first = static_cast<int32_t>(in_sample / points) * p.chunk;
  return {first_sample + thread / per_sample, in_sample % points, first,
          first + p.chunk < p.channels ? first + p.chunk : p.channels};
}

// output: [N, C, rows, columns]
template <typename T>
__global__ void __launch_bounds__(block_threads)
    warp(const __grid_constant__ Problem<T> p, const __grid_constant__ Pyramid<Compute<T>> pyramid, T* output, uint32_t per_sample,
         int64_t first_sample, uint32_t threads) {
  using A = Compute<T>;
  const uint32_t thread = blockIdx.x * block_threads + threadIdx.x;
  if (thread >= threads) return;
  const Share share = share_of(p, thread, per_sample, first_sample);
  const Place<A> place = place_of(p, share.sample, share.point);
  const int64_t points = int64_t(p.rows) * p.columns;
  T* out = output + (share.sample * p.channels + share.first) * points + share.point;
  const int32_t upper = place.fraction > 0 ? place.lower + 1 : place.lower;
  const Taps<A> taps = taps_in(p, pyramid.levels[place.lower], place);
  const Taps<A> upper_taps = taps_in(p, pyramid.levels[upper], place);
  for (int32_t c = share.first; c < share.last; ++c, out += points) {
    A value = sample_level<false>(p, pyramid, place.lower, taps, share.sample, c).value;
    if (upper > place.lower)
      value += place.fraction * (sample_level<false>(p, pyramid, upper, upper_taps, share.sample, c).value - value);
    *out = store<T>(place.finite ? value : std::numeric_limits<A>::quiet_NaN());
  }
}

// grad: [N, C, rows, columns]. Writes grad_grid [N, rows, columns, 2], without what comes through the level, and by_square
// [N, rows, columns], the derivative by the squared distance.
template <typename T>
__global__ void __launch_bounds__(block_threads)
    grid_gradient(const __grid_constant__ Problem<T> p, const __grid_constant__ Pyramid<Compute<T>> pyramid, const T* grad,
                  Compute<T>* grad_grid, Compute<T>* by_square, uint32_t per_sample, int64_t first_sample, uint32_t threads) {
  using A = Compute<T>;
  const uint32_t thread = blockIdx.x * block_threads + threadIdx.x;
  if (thread >= threads) return;
  const int64_t n = first_sample + thread / per_sample;
  const uint32_t point = thread % per_sample;
  const Place<A> place = place_of(p, n, point);
  const int32_t upper = place.fraction > 0 ? place.lower + 1 : place.lower;
  const Taps<A> taps = taps_in(p, pyramid.levels[place.lower], place);
  const Taps<A> upper_taps = taps_in(p, pyramid.levels[upper], place);
  A by_x = 0, by_y = 0, by_level = 0;
  for (int32_t c = 0; c < p.channels && place.finite; ++c) {
    const A g = load(grad[(n * p.channels + c) * per_sample + point]);
    Sampled<A> result = sample_level<true>(p, pyramid, place.lower, taps, n, c);
    if (upper > place.lower) {
      const Sampled<A> coarse = sample_level<true>(p, pyramid, upper, upper_taps, n, c);
      by_level += g * (coarse.value - result.value);
      result.by_x += place.fraction * (coarse.by_x - result.by_x);
      result.by_y += place.fraction * (coarse.by_y - result.by_y);
    }
    by_x += g * result.by_x;
    by_y += g * result.by_y;
  }
  // level = log2(squared) / 2 below the largest level; there is no slope at a whole level, nor where it is capped.
  const A factor = static_cast<A>(0.5 / 0.69314718055994530942);
  const int64_t i = n * per_sample + point;
  by_square[i] = place.level <= p.largest ? by_level * factor / place.distance.squared : A(0);
  grad_grid[2 * i] = by_x;
  grad_grid[2 * i + 1] = by_y;
}

// Adds to grad_grid what comes through the level: from the point's own distance and from those that its neighbours measure to it.
template <typename T>
__global__ void __launch_bounds__(block_threads)
    level_gradient(const __grid_constant__ Problem<T> p, const Compute<T>* by_square, Compute<T>* grad_grid, uint32_t per_sample,
                   int64_t first_sample, uint32_t threads) {
  using A = Compute<T>;
  const uint32_t thread = blockIdx.x * block_threads + threadIdx.x;
  if (thread >= threads) return;
  const int64_t sample = (first_sample + thread / per_sample) * per_sample;
  const int32_t point = thread % per_sample, row = point / p.columns, column = point % p.columns;
  const A* grid = p.grid + 2 * sample;
  const A x = grid[2 * int64_t(point)], y = grid[2 * int64_t(point) + 1];
  A by_x = 0, by_y = 0;
  const auto add = [&](int64_t other, A slope) {
    by_x += 2 * slope * p.pixels_x * p.pixels_x * (x - grid[2 * other]);
    by_y += 2 * slope * p.pixels_y * p.pixels_y * (y - grid[2 * other + 1]);
  };
  const int32_t step[4] = {-1, 1, -p.columns, p.columns};
  const bool exists[4] = {column > 0, column + 1 < p.columns, row > 0, row + 1 < p.rows};
  const A own = by_square[sample + point];
  const int32_t farthest = own != 0 ? measure(p, grid, point).neighbour : -1;
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    if (!exists[k]) continue;
    const int32_t other = point + step[k];
    if (k == farthest) add(other, own);
    const A its = by_square[sample + other];
    // The neighbour on the left has this point on its right, and so on.
    if (its != 0 && measure(p, grid, other).neighbour == (k ^ 1)) add(other, its);
  }
  grad_grid[2 * (sample + point)] += by_x;
  grad_grid[2 * (sample + point) + 1] += by_y;
}

// sums: [N * C, H * W + texels]: level 0, then the small ones.
template <typename T>
__global__ void __launch_bounds__(block_threads)
    scatter(const __grid_constant__ Problem<T> p, const __grid_constant__ Pyramid<Compute<T>> pyramid, const T* grad,
            Sums<Compute<T>> sums, uint32_t per_sample, int64_t first_sample, uint32_t threads) {
  using A = Compute<T>;
  const uint32_t thread = blockIdx.x * block_threads + threadIdx.x;
  if (thread >= threads) return;
  const Share share = share_of(p, thread, per_sample, first_sample);
  const Place<A> place = place_of(p, share.sample, share.point);
  const SumScale<A> scale = sums.scale(share.sample);
  if (!place.finite || !scale.finite) return;
  const int64_t points = int64_t(p.rows) * p.columns;
  const int64_t image = int64_t(pyramid.levels[0].height) * pyramid.levels[0].width, plane = image + pyramid.texels;
  for (int step = 0; step < 2; ++step) {
    const A part = step == 0 ? 1 - place.fraction : place.fraction;
    if (part == 0) continue;
    const int32_t index = place.lower + step;
    const Level<A>& level = pyramid.levels[index];
    const Taps<A> taps = taps_in(p, level, place);
    const int64_t first = index == 0 ? 0 : image + level.offset;
    for (int32_t c = share.first; c < share.last; ++c) {
      const A g = part * load(grad[(share.sample * p.channels + c) * points + share.point]);
      const int64_t target = (share.sample * p.channels + c) * plane + first;
      for (int r = 0; r < 3; ++r)
        for (int k = 0; k < 3; ++k) {
          const A weight = taps.y.weight[r] * taps.x.weight[k];
          if (weight != 0) sums.add(target + int64_t(taps.y.index[r]) * level.width + taps.x.index[k], weight * g, scale);
        }
    }
  }
}

void check(const Tensor& x, const Tensor& grid, int64_t padding, double max_levels) {
  STD_TORCH_CHECK(padding >= zeros && padding <= reflection, "mipmap_warp: padding mode must be 0, 1 or 2");
  STD_TORCH_CHECK(x.dim() == 4 && grid.dim() == 4 && grid.size(3) == 2 && x.size(0) == grid.size(0) && x.size(2) > 0 &&
                      x.size(3) > 0 && max_levels >= 1 && max_levels <= 16,
                  "mipmap_warp: x must be [N, C, H, W], grid [N, h, w, 2], max_levels 1 to 16");
  STD_TORCH_CHECK(x.size(2) < (1 << 24) && x.size(3) < (1 << 24) && x.size(2) <= (1 << 29) / x.size(3) && x.size(1) <= INT32_MAX &&
                      grid.size(1) * grid.size(2) <= INT32_MAX,
                  "mipmap_warp: a plane of x must have at most 2^29 texels, a grid fewer than 2^31 points");
}

// What forward and backward have in common.
template <typename T>
struct Plan {
  using A = Compute<T>;
  Pyramid<A> pyramid;
  Problem<T> problem;
  int64_t samples, per_sample;
  Tensor small;  // the small levels, [N, C, texels]

  // levels: whether the small levels are needed. kept: they, if they were made before.
  Plan(const Tensor& x, const Tensor& grid, int64_t padding, double max_levels, bool levels, const Tensor* kept = nullptr)
      : pyramid(plan_pyramid<A>(x.size(2), x.size(3), max_levels)), samples(x.size(0)),
        small(kept ? *kept : empty_on(x, {levels ? samples : 0, x.size(1), pyramid.texels}, compute_scalar_type<T>)) {
    STD_TORCH_CHECK(!levels || small.numel() == samples * x.size(1) * pyramid.texels, "mipmap_warp: the pyramid does not fit x");
    const int32_t channels = static_cast<int32_t>(x.size(1)), chunk = channels <= 4 ? std::max(channels, 1) : 4;
    problem = {{x.const_data_ptr<T>(), x.stride(0), x.stride(1), x.stride(2), x.stride(3)},
               grid.const_data_ptr<A>(),
               small.const_data_ptr<A>(),
               channels,
               chunk,
               static_cast<int32_t>(ceil_divide(channels, chunk)),
               static_cast<int32_t>(grid.size(1)),
               static_cast<int32_t>(grid.size(2)),
               padding,
               static_cast<A>(x.size(3) - 1) / 2,
               static_cast<A>(x.size(2) - 1) / 2,
               static_cast<A>(max_levels - 1),
               axis_of<A>(x.size(3), false),
               axis_of<A>(x.size(2), false)};
    per_sample = grid.size(1) * grid.size(2) * problem.chunks;
  }

  int64_t texels(int level) const { return int64_t(pyramid.levels[level].height) * pyramid.levels[level].width; }

  void build(cudaStream_t stream) const {
    A* data = small.mutable_data_ptr<A>();
    for (int l = 1; l < pyramid.count; ++l) {
      const Level<A>&from = pyramid.levels[l - 1], &to = pyramid.levels[l];
      if (l == 1) {
        launch_planes("mipmap_warp", &halve<T>, samples, problem.channels, texels(l), stream, problem.x, from, to, problem.channels,
                      data + to.offset, pyramid.texels, texels(l));
      } else {
        const int64_t stride = pyramid.texels;
        const Image<A> finer{data + from.offset, stride * problem.channels, stride, from.width, 1};
        launch_planes("mipmap_warp", &halve<A>, samples, problem.channels, texels(l), stream, finer, from, to, problem.channels,
                      data + to.offset, stride, texels(l));
      }
    }
  }
};

// The samples, and the small levels, which the backward needs again.
std::tuple<Tensor, Tensor> forward(const Tensor& x_, const Tensor& grid_, int64_t padding, double max_levels) {
  check(x_, grid_, padding, max_levels);
  check_devices("mipmap_warp", {x_, grid_});
  const OnDevice device(x_);
  const ScalarType wide = widest(x_, grid_);
  const Tensor x = wide == ScalarType::Double ? torch::stable::to(x_, wide) : x_, grid = converted(grid_, wide);
  const Tensor output = empty_on(x, {x.size(0), x.size(1), grid.size(1), grid.size(2)}, x.scalar_type());
  Tensor small;
  dispatch_floating(x.scalar_type(), "mipmap_warp", [&]<typename T>() {
    const Plan<T> plan(x, grid, padding, max_levels, true);
    small = plan.small;
    if (output.numel() == 0) return;
    plan.build(device.stream());
    launch_items("mipmap_warp", &warp<T>, x.size(0), plan.per_sample, device.stream(), plan.problem, plan.pyramid,
                 output.mutable_data_ptr<T>(), plan.per_sample);
  });
  return {torch::stable::to(output, x_.scalar_type()), small};
}

template <typename T>
void image_gradient(const Plan<T>& plan, const Tensor& grad, const Tensor& grad_x, cudaStream_t stream) {
  const char* name = "mipmap_warp_backward";
  const Problem<T>& p = plan.problem;
  const int64_t batch = grad_x.size(0), points = int64_t(p.rows) * p.columns;
  const SumShape shape{batch, p.channels, plan.texels(0), plan.pyramid.texels};
  const T* g = grad.const_data_ptr<T>();
  const auto offset = [&](int l) { return l ? plan.texels(0) + plan.pyramid.levels[l].offset : 0; };
  sum_exactly<T>(name, g, p.channels * points, bits_of_count(points), shape, grad_x, stream, [&](const Sums<Compute<T>>& sums) {
    launch_items(name, &scatter<T>, batch, plan.per_sample, stream, p, plan.pyramid, g, sums, plan.per_sample);
    for (int l = plan.pyramid.count - 1; l > 0; --l)
      launch_planes(name, &spread<T>, batch, p.channels, plan.texels(l), stream, sums, shape.plane_stride(), offset(l),
                    offset(l - 1), p.channels, plan.pyramid.levels[l - 1], plan.pyramid.levels[l], plan.texels(l));
  });
}

// pyramid: the small levels as `forward` gave them; made anew if it is empty.
std::tuple<Tensor, Tensor> backward(const Tensor& grad_, const Tensor& x_, const Tensor& grid_, int64_t padding, double max_levels,
                                    const Tensor& pyramid, bool need_x, bool need_grid) {
  check(x_, grid_, padding, max_levels);
  STD_TORCH_CHECK(grad_.dim() == 4 && grad_.size(0) == x_.size(0) && grad_.size(1) == x_.size(1) &&
                      grad_.size(2) == grid_.size(1) && grad_.size(3) == grid_.size(2),
                  "mipmap_warp_backward: grad does not fit x and grid");
  check_devices("mipmap_warp_backward", {grad_, x_, grid_, pyramid});
  const OnDevice device(x_);
  const ScalarType wide = widest(x_, grid_);
  const Tensor x = wide == ScalarType::Double ? torch::stable::to(x_, wide) : x_, grid = converted(grid_, wide);
  const Tensor grad = converted(grad_, x.scalar_type());
  const Tensor grad_x = empty_on(x, need_x ? sizes_of(x) : std::vector<int64_t>{0}, x.scalar_type());
  const Tensor grad_grid = empty_on(x, need_grid ? sizes_of(grid) : std::vector<int64_t>{0}, wide);
  if (grad.numel() == 0) {
    clear(grad_x, device.stream());
    clear(grad_grid, device.stream());
  } else {
    dispatch_floating(x.scalar_type(), "mipmap_warp_backward", [&]<typename T>() {
      using A = Compute<T>;
      const bool kept = need_grid && pyramid.numel() > 0;
      STD_TORCH_CHECK(!kept || (pyramid.scalar_type() == compute_scalar_type<T> && pyramid.is_contiguous()),
                      "mipmap_warp_backward: the pyramid does not fit x");
      const Plan<T> plan(x, grid, padding, max_levels, need_grid, kept ? &pyramid : nullptr);
      if (need_grid && !kept) plan.build(device.stream());
      if (need_x) image_gradient<T>(plan, grad, grad_x, device.stream());
      if (!need_grid) return;
      const int64_t points = grid.size(1) * grid.size(2);
      const Tensor by_square = empty_on(x, {x.size(0) * points}, wide);
      A* data = grad_grid.mutable_data_ptr<A>();
      launch_items("mipmap_warp_backward", &grid_gradient<T>, x.size(0), points, device.stream(), plan.problem, plan.pyramid,
                   grad.const_data_ptr<T>(), data, by_square.mutable_data_ptr<A>(), points);
      launch_items("mipmap_warp_backward", &level_gradient<T>, x.size(0), points, device.stream(), plan.problem,
                   by_square.const_data_ptr<A>(), data, points);
    });
  }
  return {torch::stable::to(grad_x, x_.scalar_type()), torch::stable::to(grad_grid, grid_.scalar_type())};
}

}  // namespace ggf::cuda::mipmap_warp

GGF_CUDA_KERNELS(m) {
  m.impl("mipmap_warp", TORCH_BOX(&ggf::cuda::mipmap_warp::forward));
  m.impl("mipmap_warp_backward", TORCH_BOX(&ggf::cuda::mipmap_warp::backward));
}
