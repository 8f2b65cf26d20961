// SPDX-License-Identifier: Apache-2.0
// Modulated convolution by one convolution of scaled activations. Maths: gangealing_fast/ops/modulated_conv2d.py.
//
// Three ways to convolve: Winograd (winograd.h) for 3x3 kernels in float32, which takes style, demodulation and activation along;
// a single pass over x for 1x1 kernels with few outputs; torch's convolution, on oneDNN, for the rest, between passes that
// scale and activate (modulation.h). All of it works on channels-last tensors.
#include "levels.h"
#include "aten.h"
#include "modulated_problem.h"
#include "winograd.h"

#include <tuple>

namespace ggf::modulated_conv2d {
namespace {

template <typename T>
Tensor zeros(const std::vector<int64_t>& size) {
  const Tensor result = empty(size, torch::headeronly::CppTypeToScalarType<T>::value, true);
  std::fill_n(result.mutable_data_ptr<T>(), result.numel(), store<T>(0));
  return result;
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
std::tuple<Tensor, Tensor> differentiate_convolution(const Problem& p, const Tensor& grad, const Tensor& x, const Tensor& weight,
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
      at_each_level<[]<Level level>(const auto&... all) GGF_INLINE_LAMBDA { modulation::to_few_pixels<T, outs, level>(all...); }>(
          shape, p.x.const_data_ptr<T>(), weights.data(), y.mutable_data_ptr<T>(), begin, end);
    });
  });
  return y;
}

// What the backward gets beside Arguments: the gradient of the operator's output, that output if anything needs it, and which
// gradients are wanted.
struct Request {
  Tensor grad;
  OptionalTensor y;
  bool x, weight, style, demodulation, activation;
};

// Empty where none was wanted. x is channels-last, and found with style too; weight is in whatever type and layout it came in.
struct Gradients {
  Tensor x, weight, style, demodulation, bias, noise, strength;
};

template <typename T>
void backward_to_few(const Problem& p, const Request& wanted, const Tensor& grad, Gradients& found) {
  using A = Compute<T>;
  const Tensor weight = torch::stable::contiguous(torch::stable::to(p.weight, compute_scalar_type<T>));
  const std::vector<A> weights = weights_per_sample<A>(p, weight);
  const Shape shape = p.shape_in();
  const bool need_products = wanted.weight || wanted.style;
  if (wanted.x) found.x = empty(sizes_of(p.x), p.x.scalar_type(), true);
  std::vector<A> partial(need_products ? shape.batch * shape.pieces() * p.out * p.in : 0);
  for_few<T>(p.out, [&]<int outs>() {
    parallel_for(0, shape.batch * shape.pieces(), grain(modulation::piece * p.in), [&](int64_t begin, int64_t end) {
      at_level<modulation::from_few_pieces<T, outs>>(shape, grad.const_data_ptr<T>(), p.x.const_data_ptr<T>(), weights.data(),
                                                     wanted.x ? found.x.mutable_data_ptr<T>() : nullptr,
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
  if (wanted.style) {
    found.style = empty(sizes_of(p.style), compute_scalar_type<T>);
    std::copy(of_style.begin(), of_style.end(), found.style.mutable_data_ptr<A>());
  }
  if (wanted.weight) {
    found.weight = empty(sizes_of(p.weight), p.style.scalar_type());
    std::copy(of_weight.begin(), of_weight.end(), found.weight.mutable_data_ptr<A>());
  }
}

// ---- the way back through noise, bias and activation

// The gradient of d [N, out] from sums over pieces of the gradient of (convolution * d) times that.
template <typename A>
Tensor demodulation_gradient(const Problem& p, const std::vector<A>& dots) {
  const Tensor result = empty(sizes_of(*p.demodulation), compute_scalar_type<A>);
  A* d = result.mutable_data_ptr<A>();
  modulation::add_pieces(p.shape_out(), dots, p.out, d);
  const A* demodulation = data<A>(p.demodulation);
  for (int64_t i = 0; i < p.batch * p.out; ++i) d[i] /= demodulation[i];
  return result;
}

// The gradient of the bias [out] from sums over pieces.
template <typename A>
Tensor bias_gradient(const Problem& p, const std::vector<A>& sums) {
  std::vector<A> each(p.batch * p.out);
  modulation::add_pieces(p.shape_out(), sums, p.out, each.data());
  const Tensor result = empty({p.out}, compute_scalar_type<A>);
  A* total = result.mutable_data_ptr<A>();
  std::fill_n(total, p.out, A(0));
  for (int64_t i = 0; i < p.batch * p.out; ++i) total[i % p.out] += each[i];
  return result;
}

// The gradients of noise and strength from the sums over channels, `plane` [N, positions].
template <typename A>
void noise_gradients(const Problem& p, const modulation::Activation<A>& a, const std::vector<A>& plane, Gradients& found) {
  const int64_t positions = p.shape_out().positions;
  found.noise = empty(sizes_of(*p.noise), compute_scalar_type<A>);
  found.strength = empty(sizes_of(*p.strength), compute_scalar_type<A>);
  A *target = found.noise.mutable_data_ptr<A>(), total = 0;
  std::fill_n(target, p.noise->numel(), A(0));
  for (int64_t i = 0; i < p.batch * positions; ++i) {
    const int64_t at = a.noise_stride ? i : i % positions;
    target[at] += plane[i] * a.strength;
    total += plane[i] * a.noise[at];
  }
  *found.strength.mutable_data_ptr<A>() = total;
}

// The gradient of the convolution's result, demodulation included, from that of the operator's (channels-last); those of the
// parameters in between go to `found`.
template <typename T>
Tensor differentiate_activation(const Problem& p, const Request& wanted, const modulation::Activation<Compute<T>>& a,
                                const Tensor& grad, Gradients& found) {
  using A = Compute<T>;
  const Shape out = p.shape_out();
  const bool with_noise = wanted.activation && p.noise;
  const OptionalTensor y = p.bias || wanted.demodulation ? OptionalTensor(in_layout(*wanted.y, true)) : std::nullopt;
  const Tensor before = empty(sizes_of(grad), grad.scalar_type(), true);
  std::vector<A> dots(wanted.demodulation ? out.batch * out.pieces() * p.out : 0);
  std::vector<A> sums(wanted.activation ? out.batch * out.pieces() * p.out : 0);
  std::vector<A> plane(with_noise ? out.batch * out.positions : 0);
  const modulation::Backward<T> b{grad.const_data_ptr<T>(),
                                  data<T>(y),
                                  before.mutable_data_ptr<T>(),
                                  dots.empty() ? nullptr : dots.data(),
                                  sums.empty() ? nullptr : sums.data(),
                                  plane.empty() ? nullptr : plane.data()};
  parallel_for(0, out.batch * out.pieces(), grain(modulation::piece * p.out), [&](int64_t begin, int64_t end) {
    at_each_level<[]<Level level>(const auto&... all) GGF_INLINE_LAMBDA { modulation::backward_pieces<T, level>(all...); }>(
        out, a, b, begin, end);
  });
  if (wanted.demodulation) found.demodulation = demodulation_gradient<A>(p, dots);
  if (wanted.activation) found.bias = bias_gradient<A>(p, sums);
  if (with_noise) noise_gradients<A>(p, a, plane, found);
  return before;
}

// ---- the way back through the convolution

// x and style by Winograd's algorithm, which takes `demodulation` along; null if grad has it already.
void winograd_backward(const Problem& p, const Request& wanted, const float* demodulation, const Tensor& grad, Gradients& found) {
  found.x = empty(sizes_of(p.x), p.x.scalar_type(), true);
  winograd::Convolution c{grad.const_data_ptr<float>(),
                          p.batch,
                          p.height,
                          p.width,
                          winograd::transform(p.weight, true),
                          found.x.mutable_data_ptr<float>(),
                          demodulation,
                          p.style.const_data_ptr<float>()};
  c.other = wanted.style ? p.x.const_data_ptr<float>() : nullptr;
  c.dots = wanted.style ? found.style.mutable_data_ptr<float>() : nullptr;
  winograd::convolve(c);
}

// The weight's gradient, and with `need_x` those of x and style, by torch's convolution. grad: with demodulation in it.
template <typename T>
void library_backward(const Problem& p, const Request& wanted, const Tensor& grad, bool need_x, Gradients& found) {
  const auto [grad_x, grad_weight] = differentiate_convolution(
      p, grad, wanted.weight ? scaled<T>(p) : p.x, torch::stable::to(p.weight, p.x.scalar_type()), need_x, wanted.weight);
  if (wanted.weight) found.weight = grad_weight;
  if (!need_x) return;
  found.x = in_layout(grad_x, true);
  T* target = found.x.mutable_data_ptr<T>();
  const Compute<T>* style = p.style.const_data_ptr<Compute<T>>();
  if (wanted.style)
    modulation::scale_dot<T>(p.shape_in(), target, style, p.x.const_data_ptr<T>(), found.style.mutable_data_ptr<Compute<T>>());
  else
    modulation::scale<T>(p.shape_in(), target, style, target);
}

template <typename T>
void backward_as(const Problem& p, const Request& wanted, Gradients& found) {
  const modulation::Activation<Compute<T>> a = activation_of<Compute<T>>(p);
  const bool winograd = p.winograd(), need_input = wanted.x || wanted.style;
  Tensor grad = in_layout(wanted.grad, true);
  bool demodulated = !p.demodulation;  // whether grad has d in it already
  if (p.bias || wanted.demodulation || (p.demodulation && !winograd)) {
    grad = differentiate_activation<T>(p, wanted, a, grad, found);
    demodulated = true;
  }
  if (p.batch == 0 || p.out == 0 || p.in == 0) {
    if (wanted.x) found.x = zeros<T>(sizes_of(p.x));
    if (wanted.weight) found.weight = torch::stable::new_zeros(p.weight, sizes_of(p.weight));
    if (wanted.style) found.style = torch::stable::new_zeros(p.style, sizes_of(p.style));
    return;
  }
  if (p.to_few()) return backward_to_few<T>(p, wanted, grad, found);
  if (wanted.style) found.style = empty(sizes_of(p.style), compute_scalar_type<T>);
  if constexpr (std::is_same_v<T, float>) {
    if (winograd && need_input) winograd_backward(p, wanted, demodulated ? nullptr : a.demodulation, grad, found);
  }
  const bool convolve_x = !winograd && need_input;
  if (!wanted.weight && !convolve_x) return;
  if (!demodulated) {
    const Tensor before = empty(sizes_of(grad), grad.scalar_type(), true);
    modulation::scale<T>(p.shape_out(), grad.const_data_ptr<T>(), a.demodulation, before.mutable_data_ptr<T>());
    grad = before;
  }
  library_backward<T>(p, wanted, grad, convolve_x, found);
}

// ---- the operator

Tensor forward(const Tensor& x, const Tensor& weight, const Tensor& style, const OptionalTensor& demodulation, const Tensor& f,
               const OptionalTensor& bias, const OptionalTensor& noise, const OptionalTensor& strength, bool up, bool down,
               double slope, double gain, std::string algorithm) {
  const Problem p({x, weight, style, demodulation, f, bias, noise, strength, up, down, slope, gain, std::move(algorithm)});
  const std::vector<int64_t> size{p.batch, p.out, p.out_height, p.out_width};
  const bool channels_last = is_channels_last(x);
  if (p.batch == 0 || p.out == 0) return empty(size, x.scalar_type(), channels_last);
  const Tensor result = dispatch_floating(x.scalar_type(), "modulated_conv2d", [&]<typename T>() {
    const modulation::Activation<Compute<T>> a = activation_of<Compute<T>>(p);
    if (p.in == 0) {  // the sum over no channels
      const Tensor y = zeros<T>(size);
      modulation::finish<T>(p.shape_out(), a, y.template mutable_data_ptr<T>());
      return y;
    }
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
    const Tensor& grad, const Tensor& x, const Tensor& weight, const Tensor& style, const OptionalTensor& demodulation,
    const Tensor& f, const OptionalTensor& bias, const OptionalTensor& noise, const OptionalTensor& strength,
    const OptionalTensor& y, bool up, bool down, double slope, double gain, std::string algorithm, bool need_x, bool need_weight,
    bool need_style, bool need_demodulation, bool need_activation) {
  const Problem p({x, weight, style, demodulation, f, bias, noise, strength, up, down, slope, gain, std::move(algorithm)});
  const Request wanted{grad, y, need_x, need_weight, need_style, need_demodulation && demodulation, need_activation && bias};
  const ScalarType type = x.scalar_type();
  STD_TORCH_CHECK(y || (!bias && !wanted.demodulation), "modulated_conv2d_backward: the operator's output is needed");
  STD_TORCH_CHECK(sizes_of(grad) == std::vector<int64_t>({p.batch, p.out, p.out_height, p.out_width}) &&
                      grad.scalar_type() == type && (!y || (sizes_of(*y) == sizes_of(grad) && y->scalar_type() == type)),
                  "modulated_conv2d_backward: grad does not fit the operator's output");
  // Outputs must not share memory.
  const auto none = [&] { return empty({0}, type); };
  Gradients found{none(), none(), none(), none(), none(), none(), none()};
  dispatch_floating(type, "modulated_conv2d_backward", [&]<typename T>() { backward_as<T>(p, wanted, found); });
  return {need_x ? in_layout(found.x, is_channels_last(x)) : none(),
          need_weight ? torch::stable::contiguous(torch::stable::to(found.weight, weight.scalar_type())) : none(),
          found.style,
          found.demodulation,
          found.bias,
          found.noise,
          found.strength};
}

}  // namespace
}  // namespace ggf::modulated_conv2d

STABLE_TORCH_LIBRARY_IMPL(gangealing_fast, CPU, m) {
  m.impl("modulated_conv2d", TORCH_BOX(&ggf::modulated_conv2d::forward));
  m.impl("modulated_conv2d_backward", TORCH_BOX(&ggf::modulated_conv2d::backward));
}
