// SPDX-License-Identifier: Apache-2.0
// torch's convolutions, which run on oneDNN, through the dispatcher of the stable ABI.
#pragma once

#include "../common.h"

#include <array>
#include <tuple>

namespace ggf::aten {

struct Geometry {
  int64_t stride = 1, padding_y = 0, padding_x = 0;
  bool transposed = false;
};

template <typename... Arguments>
auto call(const char* name, const Arguments&... arguments) {
  std::array<StableIValue, sizeof...(Arguments)> stack{torch::stable::detail::from(arguments)...};
  GGF_TORCH_CHECK(torch_call_dispatcher(name, "", stack.data(), TORCH_ABI_VERSION));
  return stack;
}

inline Tensor convolution(const Tensor& x, const Tensor& weight, const Geometry& g) {
  // oneDNN's bfloat16 convolution (AMX, torch 2.14) leaves elements unwritten where it strides to a result of one column.
  if (x.scalar_type() == ScalarType::BFloat16 && g.stride > 1 && !g.transposed &&
      (x.size(3) + 2 * g.padding_x - weight.size(3)) / g.stride == 0)
    return in_type(convolution(in_type(x, ScalarType::Float), in_type(weight, ScalarType::Float), g), ScalarType::BFloat16);
  const std::vector<int64_t> stride{g.stride, g.stride}, padding{g.padding_y, g.padding_x}, one{1, 1}, zero{0, 0};
  const auto stack =
      call("aten::convolution", x, weight, std::optional<Tensor>(), stride, padding, one, g.transposed, zero, int64_t(1));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// Gradients of the input and of the weight, the ones wanted; `x` lends no more than its shape where the weight's is not.
inline std::tuple<Tensor, Tensor> convolution_backward(const Tensor& grad, const Tensor& x, const Tensor& weight, const Geometry& g,
                                                       bool need_x, bool need_weight) {
  const std::vector<int64_t> stride{g.stride, g.stride}, padding{g.padding_y, g.padding_x}, one{1, 1}, zero{0, 0};
  const std::array<bool, 3> mask{need_x, need_weight, false};
  std::array<StableIValue, 11> stack{
      torch::stable::detail::from(grad),
      torch::stable::detail::from(x),
      torch::stable::detail::from(weight),
      torch::stable::detail::from(std::optional<std::vector<int64_t>>()),
      torch::stable::detail::from(stride),
      torch::stable::detail::from(padding),
      torch::stable::detail::from(one),
      torch::stable::detail::from(g.transposed),
      torch::stable::detail::from(zero),
      torch::stable::detail::from(int64_t(1)),
      torch::stable::detail::from(torch::headeronly::HeaderOnlyArrayRef<bool>(mask.data(), mask.size()))};
  GGF_TORCH_CHECK(torch_call_dispatcher("aten::convolution_backward", "", stack.data(), TORCH_ABI_VERSION));
  // All three results are owned by the stack, undefined ones included.
  Tensor results[3] = {torch::stable::detail::to<Tensor>(stack[0]), torch::stable::detail::to<Tensor>(stack[1]),
                       torch::stable::detail::to<Tensor>(stack[2])};
  return {results[0], results[1]};
}

// gangealing_fast::upfirdn2d with square padding.
inline Tensor upfirdn2d(const Tensor& x, const Tensor& f, int64_t before, int64_t after, double gain, bool mirrored) {
  const auto stack = call("gangealing_fast::upfirdn2d", x, f, int64_t(1), int64_t(1), before, after, before, after, gain, mirrored);
  return torch::stable::detail::to<Tensor>(stack[0]);
}

}  // namespace ggf::aten
