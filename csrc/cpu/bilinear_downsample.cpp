// SPDX-License-Identifier: Apache-2.0
// Tent filter with reflected borders at a stride, and its adjoint. Maths: gangealing_fast/ops/bilinear_downsample.py.
//
// As in upfirdn2d.cpp, an output row is a vertical pass over whole rows and a horizontal pass in a buffer.
#include "levels.h"
#include "rows.h"
#include "writer.h"

#include <algorithm>

namespace ggf::bilinear_downsample {

template <typename A>
struct Plan {
  int64_t channels, height, width, out_height, out_width, stride, pad;  // height, width: of the large image
  std::vector<A> taps;                                                  // [2 * stride]
};

GGF_INLINE int64_t reflect(int64_t i, int64_t size) { return i < 0 ? -i : i >= size ? 2 * (size - 1) - i : i; }

// The horizontal passes know the usual numbers of channels C and strides S beforehand; 0 stands for any other.
template <typename T, int64_t C, int64_t S>
GGF_INLINE void downsample_row(const Plan<Compute<T>>& p, const Compute<T>* GGF_RESTRICT v, Compute<T>* GGF_RESTRICT scratch,
                               T* GGF_RESTRICT out) {
  using A = Compute<T>;
  const int64_t channels = C ? C : p.channels, stride = S ? S : p.stride;
  const A* GGF_RESTRICT taps = p.taps.data();
  A fixed[C ? C : 1];
  A* GGF_RESTRICT sum = C ? fixed : scratch;
  for (int64_t i = 0; i < p.out_width; ++i) {
    const A* GGF_RESTRICT w = v + i * stride * channels;
    for (int64_t c = 0; c < channels; ++c) sum[c] = taps[0] * w[c];
    for (int64_t k = 1; k < 2 * stride; ++k)
      for (int64_t c = 0; c < channels; ++c) sum[c] += taps[k] * w[k * channels + c];
    for (int64_t c = 0; c < channels; ++c) out[i * channels + c] = store<T>(sum[c]);
  }
}

// One row of the adjoint, but for its edge columns. `small` has a column of zeros on either side. What tap r of small column i
// reads is column i * stride + r of the padded image.
template <typename T, int64_t C, int64_t S>
GGF_INLINE void spread_row(const Plan<Compute<T>>& p, const Compute<T>* GGF_RESTRICT small, T* GGF_RESTRICT out) {
  const int64_t channels = C ? C : p.channels, stride = S ? S : p.stride;
  const Compute<T>* GGF_RESTRICT taps = p.taps.data();
  for (int64_t i = 1; i < p.out_width; ++i)
    for (int64_t r = 0; r < stride; ++r)
      for (int64_t c = 0; c < channels; ++c)
        out[(i * stride + r - p.pad) * channels + c] =
            store<T>(taps[r] * small[(i + 1) * channels + c] + taps[r + stride] * small[i * channels + c]);
}

// Columns [begin, end) of a row of the adjoint, which may also have been read by reflection or not at all.
template <typename T>
GGF_INLINE void spread_edge(const Plan<Compute<T>>& p, const Compute<T>* small, int64_t begin, int64_t end, T* out) {
  using A = Compute<T>;
  const int64_t C = p.channels, s = p.stride, last = p.width - 1;
  for (int64_t j = begin; j < end; ++j)
    for (int64_t c = 0; c < C; ++c) {
      const auto padded = [&](int64_t q) {
        const int64_t i = q / s, r = q % s;
        return i > p.out_width ? A(0) : p.taps[r] * small[(i + 1) * C + c] + p.taps[r + s] * small[i * C + c];
      };
      A sum = padded(j + p.pad);
      if (j > 0 && j <= p.pad) sum += padded(p.pad - j);
      if (j < last && j >= last - p.pad) sum += padded(2 * last - j + p.pad);
      out[j * C + c] = store<T>(sum);
    }
}

// Rows whose vertical passes run before the first one's horizontal pass, which would otherwise wait for stores still under way.
inline constexpr int64_t batch = 4;

// Rows [begin, end) of the small images.
template <typename T>
GGF_INLINE void downsample_rows(const Plan<Compute<T>>& p, const T* x, T* y, int64_t begin, int64_t end) {
  using A = Compute<T>;
  const int64_t C = p.channels, s = p.stride, wide = (p.width + 2 * p.pad) * C;
  std::vector<A> buffer(batch * wide), scratch(C);
  std::vector<const T*> rows(2 * s);
  for (int64_t top = begin; top < end; top += batch) {
    const int64_t size = std::min(batch, end - top);
    for (int64_t b = 0; b < size; ++b) {
      const int64_t row = top + b;
      const T* image = x + row / p.out_height * p.height * p.width * C;
      for (int64_t k = 0; k < 2 * s; ++k) rows[k] = image + reflect(row % p.out_height * s + k - p.pad, p.height) * p.width * C;
      A* inner = buffer.data() + b * wide + p.pad * C;
      add_rows<T>(rows.data(), p.taps.data(), 2 * s, 0, p.width * C, inner);
      for (int64_t j = 1; j <= p.pad; ++j) {
        std::copy_n(inner + j * C, C, inner - j * C);
        std::copy_n(inner + (p.width - 1 - j) * C, C, inner + (p.width - 1 + j) * C);
      }
    }
    for (int64_t b = 0; b < size; ++b) {
      const A* row = buffer.data() + b * wide;
      T* out = y + (top + b) * p.out_width * C;
      if (C == 1 && s == 2)
        downsample_row<T, 1, 2>(p, row, scratch.data(), out);
      else if (C == 3 && s == 2)
        downsample_row<T, 3, 2>(p, row, scratch.data(), out);
      else if (C == 1 && s == 4)
        downsample_row<T, 1, 4>(p, row, scratch.data(), out);
      else if (C == 3 && s == 4)
        downsample_row<T, 3, 4>(p, row, scratch.data(), out);
      else
        downsample_row<T, 0, 0>(p, row, scratch.data(), out);
    }
  }
}

// Rows [begin, end) of the large images: each gathers the small rows that it went into, directly or by reflection.
template <typename T>
GGF_INLINE void adjoint_rows(const Plan<Compute<T>>& p, const T* grad, T* result, int64_t begin, int64_t end) {
  using A = Compute<T>;
  const int64_t C = p.channels, s = p.stride, narrow = (p.out_width + 2) * C;
  // Columns that one small column on either side read, and nothing by reflection, are [left, right).
  const int64_t left = std::min(p.width, std::max(s - p.pad, p.pad + 1));
  const int64_t right = std::max(left, std::min(p.out_width * s - p.pad, p.width - 1 - p.pad));
  std::vector<A> buffer(batch * narrow);
  const T* rows[8];  // at most two small rows for each of three places
  A weights[8];
  for (int64_t top = begin; top < end; top += batch) {
    const int64_t size = std::min(batch, end - top);
    for (int64_t b = 0; b < size; ++b) {
      const int64_t row = top + b, position = row % p.height;
      const T* image = grad + row / p.height * p.out_height * p.out_width * C;
      const int64_t places[3] = {position, -position, 2 * (p.height - 1) - position};
      const bool distinct[3] = {true, position > 0, position < p.height - 1};
      int64_t count = 0;
      std::fill(rows, rows + 8, image);
      for (int64_t place = 0; place < 3; ++place) {
        const int64_t t = places[place] + p.pad;
        if (!distinct[place] || t < 0 || t >= p.height + 2 * p.pad) continue;
        for (int64_t i = std::max<int64_t>(0, t / s - 1); i <= std::min(p.out_height - 1, t / s); ++i) {
          rows[count] = image + i * p.out_width * C;
          weights[count++] = p.taps[t - i * s];
        }
      }
      add_rows<T>(rows, weights, count, 0, p.out_width * C, buffer.data() + b * narrow + C);
    }
    for (int64_t b = 0; b < size; ++b) {
      const A* small = buffer.data() + b * narrow;
      T* out = result + (top + b) * p.width * C;
      claim_ahead(out, p.width * C);
      if (C == 1 && s == 2)
        spread_row<T, 1, 2>(p, small, out);
      else if (C == 3 && s == 2)
        spread_row<T, 3, 2>(p, small, out);
      else if (C == 1 && s == 4)
        spread_row<T, 1, 4>(p, small, out);
      else if (C == 3 && s == 4)
        spread_row<T, 3, 4>(p, small, out);
      else
        spread_row<T, 0, 0>(p, small, out);
      spread_edge<T>(p, small, 0, left, out);
      spread_edge<T>(p, small, right, p.width, out);
    }
  }
}

template <typename T>
Plan<Compute<T>> plan(int64_t channels, int64_t height, int64_t width, int64_t stride) {
  using A = Compute<T>;
  const int64_t pad = stride / 2;
  Plan<A> p{channels, height, width, height / stride, width / stride, stride, pad, std::vector<A>(2 * stride)};
  for (int64_t k = 0; k < stride; ++k)
    p.taps[k] = p.taps[2 * stride - 1 - k] = static_cast<A>(double(2 * k + 1) / double(2 * stride * stride));
  return p;
}

void check(int64_t height, int64_t width, int64_t stride) {
  STD_TORCH_CHECK(stride >= 2 && stride % 2 == 0 && height >= stride && width >= stride,
                  "bilinear_downsample: stride must be even and at most the size of the image");
}

Tensor forward(const Tensor& x_, int64_t stride) {
  STD_TORCH_CHECK(x_.dim() == 4, "bilinear_downsample: x must be [N, C, H, W]");
  check(x_.size(2), x_.size(3), stride);
  const bool channels_last = is_channels_last(x_);
  const Tensor x = in_layout(x_, channels_last);
  const int64_t n = x.size(0), c = x.size(1), height = x.size(2), width = x.size(3);
  const Tensor y = empty({n, c, height / stride, width / stride}, x.scalar_type(), channels_last);
  if (y.numel() == 0) return y;
  dispatch_floating(x.scalar_type(), "bilinear_downsample", [&]<typename T>() {
    const auto p = plan<T>(channels_last ? c : 1, height, width, stride);
    const T* source = x.const_data_ptr<T>();
    T* target = y.mutable_data_ptr<T>();
    parallel_for(0, (channels_last ? n : n * c) * p.out_height, grain(p.width * p.channels * stride),
                 [&](int64_t begin, int64_t end) { at_level<downsample_rows<T>>(p, source, target, begin, end); });
  });
  return y;
}

Tensor backward(const Tensor& grad_, int64_t height, int64_t width, int64_t stride) {
  STD_TORCH_CHECK(grad_.dim() == 4, "bilinear_downsample_backward: grad must be [N, C, h, w]");
  check(height, width, stride);
  STD_TORCH_CHECK(grad_.size(2) == height / stride && grad_.size(3) == width / stride,
                  "bilinear_downsample_backward: grad does not fit the size of the image");
  const bool channels_last = is_channels_last(grad_);
  const Tensor grad = in_layout(grad_, channels_last);
  const int64_t n = grad.size(0), c = grad.size(1);
  const Tensor result = empty({n, c, height, width}, grad.scalar_type(), channels_last);
  if (result.numel() == 0) return result;
  dispatch_floating(grad.scalar_type(), "bilinear_downsample_backward", [&]<typename T>() {
    const auto p = plan<T>(channels_last ? c : 1, height, width, stride);
    const T* source = grad.const_data_ptr<T>();
    T* target = result.mutable_data_ptr<T>();
    parallel_for(0, (channels_last ? n : n * c) * height, grain(p.width * p.channels * 2),
                 [&](int64_t begin, int64_t end) { at_level<adjoint_rows<T>>(p, source, target, begin, end); });
  });
  return result;
}

}  // namespace ggf::bilinear_downsample

STABLE_TORCH_LIBRARY_IMPL(gangealing_fast, CPU, m) {
  m.impl("bilinear_downsample", TORCH_BOX(&ggf::bilinear_downsample::forward));
  m.impl("bilinear_downsample_backward", TORCH_BOX(&ggf::bilinear_downsample::backward));
}
