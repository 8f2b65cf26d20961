// SPDX-License-Identifier: Apache-2.0
// Normalise, difference, head and spatial mean in one pass over two feature maps. Maths: gangealing_fast/ops/lpips_distance.py.
//
// Nothing but the gradients is written; the backward finds the norms anew. Sums are taken over fixed pieces of one sample and then in
// order, so that the result does not depend on the number of threads.
#include "levels.h"
#include "lpips_pixels.h"
#include "lpips_planes.h"

#include <algorithm>
#include <tuple>

namespace ggf::lpips_distance {

// (Whether channels-last, both maps in the layout of the first, the head in the type computed in).
std::tuple<bool, Tensor, Tensor, Tensor> arguments(const Tensor& a, const Tensor& b, const Tensor& head) {
  STD_TORCH_CHECK(a.dim() == 4 && sizes_of(a) == sizes_of(b) && a.scalar_type() == b.scalar_type() && head.numel() == a.size(1),
                  "lpips_distance: a and b must agree in shape and dtype, head must have one entry per channel");
  const ScalarType compute = a.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  const bool channels_last = is_channels_last(a);
  return {channels_last, in_layout(a, channels_last), in_layout(b, channels_last),
          torch::stable::contiguous(torch::stable::to(head, compute))};
}

Tensor forward(const Tensor& a_, const Tensor& b_, const Tensor& head_) {
  const auto [channels_last, a, b, head] = arguments(a_, b_, head_);
  const int64_t batch = a.size(0), channels = a.size(1), positions = a.size(2) * a.size(3);
  const Tensor result = empty({batch}, head.scalar_type());
  const int64_t each = ceil_divide(positions, piece);
  dispatch_floating(a.scalar_type(), "lpips_distance", [&]<typename T>() {
    using A = Compute<T>;
    std::vector<A> distance(batch * each);
    const Problem<T> p{a.const_data_ptr<T>(),
                       b.const_data_ptr<T>(),
                       head.const_data_ptr<A>(),
                       nullptr,
                       nullptr,
                       nullptr,
                       nullptr,
                       distance.data(),
                       channels,
                       positions,
                       each,
                       a.numel()};
    parallel_for(0, batch * each, grain(piece * channels), [&](int64_t begin, int64_t end) {
      if (!channels_last) return at_level<forward_planes<T>>(p, begin, end);
      at_each_level<[]<Level level>(const auto&... all) GGF_INLINE_LAMBDA { forward_pixels<T, level>(all...); }>(p, begin, end);
    });
    A* out = result.mutable_data_ptr<A>();
    for (int64_t n = 0; n < batch; ++n) {
      A total = 0;
      for (int64_t i = 0; i < each; ++i) total += distance[n * each + i];
      out[n] = total / static_cast<A>(positions);
    }
  });
  return result;
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad_, const Tensor& a_, const Tensor& b_, const Tensor& head_,
                                            bool need_a, bool need_b, bool need_head) {
  const auto [channels_last, a, b, head] = arguments(a_, b_, head_);
  const int64_t batch = a.size(0), channels = a.size(1), positions = a.size(2) * a.size(3);
  STD_TORCH_CHECK(grad_.numel() == batch, "lpips_distance_backward: grad must have one entry per sample");
  const Tensor grad = torch::stable::contiguous(torch::stable::to(grad_, head.scalar_type()));
  const std::vector<int64_t> nothing{0};
  const Tensor grad_a = empty(need_a ? sizes_of(a) : nothing, a.scalar_type(), channels_last && need_a);
  const Tensor grad_b = empty(need_b ? sizes_of(b) : nothing, b.scalar_type(), channels_last && need_b);
  const Tensor grad_head = empty({need_head ? channels : 0}, head.scalar_type());
  const int64_t each = ceil_divide(positions, piece), pieces = batch * each;
  dispatch_floating(a.scalar_type(), "lpips_distance_backward", [&]<typename T>() {
    using A = Compute<T>;
    std::vector<A> scales(batch), sums(need_head ? pieces * channels : 0);
    for (int64_t n = 0; n < batch; ++n) scales[n] = 2 * grad.const_data_ptr<A>()[n] / static_cast<A>(positions);
    const Problem<T> p{a.const_data_ptr<T>(),
                       b.const_data_ptr<T>(),
                       head.const_data_ptr<A>(),
                       scales.data(),
                       need_a ? grad_a.mutable_data_ptr<T>() : nullptr,
                       need_b ? grad_b.mutable_data_ptr<T>() : nullptr,
                       need_head ? sums.data() : nullptr,
                       nullptr,
                       channels,
                       positions,
                       each,
                       a.numel()};
    parallel_for(0, pieces, grain(piece * channels), [&](int64_t begin, int64_t end) {
      if (!channels_last) return at_level<backward_planes<T>>(p, begin, end);
      at_each_level<[]<Level level>(const auto&... all) GGF_INLINE_LAMBDA { backward_pixels<T, level>(all...); }>(p, begin, end);
    });
    if (!need_head) return;
    A* out = grad_head.mutable_data_ptr<A>();
    std::fill_n(out, channels, A(0));
    for (int64_t part = 0; part < pieces; ++part)
      for (int64_t c = 0; c < channels; ++c) out[c] += sums[part * channels + c];
  });
  return {grad_a, grad_b, torch::stable::to(grad_head, head_.scalar_type())};
}

}  // namespace ggf::lpips_distance

STABLE_TORCH_LIBRARY_IMPL(gangealing_fast, CPU, m) {
  m.impl("lpips_distance", TORCH_BOX(&ggf::lpips_distance::forward));
  m.impl("lpips_distance_backward", TORCH_BOX(&ggf::lpips_distance::backward));
}
