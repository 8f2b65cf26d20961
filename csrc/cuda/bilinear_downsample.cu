// SPDX-License-Identifier: Apache-2.0
// Tent filter with reflected borders at a stride, and its adjoint. Maths: gangealing_fast/ops/bilinear_downsample.py.
//
// One element of the result per thread, straight from the image: upfirdn2d would need a padded copy of it first.
#include "launch.cuh"

namespace ggf::cuda::bilinear_downsample {

template <typename T>
struct Problem {
  const T* source;
  T* target;
  int32_t channels, height, width, out_height, out_width, stride;  // height, width: of the large image
};

GGF_INLINE int32_t reflect(int32_t i, int32_t size) { return i < 0 ? -i : i >= size ? 2 * (size - 1) - i : i; }

// Tap k of 2 * stride, as a multiple of 1 / (2 * stride^2).
GGF_INLINE int32_t tent(int32_t k, int32_t stride) { return 2 * (k < stride ? k : 2 * stride - 1 - k) + 1; }

template <typename T>
__global__ void __launch_bounds__(block_threads)
    downsample(Problem<T> p, uint32_t per_image, int64_t first_image, uint32_t threads) {
  using A = Compute<T>;
  const uint32_t thread = blockIdx.x * block_threads + threadIdx.x;
  if (thread >= threads) return;
  const uint32_t in_image = thread % per_image, row_elements = p.out_width * p.channels;
  const int32_t channel = in_image % p.channels;
  const int32_t left = static_cast<int32_t>(in_image % row_elements / p.channels) * p.stride - p.stride / 2;
  const int32_t top = static_cast<int32_t>(in_image / row_elements) * p.stride - p.stride / 2;
  const int64_t image = first_image + thread / per_image;
  const T* x = p.source + image * p.height * p.width * p.channels + channel;
  A sum = 0;
  for (int32_t k = 0; k < 2 * p.stride; ++k) {
    const T* row = x + static_cast<int64_t>(reflect(top + k, p.height)) * p.width * p.channels;
    A across = 0;
    for (int32_t l = 0; l < 2 * p.stride; ++l)
      across += tent(l, p.stride) * load(row[static_cast<int64_t>(reflect(left + l, p.width)) * p.channels]);
    sum += tent(k, p.stride) * across;
  }
  const A scale = A(1) / (2 * p.stride * p.stride);
  p.target[image * per_image + in_image] = store<T>(sum * scale * scale);
}

// The small index and the tap through which `position` of the large image goes into a small one: two directly, two reflected
// at the low end, two at the high end. A tap of 0 stands for none.
struct Use {
  int32_t index, tap;
};

GGF_INLINE Use use_of(int32_t which, int32_t position, int32_t size, int32_t out_size, int32_t stride) {
  const int32_t place = which / 2 == 0 ? position : which / 2 == 1 ? -position : 2 * (size - 1) - position;
  const bool distinct = which / 2 == 0 || (which / 2 == 1 ? position > 0 : position < size - 1);
  const int32_t t = place + stride / 2, index = t / stride - which % 2;
  const bool valid = distinct && t >= 0 && index >= 0 && index < out_size;
  return {valid ? index : 0, valid ? tent(t - index * stride, stride) : 0};
}

template <typename T>
__global__ void __launch_bounds__(block_threads) adjoint(Problem<T> p, uint32_t per_image, int64_t first_image, uint32_t threads) {
  using A = Compute<T>;
  const uint32_t thread = blockIdx.x * block_threads + threadIdx.x;
  if (thread >= threads) return;
  const uint32_t in_image = thread % per_image, row_elements = p.width * p.channels;
  const int32_t channel = in_image % p.channels, column = in_image % row_elements / p.channels;
  const int32_t row = in_image / row_elements;
  const int64_t image = first_image + thread / per_image;
  const T* grad = p.source + image * p.out_height * p.out_width * p.channels + channel;
  A sum = 0;
#pragma unroll 1
  for (int32_t i = 0; i < 6; ++i) {
    const Use vertical = use_of(i, row, p.height, p.out_height, p.stride);
    if (vertical.tap == 0) continue;
    const T* source = grad + static_cast<int64_t>(vertical.index) * p.out_width * p.channels;
    A across = 0;
#pragma unroll 1
    for (int32_t j = 0; j < 6; ++j) {
      const Use horizontal = use_of(j, column, p.width, p.out_width, p.stride);
      if (horizontal.tap != 0) across += horizontal.tap * load(source[static_cast<int64_t>(horizontal.index) * p.channels]);
    }
    sum += vertical.tap * across;
  }
  const A scale = A(1) / (2 * p.stride * p.stride);
  p.target[image * per_image + in_image] = store<T>(sum * scale * scale);
}

void check(int64_t height, int64_t width, int64_t channels, int64_t stride) {
  STD_TORCH_CHECK(stride >= 2 && stride % 2 == 0 && stride < (1 << 14) && height >= stride && width >= stride,
                  "bilinear_downsample: stride must be even and at most the size of the image");
  STD_TORCH_CHECK(height < (1 << 24) && width < (1 << 24) && width * channels <= INT32_MAX,
                  "bilinear_downsample: an axis must have fewer than 2^24 pixels, a row fewer than 2^31 elements");
}

template <typename T>
Problem<T> problem_of(const Tensor& source, const Tensor& target, int64_t channels, int64_t height, int64_t width, int64_t stride) {
  return {source.const_data_ptr<T>(),           target.mutable_data_ptr<T>(), static_cast<int32_t>(channels),
          static_cast<int32_t>(height),         static_cast<int32_t>(width),  static_cast<int32_t>(height / stride),
          static_cast<int32_t>(width / stride), static_cast<int32_t>(stride)};
}

Tensor forward(const Tensor& x_, int64_t stride) {
  STD_TORCH_CHECK(x_.dim() == 4, "bilinear_downsample: x must be [N, C, H, W]");
  const bool channels_last = is_channels_last(x_);
  const int64_t n = x_.size(0), c = x_.size(1), height = x_.size(2), width = x_.size(3);
  const int64_t channels = channels_last ? c : 1;
  check(height, width, channels, stride);
  const OnDevice device(x_);
  const Tensor x = in_layout(x_, channels_last);
  const Tensor y = empty_on(x, {n, c, height / stride, width / stride}, x.scalar_type(), channels_last);
  dispatch_floating(x.scalar_type(), "bilinear_downsample", [&]<typename T>() {
    const int64_t per_image = height / stride * (width / stride) * channels;
    launch_items("bilinear_downsample", &downsample<T>, channels_last ? n : n * c, per_image, device.stream(),
                 problem_of<T>(x, y, channels, height, width, stride), per_image);
  });
  return y;
}

Tensor backward(const Tensor& grad_, int64_t height, int64_t width, int64_t stride) {
  STD_TORCH_CHECK(grad_.dim() == 4, "bilinear_downsample_backward: grad must be [N, C, h, w]");
  const bool channels_last = is_channels_last(grad_);
  const int64_t n = grad_.size(0), c = grad_.size(1), channels = channels_last ? c : 1;
  check(height, width, channels, stride);
  STD_TORCH_CHECK(grad_.size(2) == height / stride && grad_.size(3) == width / stride,
                  "bilinear_downsample_backward: grad does not fit the size of the image");
  const OnDevice device(grad_);
  const Tensor grad = in_layout(grad_, channels_last);
  const Tensor result = empty_on(grad, {n, c, height, width}, grad.scalar_type(), channels_last);
  dispatch_floating(grad.scalar_type(), "bilinear_downsample_backward", [&]<typename T>() {
    const int64_t per_image = height * width * channels;
    launch_items("bilinear_downsample_backward", &adjoint<T>, channels_last ? n : n * c, per_image, device.stream(),
                 problem_of<T>(grad, result, channels, height, width, stride), per_image);
  });
  return result;
}

}  // namespace ggf::cuda::bilinear_downsample

GGF_CUDA_KERNELS(m) {
  m.impl("bilinear_downsample", TORCH_BOX(&ggf::cuda::bilinear_downsample::forward));
  m.impl("bilinear_downsample_backward", TORCH_BOX(&ggf::cuda::bilinear_downsample::backward));
}
