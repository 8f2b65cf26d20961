// SPDX-License-Identifier: Apache-2.0
// The arguments of modulated_conv2d, checked and in the layout that its kernels read. Maths: gangealing_fast/ops/modulated_conv2d.py.
#pragma once

#include "modulation.h"

#include <string>

namespace ggf::modulated_conv2d {

using modulation::Shape;
using OptionalTensor = std::optional<Tensor>;

// The low-pass filter's padding: as blur_padding in Python.
struct Padding {
  int64_t before, after;
};

// What the operator and its backward both get.
struct Arguments {
  Tensor x, weight, style;
  OptionalTensor demodulation;
  Tensor f;
  OptionalTensor bias, noise, strength;
  bool up, down;
  double slope, gain;
  std::string algorithm;
};

inline OptionalTensor compact(const OptionalTensor& t) { return t ? OptionalTensor(torch::stable::contiguous(*t)) : std::nullopt; }

// The arguments with x channels-last, style and the parameters after it contiguous in the type computed in, and their sizes.
struct Problem : Arguments {
  int64_t batch, in, out, k, height, width, out_height, out_width;

  explicit Problem(Arguments arguments) : Arguments(std::move(arguments)) {
    STD_TORCH_CHECK(x.dim() == 4 && weight.dim() == 4 && weight.size(1) == x.size(1) && weight.size(2) == weight.size(3) &&
                        style.numel() == x.size(0) * x.size(1) && f.dim() == 2 && !(up && down),
                    "modulated_conv2d: x must be [N, Cin, H, W], weight [Cout, Cin, k, k], style [N, Cin]");
    x = in_layout(x, true);
    style = torch::stable::contiguous(style);
    for (OptionalTensor* parameter : {&demodulation, &bias, &noise, &strength}) *parameter = compact(*parameter);
    batch = x.size(0);
    in = x.size(1);
    height = x.size(2);
    width = x.size(3);
    out = weight.size(0);
    k = weight.size(2);
    const int64_t even = 1 - k % 2;
    out_height = up ? 2 * height : down ? height / 2 : height + even;
    out_width = up ? 2 * width : down ? width / 2 : width + even;
    const int64_t positions = out_height * out_width;
    STD_TORCH_CHECK((!demodulation || demodulation->numel() == batch * out) && (!bias || bias->numel() == out) &&
                        (!noise || (strength && strength->numel() == 1 &&
                                    (noise->numel() == positions || noise->numel() == batch * positions))),
                    "modulated_conv2d: demodulation, bias or noise does not fit x");
  }

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

}  // namespace ggf::modulated_conv2d
