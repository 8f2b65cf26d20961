// SPDX-License-Identifier: Apache-2.0
// Modulated convolution by one convolution of scaled activations. Maths: gangealing_fast/ops/modulated_conv2d.py.
//
// Three ways to convolve: Winograd (winograd.h) for 3x3 kernels in float32, which takes style, demodulation and activation along;
// a single pass over x for 1x1 kernels with few outputs; torch's convolution, on oneDNN, for the rest, between passes that
// scale and activate (modulation.h). All of it works on channels-last tensors.
#include "aten.h"
#include "modulation.h"
#include "winograd.h"

#include <string>
#include <tuple>

namespace ggf::modulated_conv2d {
namespace {

using modulation::Shape;
using OptionalTensor = std::optional<Tensor>;

// The low-pass filter's padding: as blur_padding in Python.
struct Padding {
  int64_t before, after;
};

// Everything but the gradient, as the operator gets it.
struct Problem {
  Tensor x, weight, style;  // x channels-last; style, like the parameters below, contiguous in the type computed in
  OptionalTensor demodulation;
  Tensor f;
  OptionalTensor bias, noise, strength;
  bool up, down;
  double slope, gain;
  std::string algorithm;
  int64_t batch, in, out, k, height, width, out_height, out_width;

  Shape shape_in() const { return {batch, height * width, in}; }
  Shape shape_out() const { return {batch, out_height * out_width, out}; }
  int64_t taps() const { return f.size(0); }

  Padding blur() const {
    const int64_t total = up ? taps() - 1 - k : taps() + k - 3, extra = up ? 1 : 0;
    return {floor_divide(total + 1, 2) + extra, floor_divide(total, 2) + extra};
  }

  // Shapes alone decide, so that a result never depends on what ran before.
  bool winograd() const {
    if (k != 3 || up || down || x.scalar_type() != ScalarType::Float || weight.scalar_type() != ScalarType::Float ||
        algorithm == "library")
      return false;
    const int64_t tiles = batch * ceil_divide(height, 4) * ceil_divide(width, 4);
    return algorithm == "fused" || (in >= 32 && out >= 32 && tiles >= 64 && std::min(height, width) >= 8);
  }
  bool to_few() const { return k == 1 && !up && !down && out <= modulation::few && algorithm != "library"; }
};

OptionalTensor compact(const OptionalTensor& t) { return t ? OptionalTensor(torch::stable::contiguous(*t)) : std::nullopt; }

Problem problem(const Tensor& x, const Tensor& weight, const Tensor& style, const OptionalTensor& demodulation, const Tensor& f,
                const OptionalTensor& bias, const OptionalTensor& noise, const OptionalTensor& strength, bool up, bool down,
                double slope, double gain, std::string algorithm) {
  STD_TORCH_CHECK(x.dim() == 4 && weight.dim() == 4 && weight.size(1) == x.size(1) && weight.size(2) == weight.size(3) &&
                      style.numel() == x.size(0) * x.size(1) && f.dim() == 2 && !(up && down),
                  "modulated_conv2d: x must be [N, Cin, H, W], weight [Cout, Cin, k, k], style [N, Cin]");
  Problem p{in_layout(x, true),
            weight,
            torch::stable::contiguous(style),
            compact(demodulation),
            f,
            compact(bias),
            compact(noise),
            compact(strength),
            up,
            down,
            slope,
            gain,
            std::move(algorithm),
            x.size(0),
            x.size(1),
            weight.size(0),
            weight.size(2),
            x.size(2),
            x.size(3),
            0,
            0};
  const int64_t even = 1 - p.k % 2;
  p.out_height = up ? 2 * p.height : down ? p.height / 2 : p.height + even;
  p.out_width = up ? 2 * p.width : down ? p.width / 2 : p.width + even;
  const int64_t positions = p.out_height * p.out_width;
  STD_TORCH_CHECK((!p.demodulation || p.demodulation->numel() == p.batch * p.out) && (!p.bias || p.bias->numel() == p.out) &&
                      (!p.noise || (p.strength && p.strength->numel() == 1 &&
                                    (p.noise->numel() == positions || p.noise->numel() == p.batch * positions))),
                  "modulated_conv2d: demodulation, bias or noise does not fit x");
  return p;
}

template <typename A>
const A* data(const OptionalTensor& t) {
  return t ? t->const_data_ptr<A>() : nullptr;
}

template <typename A>
modulation::Activation<A> activation_of(const Problem& p) {
  const int64_t positions = p.out_height * p.out_width;
  return {data<A>(p.demodulation),
          data<A>(p.bias),
          data<A>(p.noise),
          p.noise && p.noise->numel() > positions ? positions : 0,
          p.noise ? *data<A>(p.strength) : A(0),
          static_cast<A>(p.slope),
          static_cast<A>(p.gain)};
}

template <typename T>
Tensor scaled(const Problem& p) {
  const Tensor result = empty(sizes_of(p.x), p.x.scalar_type(), true);
  modulation::scale<T>(p.shape_in(), p.x.const_data_ptr<T>(), p.style.const_data_ptr<Compute<T>>(), result.mutable_data_ptr<T>());
  return result;
}

// ---- torch's convolution

// The stride-2 transposed 3x3 convolution, as oneDNN does it fastest: outputs of even and odd rows and columns are four plain
// convolutions, with 2 or 1 of the 3 taps on an axis.
template <typename T>
Tensor transposed_by_phases(const Tensor& x, const Tensor& weight) {
  const int64_t out = weight.size(0), in = weight.size(1);
  const int64_t batch = x.size(0), height = 2 * x.size(2) + 1, width = 2 * x.size(3) + 1;
  const Tensor kernel = in_layout(weight, true), result = empty({batch, out, height, width}, x.scalar_type(), true);
  const T* taps = kernel.const_data_ptr<T>();
  T* target = result.mutable_data_ptr<T>();
  for (int64_t odd_y = 0; odd_y < 2; ++odd_y)
    for (int64_t odd_x = 0; odd_x < 2; ++odd_x) {
      const int64_t tall = 2 - odd_y, wide = 2 - odd_x;
      const Tensor part = empty({out, in, tall, wide}, x.scalar_type(), true);
      T* values = part.mutable_data_ptr<T>();
      for (int64_t o = 0; o < out; ++o)
        for (int64_t y = 0; y < tall; ++y)
          for (int64_t c = 0; c < wide; ++c) {
            const int64_t tap = (odd_y ? 1 : 2 - 2 * y) * 3 + (odd_x ? 1 : 2 - 2 * c);
            std::copy_n(taps + (o * 9 + tap) * in, in, values + ((o * tall + y) * wide + c) * in);
          }
      const Tensor plane = in_layout(aten::convolution(x, part, {1, tall - 1, wide - 1}), true);
      const T* source = plane.template const_data_ptr<T>();
      const int64_t rows = plane.size(2), columns = plane.size(3);
      parallel_for(0, batch * rows, grain(columns * out), [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
          T* to = target + (row / rows * height + 2 * (row % rows) + odd_y) * width * out + odd_x * out;
          for (int64_t column = 0; column < columns; ++column)
            std::copy_n(source + (row * columns + column) * out, out, to + 2 * column * out);
        }
      });
    }
  return result;
}

Tensor swapped(const Tensor& weight) { return torch::stable::transpose(weight, 0, 1); }

template <typename T>
Tensor convolve(const Problem& p, const Tensor& x, const Tensor& weight) {
  const Padding blur = p.blur();
  if (p.up) {
    const Tensor wide = p.k == 3 && p.algorithm != "library" ? transposed_by_phases<T>(x, weight)
                                                             : aten::convolution(x, swapped(weight), {2, 0, 0, true});
    return aten::upfirdn2d(in_layout(wide, true), p.f, blur.before, blur.after, 4.0, false);
  }
  if (p.down) return aten::convolution(aten::upfirdn2d(x, p.f, blur.before, blur.after, 1.0, false), weight, {2, 0, 0});
  return aten::convolution(x, weight, {1, p.k / 2, p.k / 2});
}

// Gradients of the scaled activations and of the weight from that of the convolution.
std::tuple<Tensor, Tensor> convolve_backward(const Problem& p, const Tensor& grad, const Tensor& x, const Tensor& weight,
                                             bool need_x, bool need_weight) {
  const auto [before, after] = p.blur();
  const int64_t last = p.taps() - 1;
  if (p.up) {
    const Tensor wide = aten::upfirdn2d(grad, p.f, last - before, last - after, 4.0, true);
    Tensor grad_x = x, grad_weight = x;
    if (need_x) grad_x = aten::convolution(wide, swapped(weight), {2, 0, 0});
    if (need_weight)
      grad_weight = swapped(std::get<1>(aten::convolution_backward(wide, x, swapped(weight), {2, 0, 0, true}, false, true)));
    return {grad_x, grad_weight};
  }
  if (p.down) {
    const int64_t more = before + after - last;
    const Tensor blurred = need_weight ? aten::upfirdn2d(x, p.f, before, after, 1.0, false)
                                       : empty({p.batch, p.in, p.height + more, p.width + more}, x.scalar_type(), true);
    auto [grad_x, grad_weight] = aten::convolution_backward(grad, blurred, weight, {2, 0, 0}, need_x, need_weight);
    if (need_x) grad_x = aten::upfirdn2d(in_layout(grad_x, true), p.f, last - before, last - after, 1.0, true);
    return {grad_x, grad_weight};
  }
  return aten::convolution_backward(grad, x, weight, {1, p.k / 2, p.k / 2}, need_x, need_weight);
}

// ---- 1x1 convolutions to few channels

template <typename T, typename Body>
void for_few(int64_t outs, const Body& body) {
  static_assert(modulation::few == 4);
  if (outs == 1) return body.template operator()<1>();
  if (outs == 2) return body.template operator()<2>();
  if (outs == 3) return body.template operator()<3>();
  body.template operator()<4>();
}

// weight * style [N, outs, C]
template <typename A>
std::vector<A> weights_per_sample(const Problem& p, const Tensor& weight) {
  const A *w = weight.const_data_ptr<A>(), *style = p.style.const_data_ptr<A>();
  std::vector<A> result(p.batch * p.out * p.in);
  for (int64_t n = 0; n < p.batch; ++n)
    for (int64_t o = 0; o < p.out; ++o)
      for (int64_t c = 0; c < p.in; ++c) result[(n * p.out + o) * p.in + c] = w[o * p.in + c] * style[n * p.in + c];
  return result;
}

template <typename T>
Tensor convolve_to_few(const Problem& p) {
  using A = Compute<T>;
  const Tensor weight = torch::stable::contiguous(torch::stable::to(p.weight, compute_scalar_type<T>));
  const std::vector<A> weights = weights_per_sample<A>(p, weight);
  const Tensor y = empty({p.batch, p.out, p.out_height, p.out_width}, p.x.scalar_type(), true);
  const Shape shape = p.shape_in();
  for_few<T>(p.out, [&]<int outs>() {
    parallel_for(0, shape.batch * shape.positions, grain(p.in), [&](int64_t begin, int64_t end) {
      modulation::to_few_pixels<T, outs>(shape, p.x.const_data_ptr<T>(), weights.data(), y.mutable_data_ptr<T>(), begin, end);
    });
  });
  return y;
}

struct Gradients {
  Tensor x, weight, style;
};

template <typename T>
void backward_to_few(const Problem& p, const Tensor& grad, bool need_x, bool need_weight, bool need_style, Gradients& found) {
  using A = Compute<T>;
  const Tensor weight = torch::stable::contiguous(torch::stable::to(p.weight, compute_scalar_type<T>));
  const std::vector<A> weights = weights_per_sample<A>(p, weight);
  const Shape shape = p.shape_in();
  const bool need_products = need_weight || need_style;
  if (need_x) found.x = empty(sizes_of(p.x), p.x.scalar_type(), true);
  std::vector<A> partial(need_products ? shape.batch * shape.pieces() * p.out * p.in : 0);
  for_few<T>(p.out, [&]<int outs>() {
    parallel_for(0, shape.batch * shape.pieces(), grain(modulation::piece * p.in), [&](int64_t begin, int64_t end) {
      modulation::from_few_pieces<T, outs>(shape, grad.const_data_ptr<T>(), p.x.const_data_ptr<T>(), weights.data(),
                                           need_x ? found.x.mutable_data_ptr<T>() : nullptr,
                                           need_products ? partial.data() : nullptr, begin, end);
    });
  });
  if (!need_products) return;
  std::vector<A> products(p.batch * p.out * p.in);
  modulation::add_pieces(shape, partial, p.out * p.in, products.data());
  const A *w = weight.const_data_ptr<A>(), *style = p.style.const_data_ptr<A>();
  std::vector<A> of_weight(p.out * p.in), of_style(p.batch * p.in);
  for (int64_t n = 0; n < p.batch; ++n)
    for (int64_t o = 0; o < p.out; ++o)
      for (int64_t c = 0; c < p.in; ++c) {
        const A product = products[(n * p.out + o) * p.in + c];
        of_weight[o * p.in + c] += product * style[n * p.in + c];
        of_style[n * p.in + c] += product * w[o * p.in + c];
      }
  if (need_style) {
    found.style = empty(sizes_of(p.style), p.style.scalar_type());
    std::copy(of_style.begin(), of_style.end(), found.style.mutable_data_ptr<A>());
  }
  if (need_weight) {
    found.weight = empty(sizes_of(p.weight), p.style.scalar_type());
    std::copy(of_weight.begin(), of_weight.end(), found.weight.mutable_data_ptr<A>());
  }
}

// ---- the operator

Tensor forward(const Tensor& x, const Tensor& weight, const Tensor& style, const OptionalTensor& demodulation, const Tensor& f,
               const OptionalTensor& bias, const OptionalTensor& noise, const OptionalTensor& strength, bool up, bool down,
               double slope, double gain, std::string algorithm) {
  const Problem p = problem(x, weight, style, demodulation, f, bias, noise, strength, up, down, slope, gain, algorithm);
  const std::vector<int64_t> size{p.batch, p.out, p.out_height, p.out_width};
  const bool channels_last = is_channels_last(x);
  if (p.batch == 0 || p.out == 0) return empty(size, x.scalar_type(), channels_last);
  const Tensor result = dispatch_floating(x.scalar_type(), "modulated_conv2d", [&]<typename T>() {
    const modulation::Activation<Compute<T>> a = activation_of<Compute<T>>(p);
    if constexpr (std::is_same_v<T, float>) {
      if (p.winograd()) {
        const Tensor y = empty(size, ScalarType::Float, true);
        winograd::convolve({p.x.const_data_ptr<float>(), p.batch, p.height, p.width, winograd::transform(p.weight, false),
                            y.mutable_data_ptr<float>(), p.style.const_data_ptr<float>(), a.demodulation, a.bias, a.noise,
                            a.noise_stride, a.strength, a.slope, a.gain});
        return y;
      }
    }
    const Tensor y = p.to_few() ? convolve_to_few<T>(p)
                                : in_layout(convolve<T>(p, scaled<T>(p), torch::stable::to(p.weight, x.scalar_type())), true);
    modulation::finish<T>(p.shape_out(), a, y.template mutable_data_ptr<T>());
    return y;
  });
  return in_layout(result, channels_last);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> backward(
    const Tensor& grad_, const Tensor& x, const Tensor& weight, const Tensor& style, const OptionalTensor& demodulation,
    const Tensor& f, const OptionalTensor& bias, const OptionalTensor& noise, const OptionalTensor& strength,
    const OptionalTensor& y_, bool up, bool down, double slope, double gain, std::string algorithm, bool need_x, bool need_weight,
    bool need_style, bool need_demodulation, bool need_activation) {
  const Problem p = problem(x, weight, style, demodulation, f, bias, noise, strength, up, down, slope, gain, algorithm);
  // Outputs must not share memory.
  const auto none = [&] { return empty({0}, x.scalar_type()); };
  need_demodulation = need_demodulation && p.demodulation;
  need_activation = need_activation && p.bias;
  STD_TORCH_CHECK(y_ || (!p.bias && !need_demodulation), "modulated_conv2d_backward: the operator's output is needed");
  STD_TORCH_CHECK(grad_.dim() == 4 && grad_.size(0) == p.batch && grad_.size(1) == p.out && grad_.size(2) == p.out_height &&
                      grad_.size(3) == p.out_width && grad_.scalar_type() == x.scalar_type() &&
                      (!y_ || (sizes_of(*y_) == sizes_of(grad_) && y_->scalar_type() == x.scalar_type())),
                  "modulated_conv2d_backward: grad does not fit the operator's output");
  Gradients found{none(), none(), none()};
  Tensor grad_demodulation = none(), grad_bias = none(), grad_noise = none(), grad_strength = none();
  dispatch_floating(x.scalar_type(), "modulated_conv2d_backward", [&]<typename T>() {
    using A = Compute<T>;
    const ScalarType compute = compute_scalar_type<T>;
    const modulation::Activation<A> a = activation_of<A>(p);
    const Shape in = p.shape_in(), out = p.shape_out();
    Tensor grad = in_layout(grad_, true);
    bool winograd = p.winograd(), demodulated = !p.demodulation;  // whether grad has d in it already
    if (p.bias || need_demodulation || (p.demodulation && !winograd)) {
      const OptionalTensor y = y_ ? OptionalTensor(in_layout(*y_, true)) : std::nullopt;
      const Tensor before = empty(sizes_of(grad_), grad.scalar_type(), true);
      std::vector<A> dots(need_demodulation ? out.batch * out.pieces() * p.out : 0);
      std::vector<A> sums(need_activation ? out.batch * out.pieces() * p.out : 0);
      std::vector<A> plane(need_activation && p.noise ? out.batch * out.positions : 0);
      const modulation::Backward<T> b{grad.const_data_ptr<T>(),
                                      y && (p.bias || need_demodulation) ? data<T>(y) : nullptr,
                                      before.mutable_data_ptr<T>(),
                                      dots.empty() ? nullptr : dots.data(),
                                      sums.empty() ? nullptr : sums.data(),
                                      plane.empty() ? nullptr : plane.data()};
      parallel_for(0, out.batch * out.pieces(), grain(modulation::piece * p.out),
                   [&](int64_t begin, int64_t end) { modulation::backward_pieces<T>(out, a, b, begin, end); });
      if (need_demodulation) {
        grad_demodulation = empty(sizes_of(*p.demodulation), compute);
        A* d = grad_demodulation.mutable_data_ptr<A>();
        modulation::add_pieces(out, dots, p.out, d);
        for (int64_t i = 0; i < p.batch * p.out; ++i) d[i] /= a.demodulation[i];
      }
      if (need_activation) {
        std::vector<A> each(p.batch * p.out);
        modulation::add_pieces(out, sums, p.out, each.data());
        grad_bias = empty({p.out}, compute);
        A* total = grad_bias.mutable_data_ptr<A>();
        std::fill_n(total, p.out, A(0));
        for (int64_t i = 0; i < p.batch * p.out; ++i) total[i % p.out] += each[i];
      }
      if (need_activation && p.noise) {
        grad_noise = empty(sizes_of(*p.noise), compute);
        grad_strength = empty(sizes_of(*p.strength), compute);
        A *target = grad_noise.mutable_data_ptr<A>(), total = 0;
        std::fill_n(target, p.noise->numel(), A(0));
        for (int64_t i = 0; i < out.batch * out.positions; ++i) {
          const int64_t at = a.noise_stride ? i : i % out.positions;
          target[at] += plane[i] * a.strength;
          total += plane[i] * a.noise[at];
        }
        *grad_strength.mutable_data_ptr<A>() = total;
      }
      grad = before;
      demodulated = true;
    }
    if (p.batch == 0 || p.out == 0) {
      if (need_x) found.x = empty(sizes_of(x), x.scalar_type(), true);
      if (need_weight) found.weight = torch::stable::new_zeros(p.weight, sizes_of(p.weight));
      if (need_style) found.style = torch::stable::new_zeros(p.style, sizes_of(p.style));
      return;
    }
    if (p.to_few()) return backward_to_few<T>(p, grad, need_x, need_weight, need_style, found);
    if (need_style) found.style = empty(sizes_of(p.style), compute);
    A* dots = need_style ? found.style.mutable_data_ptr<A>() : nullptr;
    if constexpr (std::is_same_v<T, float>) {
      if (winograd && (need_x || need_style)) {
        found.x = empty(sizes_of(x), x.scalar_type(), true);
        winograd::Convolution c{grad.const_data_ptr<float>(),
                                p.batch,
                                p.height,
                                p.width,
                                winograd::transform(p.weight, true),
                                found.x.mutable_data_ptr<float>(),
                                demodulated ? nullptr : a.demodulation,
                                p.style.const_data_ptr<float>()};
        c.other = need_style ? p.x.const_data_ptr<float>() : nullptr;
        c.dots = dots;
        winograd::convolve(c);
      }
    }
    const bool convolve_x = !winograd && (need_x || need_style);
    if (need_weight || convolve_x) {
      if (!demodulated) {
        const Tensor before = empty(sizes_of(grad_), grad.scalar_type(), true);
        modulation::scale<T>(out, grad.const_data_ptr<T>(), a.demodulation, before.mutable_data_ptr<T>());
        grad = before;
      }
      const auto [grad_x, grad_weight] = convolve_backward(p, grad, need_weight ? scaled<T>(p) : p.x,
                                                           torch::stable::to(p.weight, x.scalar_type()), convolve_x, need_weight);
      if (need_weight) found.weight = grad_weight;
      if (convolve_x) {
        found.x = in_layout(grad_x, true);
        T* target = found.x.mutable_data_ptr<T>();
        const A* style_data = p.style.const_data_ptr<A>();
        if (need_style)
          modulation::scale_dot<T>(in, target, style_data, p.x.const_data_ptr<T>(), dots);
        else
          modulation::scale<T>(in, target, style_data, target);
      }
    }
  });
  const Tensor grad_x = need_x ? in_layout(found.x, is_channels_last(x)) : none();
  const Tensor grad_weight =
      need_weight ? torch::stable::contiguous(torch::stable::to(found.weight, weight.scalar_type())) : none();
  return {grad_x, grad_weight, found.style, grad_demodulation, grad_bias, grad_noise, grad_strength};
}

}  // namespace
}  // namespace ggf::modulated_conv2d

STABLE_TORCH_LIBRARY_IMPL(gangealing_fast, CPU, m) {
  m.impl("modulated_conv2d", TORCH_BOX(&ggf::modulated_conv2d::forward));
  m.impl("modulated_conv2d_backward", TORCH_BOX(&ggf::modulated_conv2d::backward));
}
