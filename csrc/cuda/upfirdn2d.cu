// SPDX-License-Identifier: Apache-2.0
// Upsample, filter, downsample. Maths: gangealing_fast/ops/upfirdn2d.py.
//
// The image is a matrix of rows of width * channels elements (a contiguous plane is an image of one channel). With a 4x4 filter
// a thread makes a column of output rows from registers: each input row that it needs is read once, as the 4 (or, upsampling,
// 2) neighbours that its taps meet, and goes into every output row at hand. Neighbouring threads read neighbouring elements,
// so that all but the first reading of an element hits the cache. Channels-last threads handle 16 bytes of channels.
#include "launch.cuh"

namespace ggf::cuda::upfirdn2d {

template <typename T>
struct Problem {
  const T* x;
  T* y;
  const Compute<T>* f;  // [fh, fw]
  int32_t channels;     // in units of what a thread handles
  int32_t height, width, out_height, out_width;
  int32_t fh, fw, up, down, px, py;
  Compute<T> gain;
  bool mirrored;
};

// The filter as correlated, times the gain.
template <typename T>
GGF_INLINE Compute<T> tap(const Problem<T>& p, int32_t row, int32_t column) {
  return p.f[p.mirrored ? row * p.fw + column : (p.fh - 1 - row) * p.fw + (p.fw - 1 - column)] * p.gain;
}

GGF_INLINE int32_t divide_up(int32_t a, int32_t b) { return a > 0 ? (a - 1) / b + 1 : -(-a / b); }

template <typename T, int size>
struct alignas(size * sizeof(T)) Vector {
  T values[size];
};

// Output rows of one thread.
template <int vector>
inline constexpr int rows = vector > 4 ? 4 : 8;

// 4x4 filters. phase: which tap the first input row of an even output row meets, where up is 2.
template <typename T, int vector, int up, int down, int phase>
__global__ void __launch_bounds__(block_threads)
    filter_4x4(Problem<T> p, uint32_t per_image, int64_t first_image, uint32_t threads) {
  using A = Compute<T>;
  constexpr int across = 4 / up, height = rows<vector>, inputs = ((height - 1) * down + 3 - phase) / up + 1;
  const uint32_t thread = blockIdx.x * block_threads + threadIdx.x;
  if (thread >= threads) return;
  const uint32_t row_elements = p.out_width * p.channels, in_image = thread % per_image;
  const uint32_t in_row = in_image % row_elements;
  const int32_t top = in_image / row_elements * height;
  const int32_t column = in_row / p.channels, channel = in_row % p.channels;
  const int32_t start = column * down - p.px, left = up == 1 ? start : (start + 1) >> 1;
  const int32_t in_phase = left * up - start, upper = up == 1 ? top * down - p.py : (top - p.py + 1) >> 1;

  A taps[4][across];
  for (int k = 0; k < 4; ++k)
    for (int i = 0; i < across; ++i) taps[k][i] = tap(p, k, in_phase + i * up);

  const int64_t image = first_image + thread / per_image;
  const auto* x = reinterpret_cast<const Vector<T, vector>*>(p.x) + image * p.height * p.width * p.channels;
  A sums[height][vector] = {};
#pragma unroll
  for (int r = 0; r < inputs; ++r) {
    const int32_t row = upper + r;
    const bool inside = row >= 0 && row < p.height;
    const auto* source = x + static_cast<int64_t>(row) * p.width * p.channels + channel;
    A values[across][vector];
#pragma unroll
    for (int i = 0; i < across; ++i) {
      const bool valid = inside && left + i >= 0 && left + i < p.width;
      Vector<T, vector> read{};
      if (valid) read = source[static_cast<int64_t>(left + i) * p.channels];
#pragma unroll
      for (int v = 0; v < vector; ++v) values[i][v] = load(read.values[v]);
    }
#pragma unroll
    for (int o = 0; o < height; ++o) {
      const int k = phase + r * up - o * down;
      if (k < 0 || k > 3) continue;
#pragma unroll
      for (int i = 0; i < across; ++i)
#pragma unroll
        for (int v = 0; v < vector; ++v) sums[o][v] += taps[k][i] * values[i][v];
    }
  }
  auto* y = reinterpret_cast<Vector<T, vector>*>(p.y) + (image * p.out_height + top) * row_elements + in_row;
#pragma unroll
  for (int o = 0; o < height; ++o) {
    if (top + o >= p.out_height) break;
    Vector<T, vector> result;
#pragma unroll
    for (int v = 0; v < vector; ++v) result.values[v] = store<T>(sums[o][v]);
    y[static_cast<int64_t>(o) * row_elements] = result;
  }
}

// Any filter and factors; one output element per thread.
template <typename T>
__global__ void __launch_bounds__(block_threads, 4)  // without the 4 the compiler spills rather than take 33 registers
    filter_any(Problem<T> p, uint32_t per_image, int64_t first_image, uint32_t threads) {
  using A = Compute<T>;
  const uint32_t thread = blockIdx.x * block_threads + threadIdx.x;
  if (thread >= threads) return;
  const uint32_t in_image = thread % per_image, row_elements = p.out_width * p.channels;
  const int32_t channel = in_image % p.channels, column = in_image % row_elements / p.channels;
  const int32_t start_x = column * p.down - p.px, left = divide_up(start_x, p.up);
  const int32_t start_y = static_cast<int32_t>(in_image / row_elements) * p.down - p.py, top = divide_up(start_y, p.up);
  const int64_t image = first_image + thread / per_image;
  const T* x = p.x + image * p.height * p.width * p.channels + channel;
  A sum = 0;
  for (int32_t row = top, k = top * p.up - start_y; k < p.fh; ++row, k += p.up) {
    if (row < 0 || row >= p.height) continue;
    const T* source = x + static_cast<int64_t>(row) * p.width * p.channels;
    for (int32_t i = left, l = left * p.up - start_x; l < p.fw; ++i, l += p.up)
      if (i >= 0 && i < p.width) sum += tap(p, k, l) * load(source[static_cast<int64_t>(i) * p.channels]);
  }
  p.y[image * per_image + in_image] = store<T>(sum);
}

template <typename T, int vector, int up, int down, int phase>
void launch_4x4(Problem<T> p, int64_t images, cudaStream_t stream) {
  p.channels /= vector;
  const int64_t per_image = ceil_divide(p.out_height, rows<vector>) * p.out_width * p.channels;
  launch_items("upfirdn2d", &filter_4x4<T, vector, up, down, phase>, images, per_image, stream, p, per_image);
}

template <typename T, int vector>
void launch_4x4(const Problem<T>& p, int64_t images, cudaStream_t stream) {
  if (p.up == 1 && p.down == 1) return launch_4x4<T, vector, 1, 1, 0>(p, images, stream);
  if (p.up == 1) return launch_4x4<T, vector, 1, 2, 0>(p, images, stream);
  if (p.py % 2 == 0) return launch_4x4<T, vector, 2, 1, 0>(p, images, stream);
  return launch_4x4<T, vector, 2, 1, 1>(p, images, stream);
}

template <typename T>
void launch_filter(const Problem<T>& p, int64_t images, cudaStream_t stream) {
  if constexpr (!std::is_same_v<T, double>) {
    constexpr int vector = 16 / sizeof(T);
    const bool usual = p.fh == 4 && p.fw == 4 && p.up * p.down <= 2;
    const bool aligned = (reinterpret_cast<uintptr_t>(p.x) | reinterpret_cast<uintptr_t>(p.y)) % 16 == 0;
    if (usual && aligned && p.channels % vector == 0) return launch_4x4<T, vector>(p, images, stream);
    if (usual) return launch_4x4<T, 1>(p, images, stream);
  }
  const int64_t per_image = int64_t(p.out_height) * p.out_width * p.channels;
  launch_items("upfirdn2d", &filter_any<T>, images, per_image, stream, p, per_image);
}

Tensor forward(const Tensor& x_, const Tensor& f_, int64_t up, int64_t down, int64_t px0, int64_t px1, int64_t py0, int64_t py1,
               double gain, bool mirrored) {
  STD_TORCH_CHECK(x_.dim() == 4 && f_.dim() == 2 && f_.numel() > 0, "upfirdn2d: x must be [N, C, H, W], f [fh, fw]");
  constexpr int64_t bound = 1 << 24;
  for (const int64_t size : {x_.size(2), x_.size(3), f_.size(0), f_.size(1), px0, px1, py0, py1, up, down})
    STD_TORCH_CHECK(size > -bound && size < bound, "upfirdn2d: sizes, factors and padding must be below 2^24");
  STD_TORCH_CHECK(up >= 1 && down >= 1 && up < 64 && down < 64, "upfirdn2d: up and down must be between 1 and 63");
  check_devices("upfirdn2d", {x_, f_});
  const OnDevice device(x_);
  const bool channels_last = is_channels_last(x_);
  const Tensor x = in_layout(x_, channels_last);
  const int64_t height = x.size(2), width = x.size(3), fh = f_.size(0), fw = f_.size(1);
  const int64_t out_height = floor_divide(height * up + py0 + py1 - fh, down) + 1;
  const int64_t out_width = floor_divide(width * up + px0 + px1 - fw, down) + 1;
  STD_TORCH_CHECK(out_height >= 1 && out_width >= 1, "upfirdn2d: the output would be empty");
  const Tensor y = empty_on(x, {x.size(0), x.size(1), out_height, out_width}, x.scalar_type(), channels_last);
  if (y.numel() == 0) return y;
  const int64_t channels = channels_last ? x.size(1) : 1;
  STD_TORCH_CHECK(out_width * channels <= INT32_MAX, "upfirdn2d: one row of the output is too large");
  dispatch_floating(x.scalar_type(), "upfirdn2d", [&]<typename T>() {
    const Tensor f = torch::stable::contiguous(torch::stable::to(f_, compute_scalar_type<T>));
    const Problem<T> p{x.const_data_ptr<T>(),
                       y.mutable_data_ptr<T>(),
                       f.const_data_ptr<Compute<T>>(),
                       static_cast<int32_t>(channels),
                       static_cast<int32_t>(height),
                       static_cast<int32_t>(width),
                       static_cast<int32_t>(out_height),
                       static_cast<int32_t>(out_width),
                       static_cast<int32_t>(fh),
                       static_cast<int32_t>(fw),
                       static_cast<int32_t>(up),
                       static_cast<int32_t>(down),
                       static_cast<int32_t>(px0),
                       static_cast<int32_t>(py0),
                       static_cast<Compute<T>>(gain),
                       mirrored};
    launch_filter<T>(p, channels_last ? x.size(0) : x.size(0) * x.size(1), device.stream());
  });
  return y;
}

}  // namespace ggf::cuda::upfirdn2d

GGF_CUDA_KERNELS(m) { m.impl("upfirdn2d", TORCH_BOX(&ggf::cuda::upfirdn2d::forward)); }
