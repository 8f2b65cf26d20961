// SPDX-License-Identifier: Apache-2.0
// y = gain * lrelu(x + noise * strength + b), and its backward from y alone. Maths: gangealing_fast/ops/bias_act.py.
//
// Both work on rows of contiguous elements: contiguous tensors have N*C rows of S positions with one bias each,
// channels-last ones N*S rows of C channels with one noise value each. Sums are taken over fixed pieces and then in order, so
// that the result does not depend on the number of threads.
#include "activation.h"
#include "levels.h"
#include "writer.h"

#include <algorithm>
#include <tuple>

namespace ggf::bias_act {

// Bytes from which on results go past the caches: twice as many as elsewhere, for the backward reads what the forward wrote.
inline constexpr int64_t beyond_reuse = 2 * beyond_caches;

template <typename T>
struct Forward {
  using A = Compute<T>;
  const T* x;
  T* y;
  const A* bias;   // [C] or null
  const A* noise;  // [N or 1, S] or null
  A strength;
  int64_t channels, positions, noise_stride;  // noise_stride: 0 where all samples share the noise
  A slope, gain;
  int64_t total;  // elements of y
};

template <typename T>
GGF_INLINE void forward_planes(const Forward<T>& p, int64_t begin, int64_t end) {
  using A = Compute<T>;
  const A positive = p.gain, negative = p.gain * p.slope;
  Writer<T> writer(p.y + begin * p.positions, p.total, beyond_reuse);
  for (int64_t plane = begin; plane < end; ++plane) {
    const A bias = p.bias ? p.bias[plane % p.channels] : A(0), strength = p.strength;
    for (int64_t first = 0; first < p.positions; first += Writer<T>::step) {
      const int64_t count = std::min(p.positions - first, Writer<T>::step);
      const T* GGF_RESTRICT x = p.x + plane * p.positions + first;
      T* GGF_RESTRICT y = writer.room();
      fetch_ahead(x, count);
      if (p.noise) {
        const A* GGF_RESTRICT noise = p.noise + plane / p.channels * p.noise_stride + first;
        for (int64_t i = 0; i < count; ++i) y[i] = store_activated<T>(load(x[i]) + noise[i] * strength + bias, positive, negative);
      } else {
        for (int64_t i = 0; i < count; ++i) y[i] = store_activated<T>(load(x[i]) + bias, positive, negative);
      }
      writer.advance(count);
    }
  }
  writer.finish();
}

template <typename T>
GGF_INLINE void forward_pixels(const Forward<T>& p, int64_t begin, int64_t end) {
  using A = Compute<T>;
  const A positive = p.gain, negative = p.gain * p.slope;
  Writer<T> writer(p.y + begin * p.channels, p.total, beyond_reuse);
  int64_t position = begin % p.positions;
  const A* noise = p.noise ? p.noise + begin / p.positions * p.noise_stride : nullptr;
  for (int64_t pixel = begin; pixel < end; ++pixel) {
    const A shift = noise ? noise[position] * p.strength : A(0);
    for (int64_t first = 0; first < p.channels; first += Writer<T>::step) {
      const int64_t count = std::min(p.channels - first, Writer<T>::step);
      const T* GGF_RESTRICT x = p.x + pixel * p.channels + first;
      T* GGF_RESTRICT y = writer.room();
      fetch_ahead(x, count);
      if (p.bias) {
        const A* GGF_RESTRICT bias = p.bias + first;
        for (int64_t c = 0; c < count; ++c) y[c] = store_activated<T>(load(x[c]) + shift + bias[c], positive, negative);
      } else {
        for (int64_t c = 0; c < count; ++c) y[c] = store_activated<T>(load(x[c]) + shift, positive, negative);
      }
      writer.advance(count);
    }
    if (++position == p.positions) {
      position = 0;
      if (noise) noise += p.noise_stride;
    }
  }
  writer.finish();
}

Tensor forward(const Tensor& x_, const std::optional<Tensor>& b_, const std::optional<Tensor>& noise_,
               const std::optional<Tensor>& strength_, double slope, double gain) {
  STD_TORCH_CHECK(x_.dim() >= 2, "bias_act: x must have at least two dimensions");
  // A matrix [N, C] is a channels-last image of one pixel.
  const bool channels_last = x_.dim() == 2 || is_channels_last(x_);
  const Tensor x = in_layout(x_, channels_last && x_.dim() == 4);
  const Tensor y = empty(sizes_of(x), x.scalar_type(), channels_last && x.dim() == 4);
  const int64_t batch = x.size(0), channels = x.size(1);
  if (x.numel() == 0) return y;
  const int64_t positions = x.numel() / (batch * channels);
  dispatch_floating(x.scalar_type(), "bias_act", [&]<typename T>() {
    using A = Compute<T>;
    const std::optional<Tensor> b = b_ ? std::optional(torch::stable::contiguous(*b_)) : std::nullopt;
    const std::optional<Tensor> noise = noise_ ? std::optional(torch::stable::contiguous(*noise_)) : std::nullopt;
    STD_TORCH_CHECK(!b || b->numel() == channels, "bias_act: b must have one entry per channel");
    STD_TORCH_CHECK(
        !noise || (strength_ && strength_->numel() == 1 && (noise->numel() == positions || noise->numel() == batch * positions)),
        "bias_act: noise does not fit x");
    const Forward<T> p{x.const_data_ptr<T>(),
                       y.mutable_data_ptr<T>(),
                       b ? b->const_data_ptr<A>() : nullptr,
                       noise ? noise->const_data_ptr<A>() : nullptr,
                       noise ? *strength_->const_data_ptr<A>() : A(0),
                       channels,
                       positions,
                       noise && noise->numel() > positions ? positions : 0,
                       static_cast<A>(slope),
                       static_cast<A>(gain),
                       x.numel()};
    if (channels_last) {
      parallel_for(0, batch * positions, grain(channels),
                   [&](int64_t begin, int64_t end) { at_level<forward_pixels<T>>(p, begin, end); });
    } else {
      parallel_for(0, batch * channels, grain(positions),
                   [&](int64_t begin, int64_t end) { at_level<forward_planes<T>>(p, begin, end); });
    }
  });
  return y;
}

template <typename T>
struct Backward {
  using A = Compute<T>;
  const T* grad;
  const T* y;
  T* result;
  A* partial;  // contiguous: [N, C] sums over positions; channels-last: [pieces, C]; null where no bias is wanted
  A* plane;    // [N, S] sums over channels, or null
  int64_t channels, positions, pixels;
  A slope, gain;
};

// Running sums side by side: floating-point addition is not reordered by the compiler without leave.
template <typename A>
inline constexpr int64_t lanes = 64 / sizeof(A);

template <typename A>
GGF_INLINE A add_lanes(const A* sums) {
  A total = 0;
  for (int64_t lane = 0; lane < lanes<A>; ++lane) total += sums[lane];
  return total;
}

// result = grad * (was_positive(y) ? positive : negative) for `count` elements. Adds the results to `sums`, lane by lane, and to
// `partial`, element by element, as wanted.
template <bool sum, bool accumulate, typename T, typename A = Compute<T>>
GGF_INLINE void backward_run(const T* GGF_RESTRICT grad, const T* GGF_RESTRICT y, T* GGF_RESTRICT result, int64_t count, A positive,
                             A negative, A* GGF_RESTRICT sums, A* GGF_RESTRICT partial) {
  constexpr int64_t L = lanes<A>;
  const int64_t whole = sum ? count / L * L : 0;
  for (int64_t i = 0; i < whole; i += L)
    for (int64_t lane = 0; lane < L; ++lane) {
      const A own = load(grad[i + lane]), factor = was_positive(y[i + lane]) ? positive : negative, value = own * factor;
      result[i + lane] = store_product<T>(own, factor);
      sums[lane] += value;
      if constexpr (accumulate) partial[i + lane] += value;
    }
  for (int64_t i = whole; i < count; ++i) {
    const A own = load(grad[i]), factor = was_positive(y[i]) ? positive : negative, value = own * factor;
    result[i] = store_product<T>(own, factor);
    if constexpr (sum) sums[i - whole] += value;
    if constexpr (accumulate) partial[i] += value;
  }
}

template <typename T>
GGF_INLINE void backward_planes(const Backward<T>& p, int64_t begin, int64_t end) {
  using A = Compute<T>;
  const A positive = p.gain, negative = p.gain * p.slope;
  Writer<T> writer(p.result + begin * p.positions, p.pixels * p.channels, beyond_reuse);
  for (int64_t row = begin; row < end; ++row) {
    A sums[lanes<A>] = {};
    for (int64_t first = 0; first < p.positions; first += Writer<T>::step) {
      const int64_t count = std::min(p.positions - first, Writer<T>::step), at = row * p.positions + first;
      fetch_ahead(p.grad + at, count);
      fetch_ahead(p.y + at, count);
      A* none = nullptr;
      if (p.partial)
        backward_run<true, false>(p.grad + at, p.y + at, writer.room(), count, positive, negative, sums, none);
      else
        backward_run<false, false>(p.grad + at, p.y + at, writer.room(), count, positive, negative, sums, none);
      writer.advance(count);
    }
    if (p.partial) p.partial[row] = add_lanes(sums);
  }
  writer.finish();
}

// The sum over channels of a contiguous tensor, for samples and positions [begin, end) of one sample.
template <typename T>
GGF_INLINE void plane_sums(const Backward<T>& p, int64_t sample, int64_t begin, int64_t end) {
  using A = Compute<T>;
  const A positive = p.gain, negative = p.gain * p.slope;
  A* GGF_RESTRICT plane = p.plane + sample * p.positions;
  for (int64_t i = begin; i < end; ++i) plane[i] = 0;
  for (int64_t c = 0; c < p.channels; ++c) {
    const T* GGF_RESTRICT grad = p.grad + (sample * p.channels + c) * p.positions;
    const T* GGF_RESTRICT y = p.y + (sample * p.channels + c) * p.positions;
    for (int64_t i = begin; i < end; ++i) plane[i] += load(grad[i]) * (was_positive(y[i]) ? positive : negative);
  }
}

inline constexpr int64_t piece = 512;  // pixels whose channel sums are taken together

template <bool noise, bool bias, typename T>
GGF_INLINE void backward_pieces(const Backward<T>& p, int64_t begin, int64_t end) {
  using A = Compute<T>;
  const A positive = p.gain, negative = p.gain * p.slope;
  Writer<T> writer(p.result + begin * piece * p.channels, p.pixels * p.channels, beyond_reuse);
  for (int64_t part = begin; part < end; ++part) {
    A* partial = bias ? p.partial + part * p.channels : nullptr;
    if (bias) std::fill_n(partial, p.channels, A(0));
    const int64_t last = std::min(p.pixels, (part + 1) * piece);
    for (int64_t pixel = part * piece; pixel < last; ++pixel) {
      A sums[lanes<A>] = {};
      for (int64_t first = 0; first < p.channels; first += Writer<T>::step) {
        const int64_t count = std::min(p.channels - first, Writer<T>::step), at = pixel * p.channels + first;
        fetch_ahead(p.grad + at, count);
        fetch_ahead(p.y + at, count);
        backward_run<noise, bias>(p.grad + at, p.y + at, writer.room(), count, positive, negative, sums,
                                  bias ? partial + first : nullptr);
        writer.advance(count);
      }
      if (noise) p.plane[pixel] = add_lanes(sums);
    }
  }
  writer.finish();
}

template <typename T>
GGF_INLINE void backward_pixels(const Backward<T>& p, int64_t begin, int64_t end) {
  if (p.plane && p.partial)
    backward_pieces<true, true>(p, begin, end);
  else if (p.plane)
    backward_pieces<true, false>(p, begin, end);
  else if (p.partial)
    backward_pieces<false, true>(p, begin, end);
  else
    backward_pieces<false, false>(p, begin, end);
}

// Adds `rows` rows of `width` numbers in order.
template <typename A>
void add_rows(const A* GGF_RESTRICT source, A* GGF_RESTRICT target, int64_t rows, int64_t width) {
  for (int64_t i = 0; i < width; ++i) target[i] = 0;
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t i = 0; i < width; ++i) target[i] += source[row * width + i];
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad_, const Tensor& y_, double slope, double gain, bool need_bias,
                                            int64_t noise_batch) {
  const bool channels_last = y_.dim() == 2 || is_channels_last(y_);
  STD_TORCH_CHECK(y_.dim() >= 2 && sizes_of(grad_) == sizes_of(y_) && grad_.scalar_type() == y_.scalar_type(),
                  "bias_act_backward: grad and y must agree in shape and dtype");
  const Tensor y = in_layout(y_, channels_last && y_.dim() == 4);
  const Tensor grad = in_layout(grad_, channels_last && y_.dim() == 4);
  const Tensor result = empty(sizes_of(y), y.scalar_type(), channels_last && y.dim() == 4);
  const int64_t batch = y.size(0), channels = y.size(1);
  std::vector<int64_t> plane_size{0};
  if (noise_batch >= 0) {
    plane_size = sizes_of(y);
    plane_size[0] = noise_batch;
    plane_size[1] = 1;
  }
  return dispatch_floating(y.scalar_type(), "bias_act_backward", [&]<typename T>() {
    using A = Compute<T>;
    const Tensor bias = empty({need_bias ? channels : 0}, compute_scalar_type<T>);
    const Tensor plane = empty(plane_size, compute_scalar_type<T>);
    const int64_t elements = y.numel();
    if (elements == 0) {
      for (const Tensor* sum : {&bias, &plane}) std::fill_n(sum->template mutable_data_ptr<A>(), sum->numel(), A(0));
      return std::tuple(result, bias, plane);
    }
    const int64_t positions = elements / (batch * channels), pixels = batch * positions;
    const bool share = noise_batch == 1 && batch > 1;
    std::vector<A> own_plane(share ? pixels : 0);
    A* plane_data = noise_batch < 0 ? nullptr : share ? own_plane.data() : plane.template mutable_data_ptr<A>();
    const int64_t rows = channels_last ? ceil_divide(pixels, piece) : batch;
    std::vector<A> partial(need_bias ? rows * channels : 0);
    const Backward<T> p{grad.template const_data_ptr<T>(),
                        y.template const_data_ptr<T>(),
                        result.template mutable_data_ptr<T>(),
                        need_bias ? partial.data() : nullptr,
                        plane_data,
                        channels,
                        positions,
                        pixels,
                        static_cast<A>(slope),
                        static_cast<A>(gain)};
    if (channels_last) {
      parallel_for(0, rows, grain(piece * channels),
                   [&](int64_t begin, int64_t end) { at_level<backward_pixels<T>>(p, begin, end); });
    } else {
      parallel_for(0, batch * channels, grain(positions),
                   [&](int64_t begin, int64_t end) { at_level<backward_planes<T>>(p, begin, end); });
      if (plane_data)
        for (int64_t sample = 0; sample < batch; ++sample)
          parallel_for(0, positions, grain(channels),
                       [&](int64_t begin, int64_t end) { at_level<plane_sums<T>>(p, sample, begin, end); });
    }
    if (need_bias) add_rows(partial.data(), bias.template mutable_data_ptr<A>(), rows, channels);
    if (share) add_rows(own_plane.data(), plane.template mutable_data_ptr<A>(), batch, positions);
    return std::tuple(result, bias, plane);
  });
}

}  // namespace ggf::bias_act

STABLE_TORCH_LIBRARY_IMPL(gangealing_fast, CPU, m) {
  m.impl("bias_act", TORCH_BOX(&ggf::bias_act::forward));
  m.impl("bias_act_backward", TORCH_BOX(&ggf::bias_act::backward));
}
