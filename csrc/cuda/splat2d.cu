// SPDX-License-Identifier: Apache-2.0
// Points painted as Gaussians onto an image. Maths: gangealing_fast/ops/splat2d.py.
//
// Forward: a block handles a tile of pixels, a thread one of them. The block looks through the points in their order, a block
// full at a time, keeps those that reach the tile, and every pixel adds what they paint. Backward: a warp handles one point and
// goes over the pixels it reaches. Nothing is scattered: results are bit-identical between runs.
#include "../splat2d.h"
#include "block.cuh"

#include <tuple>

namespace ggf::cuda::splat2d {

using ggf::splat2d::divisor;
using ggf::splat2d::paints;
using ggf::splat2d::Window;
using ggf::splat2d::window;

inline constexpr int tile = 16;  // pixels along either axis of a block's tile
inline constexpr int chunk = 4;  // channels that a thread keeps in registers
static_assert(tile * tile == block_threads);

template <typename A>
struct Problem {
  const A* xy;      // [N, P, 2]
  const A* values;  // [N, P, C]
  const A* sigma;   // [N, P]
  int64_t points;
  int32_t channels, height, width;
  int64_t channel_stride, pixel_stride;  // of images; they differ between contiguous and channels-last
  bool soft;
};

// What a point reaches; no pixels if it paints none.
template <typename A>
struct Reach {
  A x = 0, y = 0, sigma = 1;
  Window columns{0, 0}, rows{0, 0};
};

template <typename A>
GGF_INLINE Reach<A> reach_of(const Problem<A>& p, int64_t point) {
  const A x = p.xy[2 * point], y = p.xy[2 * point + 1], sigma = p.sigma[point];
  const A width = static_cast<A>(p.width), height = static_cast<A>(p.height);
  if (!paints(x, y, sigma, width, height)) return {};
  return {x, y, sigma, window(x, sigma, width), window(y, sigma, height)};
}

template <typename A>
GGF_INLINE A weight_at(A dx, A dy, A sigma) {
  const A across = dx / sigma, along = dy / sigma;
  return std::exp(-(along * along + across * across) / 2);
}

// blockIdx.x: tiles of one sample, blockIdx.y: chunks of channels, blockIdx.z: samples
template <typename A>
__global__ void __launch_bounds__(block_threads, 2)  // without the 2 the compiler spills a few registers
    paint(Problem<A> p, const A* background, A* result, A* total, int64_t batch, int32_t tiles_across) {
  constexpr int warps = block_threads / 32;
  GGF_SHARED(A, centers, [3][block_threads]);  // x, y and sigma of the points that reach the tile
  GGF_SHARED(int32_t, indices, [block_threads]);
  GGF_SHARED(int32_t, warp_counts, [warps]);
  const int32_t left = static_cast<int32_t>(blockIdx.x) % tiles_across * tile;
  const int32_t top = static_cast<int32_t>(blockIdx.x) / tiles_across * tile;
  const int32_t x = left + static_cast<int32_t>(threadIdx.x) % tile, y = top + static_cast<int32_t>(threadIdx.x) / tile;
  const int32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const bool inside = x < p.width && y < p.height;
  const int32_t first = blockIdx.y * chunk, channels = p.channels - first < chunk ? p.channels - first : chunk;
  const int64_t pixels = static_cast<int64_t>(p.height) * p.width, pixel = static_cast<int64_t>(y) * p.width + x;
  for (int64_t n = blockIdx.z; n < batch; n += gridDim.z) {
    const int64_t image = n * p.channels * pixels + first * p.channel_stride + pixel * p.pixel_stride;
    A sums[chunk] = {}, weights = 0;
#pragma unroll
    for (int c = 0; c < chunk; ++c)
      if (inside && c < channels) sums[c] = background[image + c * p.channel_stride];
    for (int64_t start = 0; start < p.points; start += block_threads) {
      const int64_t mine = start + threadIdx.x;
      Reach<A> reach;
      if (mine < p.points) reach = reach_of(p, n * p.points + mine);
      const bool meets =
          reach.columns.begin < left + tile && reach.columns.end > left && reach.rows.begin < top + tile && reach.rows.end > top;
      const unsigned voters = __ballot_sync(0xffffffffu, meets);
      __syncthreads();  // the lists may still be read
      if (lane == 0) warp_counts[warp] = __popc(voters);
      __syncthreads();
      int32_t place = __popc(voters & ((1u << lane) - 1)), count = 0;
      for (int w = 0; w < warps; ++w) {
        place += w < warp ? warp_counts[w] : 0;
        count += warp_counts[w];
      }
      if (meets) {
        centers[0][place] = reach.x;
        centers[1][place] = reach.y;
        centers[2][place] = reach.sigma;
        indices[place] = static_cast<int32_t>(threadIdx.x);
      }
      __syncthreads();
      for (int32_t i = 0; i < count && inside; ++i) {
        const A center_x = centers[0][i], center_y = centers[1][i], sigma = centers[2][i];
        const Window columns = window(center_x, sigma, static_cast<A>(p.width));
        const Window rows = window(center_y, sigma, static_cast<A>(p.height));
        if (x < columns.begin || x >= columns.end || y < rows.begin || y >= rows.end) continue;
        const A weight = weight_at(x - center_x, y - center_y, sigma);
        const A* values = p.values + (n * p.points + start + indices[i]) * p.channels + first;
        weights += weight;
#pragma unroll
        for (int c = 0; c < chunk; ++c)
          if (c < channels) sums[c] += weight * values[c];
      }
    }
    if (!inside) continue;
#pragma unroll
    for (int c = 0; c < chunk; ++c)
      if (c < channels) result[image + c * p.channel_stride] = sums[c] / divisor(weights, p.soft);
    if (blockIdx.y == 0) total[n * pixels + pixel] = weights;
  }
}

// The gradients of background and, per pixel, of the sum of weights. by_total: [N, H, W]
template <typename A>
__global__ void __launch_bounds__(block_threads)
    pixel_gradient(Problem<A> p, const A* grad, const A* result, const A* total, A* grad_background, A* by_total,
                   uint32_t per_sample, int64_t first_sample, uint32_t threads) {
  const uint32_t thread = blockIdx.x * block_threads + threadIdx.x;
  if (thread >= threads) return;
  const int64_t n = first_sample + thread / per_sample, pixel = thread % per_sample;
  const int64_t image = n * p.channels * per_sample + pixel * p.pixel_stride;
  const A weights = total[n * per_sample + pixel], scale = divisor(weights, p.soft);
  A sum = 0;
  for (int32_t c = 0; c < p.channels; ++c) {
    const int64_t i = image + c * p.channel_stride;
    const A value = grad[i] / scale;
    grad_background[i] = value;
    sum += value * result[i];
  }
  by_total[n * per_sample + pixel] = p.soft && weights < 1 ? A(0) : -sum;
}

// One warp per point: 32 of per_sample threads.
template <typename A>
__global__ void __launch_bounds__(block_threads)
    point_gradient(Problem<A> p, const A* by_sums, const A* by_total, A* grad_xy, A* grad_values, A* grad_sigma,
                   uint32_t per_sample, int64_t first_sample, uint32_t threads) {
  const uint32_t thread = blockIdx.x * block_threads + threadIdx.x;
  if (thread >= threads) return;  // whole warps
  const int64_t n = first_sample + thread / per_sample, point = n * p.points + thread % per_sample / 32;
  const int32_t lane = threadIdx.x % 32;
  const Reach<A> reach = reach_of(p, point);
  const int64_t pixels = static_cast<int64_t>(p.height) * p.width;
  // 32 pixels on in the window are so many rows down and columns to the right: one division, before the loops.
  const int32_t across = reach.columns.end - reach.columns.begin, wide = across > 0 ? across : 1;
  const int32_t rows_on = 32 / wide, columns_on = 32 % wide;
  A by_x = 0, by_y = 0, by_sigma = 0;
  for (int32_t first = 0; first < p.channels || first == 0; first += chunk) {
    const int32_t channels = p.channels - first < chunk ? p.channels - first : chunk;
    A by_value[chunk] = {}, value[chunk] = {};
#pragma unroll
    for (int c = 0; c < chunk; ++c)
      if (c < channels) value[c] = p.values[point * p.channels + first + c];
    int32_t x = reach.columns.begin + lane % wide, y = reach.rows.begin + lane / wide;
    while (y < reach.rows.end) {
      const int64_t pixel = static_cast<int64_t>(y) * p.width + x;
      const A dx = x - reach.x, dy = y - reach.y, weight = weight_at(dx, dy, reach.sigma);
      A by_weight = first == 0 ? by_total[n * pixels + pixel] : A(0);
#pragma unroll
      for (int c = 0; c < chunk; ++c) {
        if (c >= channels) continue;
        const A g = by_sums[n * p.channels * pixels + (first + c) * p.channel_stride + pixel * p.pixel_stride];
        by_value[c] += weight * g;
        by_weight += g * value[c];
      }
      by_x += weight * by_weight * dx;
      by_y += weight * by_weight * dy;
      by_sigma += weight * by_weight * (dx * dx + dy * dy);
      x += columns_on;
      y += rows_on;
      if (x >= reach.columns.end) {
        x -= across;
        ++y;
      }
    }
#pragma unroll
    for (int c = 0; c < chunk; ++c) {
      const A sum = warp_sum(by_value[c]);
      if (lane == 0 && c < channels) grad_values[point * p.channels + first + c] = sum;
    }
  }
  by_x = warp_sum(by_x);
  by_y = warp_sum(by_y);
  by_sigma = warp_sum(by_sigma);
  if (lane != 0) return;
  grad_xy[2 * point] = by_x / (reach.sigma * reach.sigma);
  grad_xy[2 * point + 1] = by_y / (reach.sigma * reach.sigma);
  grad_sigma[point] = by_sigma / (reach.sigma * reach.sigma * reach.sigma);
}

void check(const char* operation, const Tensor& image, const Tensor& xy, const Tensor& values, const Tensor& sigma) {
  STD_TORCH_CHECK(image.dim() == 4 && xy.dim() == 3 && values.dim() == 3 && sigma.dim() == 2 && xy.size(2) == 2, operation,
                  ": background must be [N, C, H, W], xy [N, P, 2], values [N, P, C], sigma [N, P]");
  for (const Tensor& tensor : {xy, values, sigma})
    STD_TORCH_CHECK(tensor.size(0) == image.size(0) && tensor.size(1) == xy.size(1) && tensor.scalar_type() == image.scalar_type(),
                    operation, ": the tensors must agree in batch, points and dtype");
  STD_TORCH_CHECK(values.size(2) == image.size(1) && image.size(2) > 0 && image.size(3) > 0 && image.size(2) < (1 << 24) &&
                      image.size(3) < (1 << 24) && image.size(1) < (1 << 18),
                  operation, ": values do not fit the image, or an axis is too long");
  check_devices(operation, {image, xy, values, sigma});
}

// The tensors in it must outlive it.
template <typename A>
Problem<A> problem_of(const Tensor& image, const Tensor& xy, const Tensor& values, const Tensor& sigma, bool channels_last,
                      bool soft) {
  return {xy.const_data_ptr<A>(),
          values.const_data_ptr<A>(),
          sigma.const_data_ptr<A>(),
          xy.size(1),
          static_cast<int32_t>(image.size(1)),
          static_cast<int32_t>(image.size(2)),
          static_cast<int32_t>(image.size(3)),
          channels_last ? 1 : image.size(2) * image.size(3),
          channels_last ? image.size(1) : 1,
          soft};
}

// Calls body.operator()<A>() for float or double.
template <typename Body>
void dispatch_wide(const Tensor& image, const char* operation, const Body& body) {
  const bool wide = image.scalar_type() == ScalarType::Double;
  STD_TORCH_CHECK(wide || image.scalar_type() == ScalarType::Float, operation, ": takes float32 or float64");
  if (wide)
    body.template operator()<double>();
  else
    body.template operator()<float>();
}

std::tuple<Tensor, Tensor> forward(const Tensor& background_, const Tensor& xy_, const Tensor& values_, const Tensor& sigma_,
                                   bool soft) {
  check("splat2d", background_, xy_, values_, sigma_);
  const OnDevice device(background_);
  const bool channels_last = is_channels_last(background_);
  const Tensor background = in_layout(background_, channels_last), xy = torch::stable::contiguous(xy_);
  const Tensor values = torch::stable::contiguous(values_), sigma = torch::stable::contiguous(sigma_);
  const int64_t batch = background.size(0), height = background.size(2), width = background.size(3);
  const Tensor result = empty_on(background, sizes_of(background), background.scalar_type(), channels_last);
  const Tensor total = empty_on(background, {batch, 1, height, width}, background.scalar_type());
  if (batch == 0) return {result, total};
  const int64_t across = ceil_divide(width, tile), tiles = across * ceil_divide(height, tile);
  STD_TORCH_CHECK(tiles <= INT32_MAX, "splat2d: background has too many pixels");
  dispatch_wide(background, "splat2d", [&]<typename A>() {
    const Problem<A> p = problem_of<A>(background, xy, values, sigma, channels_last, soft);
    const dim3 grid(static_cast<unsigned>(tiles), static_cast<unsigned>(std::max<int64_t>(1, ceil_divide(p.channels, chunk))),
                    static_cast<unsigned>(std::min<int64_t>(batch, 65535)));
    launch(&paint<A>, grid, dim3(block_threads), device.stream(), p, background.const_data_ptr<A>(), result.mutable_data_ptr<A>(),
           total.mutable_data_ptr<A>(), batch, across);
  });
  return {result, total};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward(const Tensor& grad_, const Tensor& result_, const Tensor& total_,
                                                    const Tensor& xy_, const Tensor& values_, const Tensor& sigma_, bool soft) {
  const char* name = "splat2d_backward";
  check(name, result_, xy_, values_, sigma_);
  STD_TORCH_CHECK(sizes_of(grad_) == sizes_of(result_) && total_.numel() * result_.size(1) == result_.numel() &&
                      grad_.scalar_type() == result_.scalar_type() && total_.scalar_type() == result_.scalar_type(),
                  "splat2d_backward: grad, result and total must agree");
  check_devices(name, {result_, grad_, total_});
  const OnDevice device(result_);
  const bool channels_last = is_channels_last(result_);
  const Tensor grad = in_layout(grad_, channels_last), result = in_layout(result_, channels_last);
  const Tensor total = torch::stable::contiguous(total_), xy = torch::stable::contiguous(xy_);
  const Tensor values = torch::stable::contiguous(values_), sigma = torch::stable::contiguous(sigma_);
  const ScalarType type = result.scalar_type();
  const int64_t batch = result.size(0), pixels = result.size(2) * result.size(3);
  const Tensor grad_background = empty_on(result, sizes_of(result), type, channels_last);
  const Tensor grad_xy = empty_on(result, sizes_of(xy), type), grad_values = empty_on(result, sizes_of(values), type);
  const Tensor grad_sigma = empty_on(result, sizes_of(sigma), type), by_total = empty_on(result, {batch, pixels}, type);
  dispatch_wide(result, name, [&]<typename A>() {
    const Problem<A> p = problem_of<A>(result, xy, values, sigma, channels_last, soft);
    launch_items(name, &pixel_gradient<A>, batch, pixels, device.stream(), p, grad.const_data_ptr<A>(), result.const_data_ptr<A>(),
                 total.const_data_ptr<A>(), grad_background.mutable_data_ptr<A>(), by_total.mutable_data_ptr<A>(), pixels);
    launch_items(name, &point_gradient<A>, batch, 32 * p.points, device.stream(), p, grad_background.const_data_ptr<A>(),
                 by_total.const_data_ptr<A>(), grad_xy.mutable_data_ptr<A>(), grad_values.mutable_data_ptr<A>(),
                 grad_sigma.mutable_data_ptr<A>(), 32 * p.points);
  });
  return {grad_background, grad_xy, grad_values, grad_sigma};
}

}  // namespace ggf::cuda::splat2d

GGF_CUDA_KERNELS(m) {
  m.impl("splat2d", TORCH_BOX(&ggf::cuda::splat2d::forward));
  m.impl("splat2d_backward", TORCH_BOX(&ggf::cuda::splat2d::backward));
}
