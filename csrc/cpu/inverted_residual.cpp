// SPDX-License-Identifier: Apache-2.0
// An inverted residual block: its weights in strips, and how much of it is computed at a time.
#include "inverted_residual.h"

namespace ggf::inverted_residual {

// What a task keeps beside its input and output: half of a small second cache.
inline constexpr int64_t scratch_bytes = 262144;
// Output pixels that a weight read from the second cache serves.
inline constexpr int64_t least_pixels = 96;

template <typename A>
std::vector<A> in_strips(const Tensor& matrix, int64_t channels, int64_t depth) {
  std::vector<A> result(strips_of<A>(channels) * depth * lanes<A>);
  at_level<put_into_strips<A>>(matrix.const_data_ptr<A>(), channels, depth, result.data());
  return result;
}

template <typename A>
void choose_sizes(Problem<A>& p) {
  p.rows_together = std::clamp<int64_t>(ceil_divide(least_pixels, p.out_width), 1, p.out_height);
  const int64_t strip_bytes = (p.slots() * p.padded_width() + p.rows_together * p.out_width) * lanes<A> * int64_t(sizeof(A));
  const int64_t together = std::clamp<int64_t>(scratch_bytes / strip_bytes, 1, p.strips());
  // Groups of the same size.
  p.strips_together = ceil_divide(p.strips(), ceil_divide(p.strips(), together));
}

template <typename A>
void run(const Problem<A>& p) {
  const int64_t ring = p.strips_together * p.slots() * p.padded_width() * lanes<A>;
  const int64_t deep = p.strips_together * p.rows_together * p.out_width * lanes<A>;
  const int64_t work = p.out_width * p.hidden * (p.channels_in + p.channels_out);
  parallel_for(0, p.batch * p.out_height, grain(work / 8), [&](int64_t begin, int64_t end) {
    const Room<A> room(ring + deep + p.padded_width() * lanes<A>);
    const Scratch<A> scratch{room.data(), room.data() + ring, room.data() + ring + deep};
    at_each_level<[]<Level level>(const auto&... all) GGF_INLINE_LAMBDA { block_rows<level>(all...); }>(p, scratch, begin, end);
  });
}

struct Weights {
  const std::optional<Tensor>&expand, &expand_bias;
  const Tensor &depthwise, &depthwise_bias, &project, &project_bias;
};

// x and y: channels-last, of type A.
template <typename A>
void compute(Problem<A> p, const Tensor& x, const Tensor& y, const Weights& w) {
  constexpr ScalarType type = compute_scalar_type<A>;
  const auto pack = [](const Tensor& weight, int64_t channels, int64_t depth) {
    return in_strips<A>(converted(weight, type), channels, depth);
  };
  std::vector<A> expand, expand_bias;
  if (w.expand) {
    expand = pack(*w.expand, p.hidden, p.channels_in);
    expand_bias = pack(*w.expand_bias, p.hidden, 1);
  }
  const auto depthwise = pack(w.depthwise, p.hidden, p.kernel * p.kernel), depthwise_bias = pack(w.depthwise_bias, p.hidden, 1);
  const auto project = pack(w.project, p.channels_out, p.hidden), project_bias = pack(w.project_bias, p.channels_out, 1);
  p.x = x.const_data_ptr<A>();
  p.y = y.mutable_data_ptr<A>();
  p.expands = w.expand.has_value();
  p.expand = expand.data();
  p.expand_bias = expand_bias.data();
  p.depthwise = depthwise.data();
  p.depthwise_bias = depthwise_bias.data();
  p.project = project.data();
  p.project_bias = project_bias.data();
  choose_sizes(p);
  run(p);
}

void check(const Tensor& x, const Weights& w, int64_t stride, bool residual) {
  const auto is = [](const Tensor& tensor, const std::vector<int64_t>& size) { return sizes_of(tensor) == size; };
  STD_TORCH_CHECK(
      x.dim() == 4 && w.depthwise.dim() == 4 && w.project.dim() == 4 && w.expand.has_value() == w.expand_bias.has_value(),
      "inverted_residual: x and the weights must have four axes, and expand_weight a bias");
  const int64_t in = x.size(1), hidden = w.depthwise.size(0), out = w.project.size(0), kernel = w.depthwise.size(2);
  STD_TORCH_CHECK((w.expand ? is(*w.expand, {hidden, in, 1, 1}) && is(*w.expand_bias, {hidden}) : hidden == in) &&
                      is(w.depthwise, {hidden, 1, kernel, kernel}) && is(w.depthwise_bias, {hidden}) &&
                      is(w.project, {out, hidden, 1, 1}) && is(w.project_bias, {out}) && kernel >= 1 && kernel <= largest_kernel &&
                      stride >= 1 && stride <= largest_kernel && (!residual || (stride == 1 && in == out)),
                  "inverted_residual: the weights do not fit x and one another");
}

Tensor forward(const Tensor& x_, const std::optional<Tensor>& expand, const std::optional<Tensor>& expand_bias,
               const Tensor& depthwise, const Tensor& depthwise_bias, const Tensor& project, const Tensor& project_bias,
               int64_t stride, int64_t left, int64_t right, int64_t top, int64_t bottom, bool replicate, bool residual) {
  const Weights weights{expand, expand_bias, depthwise, depthwise_bias, project, project_bias};
  check(x_, weights, stride, residual);
  const int64_t kernel = depthwise.size(2), height = x_.size(2), width = x_.size(3);
  STD_TORCH_CHECK(std::min({left, right, top, bottom}) >= 0 && std::max({left, right, top, bottom}) < kernel &&
                      height + top + bottom >= kernel && width + left + right >= kernel && height > 0 && width > 0,
                  "inverted_residual: the padding must be less than the kernel, and the padded picture not smaller");
  const int64_t out_height = (height + top + bottom - kernel) / stride + 1,
                out_width = (width + left + right - kernel) / stride + 1;
  STD_TORCH_CHECK(!residual || (out_height == height && out_width == width), "inverted_residual: a residual needs the same size");
  const bool channels_last = is_channels_last(x_);
  const std::vector<int64_t> size{x_.size(0), project.size(0), out_height, out_width};
  Tensor y;
  dispatch_floating(x_.scalar_type(), "inverted_residual", [&]<typename T>() {
    using A = Compute<T>;
    const Tensor x = in_layout(in_type(x_, compute_scalar_type<A>), true);
    y = empty(size, compute_scalar_type<A>, true);
    if (y.numel() == 0) return;
    Problem<A> p{};
    p.batch = size[0], p.channels_in = x.size(1), p.hidden = depthwise.size(0), p.channels_out = size[1];
    p.height = height, p.width = width, p.out_height = out_height, p.out_width = out_width;
    p.kernel = kernel, p.stride = stride, p.left = left, p.right = right, p.top = top;
    p.replicate = replicate, p.residual = residual;
    compute<A>(p, x, y, weights);
  });
  y = in_type(y, x_.scalar_type());
  return channels_last ? y : in_layout(y, false);
}

}  // namespace ggf::inverted_residual

STABLE_TORCH_LIBRARY_IMPL(gangealing_fast, CPU, m) { m.impl("inverted_residual", TORCH_BOX(&ggf::inverted_residual::forward)); }
