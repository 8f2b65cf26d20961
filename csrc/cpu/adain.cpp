// SPDX-License-Identifier: Apache-2.0
// Instance normalisation and modulation, and its backward. Maths: gangealing_fast/ops/adain.py.
//
// Contiguous tensors have a row of positions per sample and channel; channels-last ones are taken in strips of channels,
// narrow enough for a strip of one sample to stay in a core's cache from the statistics to the result. Mean and variance
// are those of pieces small enough for the nearest cache, each taken in two passes, then merged (Chan et al. 1979).
#include "levels.h"
#include "writer.h"

#include <algorithm>
#include <cmath>
#include <tuple>

namespace ggf::adain {

inline constexpr int64_t row_piece = 2048, pixel_piece = 64, strip = 64;

template <typename A>
inline constexpr int64_t lanes = 256 / sizeof(A);

// The sum of term(0) to term(size - 1), in a fixed number of running sums: without them no loop over floats is vectorised.
template <typename A, typename Term>
GGF_INLINE A sum(int64_t size, const Term& term) {
  constexpr int64_t L = lanes<A>;
  A running[L] = {};
  int64_t i = 0;
  for (; i + L <= size; i += L)
    for (int64_t k = 0; k < L; ++k) running[k] += term(i + k);
  A rest = 0;
  for (; i < size; ++i) rest += term(i);
  for (int64_t width = L / 2; width > 0; width /= 2)
    for (int64_t k = 0; k < width; ++k) running[k] += running[k + width];
  return running[0] + rest;
}

// Mean and sum of squared deviations of `count` numbers.
struct Moments {
  double count = 0, mean = 0, squares = 0;

  GGF_INLINE void merge(double other_count, double other_mean, double other_squares) {
    const double difference = other_mean - mean, all = count + other_count;
    mean += difference * (other_count / all);
    squares += other_squares + difference * difference * (count * other_count / all);
    count = all;
  }
};

template <typename T>
struct Forward {
  using A = Compute<T>;
  const T* x;
  const A *scale, *shift;  // [N, C]
  T* y;
  A *mean, *rstd;  // [N, C]
  int64_t channels, positions, total;
  double eps;
};

template <typename T>
GGF_INLINE void forward_rows(const Forward<T>& p, int64_t begin, int64_t end) {
  using A = Compute<T>;
  Writer<T> writer(p.y + begin * p.positions, p.total);
  for (int64_t row = begin; row < end; ++row) {
    const T* GGF_RESTRICT x = p.x + row * p.positions;
    Moments moments;
    for (int64_t start = 0; start < p.positions; start += row_piece) {
      const T* GGF_RESTRICT piece = x + start;
      const int64_t size = std::min(row_piece, p.positions - start);
      const A mean = sum<A>(size, [&](int64_t i) GGF_INLINE_LAMBDA { return load(piece[i]); }) / static_cast<A>(size);
      const A squares = sum<A>(size, [&](int64_t i) GGF_INLINE_LAMBDA {
        const A deviation = load(piece[i]) - mean;
        return deviation * deviation;
      });
      moments.merge(static_cast<double>(size), mean, squares);
    }
    const A mean = static_cast<A>(moments.mean);
    const A rstd = static_cast<A>(1 / std::sqrt(moments.squares / static_cast<double>(p.positions) + p.eps));
    p.mean[row] = mean;
    p.rstd[row] = rstd;
    const A factor = rstd * p.scale[row], shift = p.shift[row];
    for (int64_t start = 0; start < p.positions; start += Writer<T>::step) {
      const T* GGF_RESTRICT source = x + start;
      T* GGF_RESTRICT y = writer.room();
      const int64_t size = std::min(Writer<T>::step, p.positions - start);
      for (int64_t i = 0; i < size; ++i) y[i] = store<T>((load(source[i]) - mean) * factor + shift);
      writer.advance(size);
    }
  }
  writer.finish();
}

// Runs body(sample, first channel, number of channels) for strips [begin, end); the number is a constant for whole strips.
template <typename Body>
GGF_INLINE void for_strips(int64_t channels, int64_t begin, int64_t end, const Body& body) {
  const int64_t strips = ceil_divide(channels, strip);
  for (int64_t item = begin; item < end; ++item) {
    const int64_t first = item % strips * strip;
    if (channels - first >= strip)
      body(item / strips, first, std::integral_constant<int64_t, strip>());
    else
      body(item / strips, first, channels - first);
  }
}

template <typename T>
GGF_INLINE void forward_strips(const Forward<T>& p, int64_t begin, int64_t end) {
  using A = Compute<T>;
  for_strips(p.channels, begin, end, [&](int64_t sample, int64_t first, auto width) GGF_INLINE_LAMBDA {
    const int64_t offset = sample * p.positions * p.channels + first, statistic = sample * p.channels + first;
    const T* x = p.x + offset;
    Moments moments[strip];
    for (int64_t start = 0; start < p.positions; start += pixel_piece) {
      const T* GGF_RESTRICT piece = x + start * p.channels;
      const int64_t size = std::min(pixel_piece, p.positions - start);
      A mean[strip] = {}, squares[strip] = {};
      for (int64_t pixel = 0; pixel < size; ++pixel)
        for (int64_t c = 0; c < width; ++c) mean[c] += load(piece[pixel * p.channels + c]);
      for (int64_t c = 0; c < width; ++c) mean[c] /= static_cast<A>(size);
      for (int64_t pixel = 0; pixel < size; ++pixel)
        for (int64_t c = 0; c < width; ++c) {
          const A deviation = load(piece[pixel * p.channels + c]) - mean[c];
          squares[c] += deviation * deviation;
        }
      for (int64_t c = 0; c < width; ++c) moments[c].merge(static_cast<double>(size), mean[c], squares[c]);
    }
    A mean[strip], factor[strip], shift[strip];
    for (int64_t c = 0; c < width; ++c) {
      mean[c] = static_cast<A>(moments[c].mean);
      const A rstd = static_cast<A>(1 / std::sqrt(moments[c].squares / static_cast<double>(p.positions) + p.eps));
      p.mean[statistic + c] = mean[c];
      p.rstd[statistic + c] = rstd;
      factor[c] = rstd * p.scale[statistic + c];
      shift[c] = p.shift[statistic + c];
    }
    T* y = p.y + offset;
    for (int64_t pixel = 0; pixel < p.positions; ++pixel) {
      const T* GGF_RESTRICT source = x + pixel * p.channels;
      T* GGF_RESTRICT target = y + pixel * p.channels;
      for (int64_t c = 0; c < width; ++c) target[c] = store<T>((load(source[c]) - mean[c]) * factor[c] + shift[c]);
    }
  });
}

void check_vectors(const Tensor& x, std::initializer_list<const Tensor*> vectors) {
  STD_TORCH_CHECK(x.dim() >= 3, "adain: x must have at least three dimensions");
  const ScalarType type = x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  for (const Tensor* vector : vectors)
    STD_TORCH_CHECK(
        vector->dim() == 2 && vector->size(0) == x.size(0) && vector->size(1) == x.size(1) && vector->scalar_type() == type,
        "adain: scale, shift and the statistics must be [N, C] in the dtype computed in");
}

std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& x_, const Tensor& scale_, const Tensor& shift_, double eps) {
  check_vectors(x_, {&scale_, &shift_});
  const bool channels_last = is_channels_last(x_);
  const Tensor x = in_layout(x_, channels_last);
  const Tensor scale = in_layout(scale_, false), shift = in_layout(shift_, false);
  const Tensor y = empty(sizes_of(x), x.scalar_type(), channels_last);
  const Tensor mean = empty(sizes_of(scale), scale.scalar_type()), rstd = empty(sizes_of(scale), scale.scalar_type());
  if (x.numel() == 0) return {y, mean, rstd};
  const int64_t batch = x.size(0), channels = x.size(1), positions = x.numel() / (batch * channels);
  dispatch_floating(x.scalar_type(), "adain", [&]<typename T>() {
    using A = Compute<T>;
    const Forward<T> p{x.template const_data_ptr<T>(),
                       scale.template const_data_ptr<A>(),
                       shift.template const_data_ptr<A>(),
                       y.template mutable_data_ptr<T>(),
                       mean.template mutable_data_ptr<A>(),
                       rstd.template mutable_data_ptr<A>(),
                       channels,
                       positions,
                       x.numel(),
                       eps};
    if (channels_last)
      parallel_for(0, batch * ceil_divide(channels, strip), grain(strip * positions),
                   [&](int64_t begin, int64_t end) { at_level<forward_strips<T>>(p, begin, end); });
    else
      parallel_for(0, batch * channels, grain(positions),
                   [&](int64_t begin, int64_t end) { at_level<forward_rows<T>>(p, begin, end); });
  });
  return {y, mean, rstd};
}

template <typename T>
struct Backward {
  using A = Compute<T>;
  const T *grad, *x;
  const A *scale, *mean, *rstd;  // [N, C]
  T* grad_x;
  A *grad_scale, *grad_shift;  // [N, C]
  int64_t channels, positions, total;
};

// grad_x = gradient * grad + deviation * (x - mean) + constant
template <typename A>
struct Factors {
  A gradient, deviation, constant;
};

// Given the sums over the positions of the gradient and of its product with the deviation of x.
template <typename T>
GGF_INLINE Factors<Compute<T>> finish(const Backward<T>& p, int64_t row, double gradients, double products) {
  using A = Compute<T>;
  const double rstd = p.rstd[row], count = static_cast<double>(p.positions), factor = rstd * p.scale[row];
  p.grad_shift[row] = static_cast<A>(gradients);
  p.grad_scale[row] = static_cast<A>(products * rstd);
  return {static_cast<A>(factor), static_cast<A>(-factor * rstd * rstd * products / count),
          static_cast<A>(-factor * gradients / count)};
}

template <typename T>
GGF_INLINE void backward_rows(const Backward<T>& p, int64_t begin, int64_t end) {
  using A = Compute<T>;
  Writer<T> writer(p.grad_x + begin * p.positions, p.total);
  for (int64_t row = begin; row < end; ++row) {
    const T *GGF_RESTRICT grad = p.grad + row * p.positions, *GGF_RESTRICT x = p.x + row * p.positions;
    const A mean = p.mean[row];
    double gradients = 0, products = 0;
    for (int64_t start = 0; start < p.positions; start += row_piece) {
      const T *GGF_RESTRICT g = grad + start, *GGF_RESTRICT piece = x + start;
      const int64_t size = std::min(row_piece, p.positions - start);
      gradients += sum<A>(size, [&](int64_t i) GGF_INLINE_LAMBDA { return load(g[i]); });
      products += sum<A>(size, [&](int64_t i) GGF_INLINE_LAMBDA { return load(g[i]) * (load(piece[i]) - mean); });
    }
    const Factors<A> f = finish(p, row, gradients, products);
    for (int64_t start = 0; start < p.positions; start += Writer<T>::step) {
      const T *GGF_RESTRICT g = grad + start, *GGF_RESTRICT source = x + start;
      T* GGF_RESTRICT grad_x = writer.room();
      const int64_t size = std::min(Writer<T>::step, p.positions - start);
      for (int64_t i = 0; i < size; ++i)
        grad_x[i] = store<T>(f.gradient * load(g[i]) + (f.deviation * (load(source[i]) - mean) + f.constant));
      writer.advance(size);
    }
  }
  writer.finish();
}

template <typename T>
GGF_INLINE void backward_strips(const Backward<T>& p, int64_t begin, int64_t end) {
  using A = Compute<T>;
  for_strips(p.channels, begin, end, [&](int64_t sample, int64_t first, auto width) GGF_INLINE_LAMBDA {
    const int64_t offset = sample * p.positions * p.channels + first, statistic = sample * p.channels + first;
    const T *grad = p.grad + offset, *x = p.x + offset;
    A mean[strip];
    for (int64_t c = 0; c < width; ++c) mean[c] = p.mean[statistic + c];
    double gradients[strip] = {}, products[strip] = {};
    for (int64_t start = 0; start < p.positions; start += pixel_piece) {
      const int64_t size = std::min(pixel_piece, p.positions - start);
      A some_gradients[strip] = {}, some_products[strip] = {};
      for (int64_t pixel = start; pixel < start + size; ++pixel) {
        const T *GGF_RESTRICT g = grad + pixel * p.channels, *GGF_RESTRICT source = x + pixel * p.channels;
        for (int64_t c = 0; c < width; ++c) {
          some_gradients[c] += load(g[c]);
          some_products[c] += load(g[c]) * (load(source[c]) - mean[c]);
        }
      }
      for (int64_t c = 0; c < width; ++c) {
        gradients[c] += some_gradients[c];
        products[c] += some_products[c];
      }
    }
    A gradient[strip], deviation[strip], constant[strip];
    for (int64_t c = 0; c < width; ++c) {
      const Factors<A> f = finish(p, statistic + c, gradients[c], products[c]);
      gradient[c] = f.gradient;
      deviation[c] = f.deviation;
      constant[c] = f.constant;
    }
    T* grad_x = p.grad_x + offset;
    for (int64_t pixel = 0; pixel < p.positions; ++pixel) {
      const T *GGF_RESTRICT g = grad + pixel * p.channels, *GGF_RESTRICT source = x + pixel * p.channels;
      T* GGF_RESTRICT target = grad_x + pixel * p.channels;
      for (int64_t c = 0; c < width; ++c)
        target[c] = store<T>(gradient[c] * load(g[c]) + (deviation[c] * (load(source[c]) - mean[c]) + constant[c]));
    }
  });
}

// eps is the derivative's, not the kernel's: rstd holds it already.
std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad_, const Tensor& x_, const Tensor& scale_, const Tensor& mean_,
                                            const Tensor& rstd_, double /*eps*/) {
  check_vectors(x_, {&scale_, &mean_, &rstd_});
  STD_TORCH_CHECK(sizes_of(grad_) == sizes_of(x_) && grad_.scalar_type() == x_.scalar_type(),
                  "adain_backward: grad and x must agree in shape and dtype");
  const bool channels_last = is_channels_last(x_);
  const Tensor x = in_layout(x_, channels_last), grad = in_layout(grad_, channels_last);
  const Tensor scale = in_layout(scale_, false), mean = in_layout(mean_, false);
  const Tensor rstd = in_layout(rstd_, false);
  const Tensor grad_x = empty(sizes_of(x), x.scalar_type(), channels_last);
  const Tensor grad_scale = empty(sizes_of(scale), scale.scalar_type());
  const Tensor grad_shift = empty(sizes_of(scale), scale.scalar_type());
  if (x.numel() == 0) return {grad_x, grad_scale, grad_shift};
  const int64_t batch = x.size(0), channels = x.size(1), positions = x.numel() / (batch * channels);
  dispatch_floating(x.scalar_type(), "adain_backward", [&]<typename T>() {
    using A = Compute<T>;
    const Backward<T> p{grad.template const_data_ptr<T>(),
                        x.template const_data_ptr<T>(),
                        scale.template const_data_ptr<A>(),
                        mean.template const_data_ptr<A>(),
                        rstd.template const_data_ptr<A>(),
                        grad_x.template mutable_data_ptr<T>(),
                        grad_scale.template mutable_data_ptr<A>(),
                        grad_shift.template mutable_data_ptr<A>(),
                        channels,
                        positions,
                        x.numel()};
    if (channels_last)
      parallel_for(0, batch * ceil_divide(channels, strip), grain(strip * positions),
                   [&](int64_t begin, int64_t end) { at_level<backward_strips<T>>(p, begin, end); });
    else
      parallel_for(0, batch * channels, grain(positions),
                   [&](int64_t begin, int64_t end) { at_level<backward_rows<T>>(p, begin, end); });
  });
  return {grad_x, grad_scale, grad_shift};
}

}  // namespace ggf::adain

STABLE_TORCH_LIBRARY_IMPL(gangealing_fast, CPU, m) {
  m.impl("adain", TORCH_BOX(&ggf::adain::forward));
  m.impl("adain_backward", TORCH_BOX(&ggf::adain::backward));
}
