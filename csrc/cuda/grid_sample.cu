// SPDX-License-Identifier: Apache-2.0
// Bilinear sampling at grid points. Maths: gangealing_fast/ops/grid_sample.py.
//
// A thread handles one grid point and some channels: neighbouring threads write neighbouring elements. The image is read
// where it lies, in any layout. The gradient by the grid is gathered point by point, that by the image scattered into
// integers (exact_sum.cuh), so both are bit-identical between runs.
#include "../sampling.h"
#include "exact_sum.cuh"

#include <limits>
#include <tuple>

namespace ggf::cuda::grid_sample {

template <typename T>
struct Problem {
  using A = Compute<T>;
  const T* x;     // [N, C, H, W], any strides
  const A* grid;  // [N, points, 2]
  int64_t sample_stride, channel_stride, row_stride, column_stride;
  int32_t channels, chunk, chunks;  // chunk: channels of a thread
  uint32_t points;
  int32_t height, width;
  int64_t padding;
  Axis<A> horizontal, vertical;
};

// The texels of one axis: `first` and `second` are read with the weights; outside the image the weight is 0.
template <typename A>
struct AxisTaps {
  int32_t index[2];
  A weight[2], slope[2];
};

template <typename A>
GGF_INLINE AxisTaps<A> axis_taps(const Position<A>& at, int32_t size) {
  const int32_t low = static_cast<int32_t>(at.low), last = size - 1;
  const bool in_low = low >= 0 && low <= last, in_high = low + 1 >= 0 && low + 1 <= last;
  return {{in_low ? low : 0, in_high ? low + 1 : 0},
          {in_low ? 1 - at.part : A(0), in_high ? at.part : A(0)},
          {in_low ? -at.slope : A(0), in_high ? at.slope : A(0)}};
}

template <typename A>
struct Taps {
  AxisTaps<A> x, y;
  bool finite;
};

template <typename T>
GGF_INLINE Taps<Compute<T>> find_taps(const Problem<T>& p, int64_t point) {
  using A = Compute<T>;
  const A x = p.grid[2 * point], y = p.grid[2 * point + 1];
  Position<A> across, along;
  if (p.padding == zeros) {
    across = locate<zeros>(x, p.horizontal);
    along = locate<zeros>(y, p.vertical);
  } else if (p.padding == border) {
    across = locate<border>(x, p.horizontal);
    along = locate<border>(y, p.vertical);
  } else {
    across = locate<reflection>(x, p.horizontal);
    along = locate<reflection>(y, p.vertical);
  }
  return {axis_taps(across, p.width), axis_taps(along, p.height), across.finite * along.finite > 0};
}

// Which point and channels a thread handles.
struct Share {
  int64_t sample;
  uint32_t point;
  int32_t first, last;  // channels
};

template <typename T>
__device__ __forceinline__ Share share_of(const Problem<T>& p, uint32_t thread, uint32_t per_sample, int64_t first_sample) {
  const uint32_t in_sample = thread % per_sample;
  const int32_t first = static_cast<int32_t>(in_sample / p.points) * p.chunk;
  return {first_sample + thread / per_sample, in_sample % p.points, first,
          first + p.chunk < p.channels ? first + p.chunk : p.channels};
}

// output: [N, C, points]
template <typename T>
__global__ void __launch_bounds__(block_threads)
    sample_points(Problem<T> p, T* output, uint32_t per_sample, int64_t first_sample, uint32_t threads) {
  using A = Compute<T>;
  const uint32_t thread = blockIdx.x * block_threads + threadIdx.x;
  if (thread >= threads) return;
  const Share share = share_of(p, thread, per_sample, first_sample);
  const Taps<A> taps = find_taps(p, share.sample * p.points + share.point);
  const T* x = p.x + share.sample * p.sample_stride + share.first * p.channel_stride;
  T* out = output + (share.sample * p.channels + share.first) * p.points + share.point;
  int64_t offset[4];
  A weight[4];
  for (int k = 0; k < 4; ++k) {
    offset[k] = taps.y.index[k / 2] * p.row_stride + taps.x.index[k % 2] * p.column_stride;
    weight[k] = taps.y.weight[k / 2] * taps.x.weight[k % 2];
  }
  for (int32_t c = share.first; c < share.last; ++c, x += p.channel_stride, out += p.points) {
    const A value = weight[0] * load(x[offset[0]]) + weight[1] * load(x[offset[1]]) + weight[2] * load(x[offset[2]]) +
                    weight[3] * load(x[offset[3]]);
    *out = store<T>(taps.finite ? value : std::numeric_limits<A>::quiet_NaN());
  }
}

// grad: [N, C, points]; grad_grid: [N, points, 2]. All channels of a point in one thread.
template <typename T>
__global__ void __launch_bounds__(block_threads)
    grid_gradient(Problem<T> p, const T* grad, Compute<T>* grad_grid, uint32_t per_sample, int64_t first_sample, uint32_t threads) {
  using A = Compute<T>;
  const uint32_t thread = blockIdx.x * block_threads + threadIdx.x;
  if (thread >= threads) return;
  const Share share = share_of(p, thread, per_sample, first_sample);
  const int64_t point = share.sample * p.points + share.point;
  const Taps<A> taps = find_taps(p, point);
  A by_x = 0, by_y = 0;
  if (taps.finite) {
    const T* x = p.x + share.sample * p.sample_stride;
    const T* g = grad + share.sample * p.channels * p.points + share.point;
    int64_t offset[4];
    A weight_x[4], weight_y[4];
    for (int k = 0; k < 4; ++k) {
      offset[k] = taps.y.index[k / 2] * p.row_stride + taps.x.index[k % 2] * p.column_stride;
      weight_x[k] = taps.y.weight[k / 2] * taps.x.slope[k % 2];
      weight_y[k] = taps.y.slope[k / 2] * taps.x.weight[k % 2];
    }
    for (int32_t c = 0; c < p.channels; ++c, x += p.channel_stride, g += p.points) {
      const A value = load(*g);
      const A t0 = load(x[offset[0]]), t1 = load(x[offset[1]]), t2 = load(x[offset[2]]), t3 = load(x[offset[3]]);
      by_x += value * (weight_x[0] * t0 + weight_x[1] * t1 + weight_x[2] * t2 + weight_x[3] * t3);
      by_y += value * (weight_y[0] * t0 + weight_y[1] * t1 + weight_y[2] * t2 + weight_y[3] * t3);
    }
  }
  grad_grid[2 * point] = by_x;
  grad_grid[2 * point + 1] = by_y;
}

// sums: [N, C, H, W]
template <typename T>
__global__ void __launch_bounds__(block_threads)
    scatter(Problem<T> p, const T* grad, Sums<Compute<T>> sums, uint32_t per_sample, int64_t first_sample, uint32_t threads) {
  using A = Compute<T>;
  const uint32_t thread = blockIdx.x * block_threads + threadIdx.x;
  if (thread >= threads) return;
  const Share share = share_of(p, thread, per_sample, first_sample);
  const Taps<A> taps = find_taps(p, share.sample * p.points + share.point);
  const SumScale<A> scale = sums.scale(share.sample);
  if (!taps.finite || !scale.finite) return;
  const int64_t plane = static_cast<int64_t>(p.height) * p.width;
  for (int32_t c = share.first; c < share.last; ++c) {
    const A value = load(grad[(share.sample * p.channels + c) * p.points + share.point]);
    const int64_t first = (share.sample * p.channels + c) * plane;
    for (int k = 0; k < 4; ++k) {
      const A weight = taps.y.weight[k / 2] * taps.x.weight[k % 2];
      if (weight != 0)
        sums.add(first + static_cast<int64_t>(taps.y.index[k / 2]) * p.width + taps.x.index[k % 2], weight * value, scale);
    }
  }
}

void check(const Tensor& x, const Tensor& grid, int64_t padding) {
  STD_TORCH_CHECK(padding >= zeros && padding <= reflection, "grid_sample: padding mode must be 0, 1 or 2");
  STD_TORCH_CHECK(
      x.dim() == 4 && grid.dim() == 4 && grid.size(3) == 2 && x.size(0) == grid.size(0) && x.size(2) > 0 && x.size(3) > 0,
      "grid_sample: x must be [N, C, H, W] and grid [N, h, w, 2]");
  STD_TORCH_CHECK(x.size(2) <= INT32_MAX / x.size(3) && x.size(2) < (1 << 24) && x.size(3) < (1 << 24) && x.size(1) <= INT32_MAX &&
                      grid.size(1) * grid.size(2) <= INT32_MAX,
                  "grid_sample: a plane of x and a grid must have fewer than 2^31 points, an axis of x fewer than 2^24");
}

template <typename T>
Problem<T> problem_of(const Tensor& x, const Tensor& grid, int64_t padding, bool align_corners) {
  using A = Compute<T>;
  const int32_t channels = static_cast<int32_t>(x.size(1));
  // Enough for every thread to make good use of its taps, few enough for small grids to fill the device.
  const int32_t chunk = channels <= 8 ? std::max(channels, 1) : 8;
  return {x.const_data_ptr<T>(),
          grid.const_data_ptr<A>(),
          x.stride(0),
          x.stride(1),
          x.stride(2),
          x.stride(3),
          channels,
          chunk,
          static_cast<int32_t>(ceil_divide(channels, chunk)),
          static_cast<uint32_t>(grid.size(1) * grid.size(2)),
          static_cast<int32_t>(x.size(2)),
          static_cast<int32_t>(x.size(3)),
          padding,
          axis_of<A>(x.size(3), align_corners),
          axis_of<A>(x.size(2), align_corners)};
}

// x in the type computed with where the grid is wider, as it is otherwise.
Tensor widened(const Tensor& x, const Tensor& grid) {
  return widest(x, grid) == ScalarType::Double ? torch::stable::to(x, ScalarType::Double) : x;
}

Tensor forward(const Tensor& x_, const Tensor& grid_, int64_t padding, bool align_corners) {
  check(x_, grid_, padding);
  check_devices("grid_sample", {x_, grid_});
  const OnDevice device(x_);
  const Tensor x = widened(x_, grid_), grid = converted(grid_, widest(x_, grid_));
  const Tensor output = empty_on(x, {x.size(0), x.size(1), grid.size(1), grid.size(2)}, x.scalar_type());
  if (output.numel() > 0)
    dispatch_floating(x.scalar_type(), "grid_sample", [&]<typename T>() {
      const Problem<T> p = problem_of<T>(x, grid, padding, align_corners);
      const int64_t per_sample = int64_t(p.points) * p.chunks;
      launch_items("grid_sample", &sample_points<T>, x.size(0), per_sample, device.stream(), p, output.mutable_data_ptr<T>(),
                   per_sample);
    });
  return torch::stable::to(output, x_.scalar_type());
}

template <typename T>
void image_gradient(Problem<T> p, const Tensor& grad, const Tensor& grad_x, cudaStream_t stream) {
  const char* name = "grid_sample_backward";
  const int64_t batch = grad_x.size(0), per_sample = int64_t(p.points) * p.chunks;
  const T* g = grad.const_data_ptr<T>();
  sum_exactly<T>(name, g, int64_t(p.channels) * p.points, bits_of_count(p.points),
                 {batch, p.channels, int64_t(p.height) * p.width, 0}, grad_x, stream, [&](const Sums<Compute<T>>& sums) {
                   launch_items(name, &scatter<T>, batch, per_sample, stream, p, g, sums, per_sample);
                 });
}

std::tuple<Tensor, Tensor> backward(const Tensor& grad_, const Tensor& x_, const Tensor& grid_, int64_t padding, bool align_corners,
                                    bool need_x, bool need_grid) {
  check(x_, grid_, padding);
  STD_TORCH_CHECK(grad_.dim() == 4 && grad_.size(0) == x_.size(0) && grad_.size(1) == x_.size(1) &&
                      grad_.size(2) == grid_.size(1) && grad_.size(3) == grid_.size(2),
                  "grid_sample_backward: grad does not fit x and grid");
  check_devices("grid_sample_backward", {grad_, x_, grid_});
  const OnDevice device(x_);
  const Tensor x = widened(x_, grid_), grid = converted(grid_, widest(x_, grid_));
  const Tensor grad = converted(grad_, x.scalar_type());
  const Tensor grad_x = empty_on(x, need_x ? sizes_of(x) : std::vector<int64_t>{0}, x.scalar_type());
  const Tensor grad_grid = empty_on(x, need_grid ? sizes_of(grid) : std::vector<int64_t>{0}, grid.scalar_type());
  if (grad.numel() == 0) {
    clear(grad_x, device.stream());
    clear(grad_grid, device.stream());
  } else {
    dispatch_floating(x.scalar_type(), "grid_sample_backward", [&]<typename T>() {
      Problem<T> p = problem_of<T>(x, grid, padding, align_corners);
      if (need_x) image_gradient<T>(p, grad, grad_x, device.stream());
      if (need_grid)
        launch_items("grid_sample_backward", &grid_gradient<T>, x.size(0), p.points, device.stream(), p, grad.const_data_ptr<T>(),
                     grad_grid.mutable_data_ptr<Compute<T>>(), p.points);
    });
  }
  return {torch::stable::to(grad_x, x_.scalar_type()), torch::stable::to(grad_grid, grid_.scalar_type())};
}

}  // namespace ggf::cuda::grid_sample

GGF_CUDA_KERNELS(m) {
  m.impl("grid_sample", TORCH_BOX(&ggf::cuda::grid_sample::forward));
  m.impl("grid_sample_backward", TORCH_BOX(&ggf::cuda::grid_sample::backward));
}
