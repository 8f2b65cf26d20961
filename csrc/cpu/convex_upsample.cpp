// SPDX-License-Identifier: Apache-2.0
// Convex upsampling of a flow, without the 9-fold intermediate. Maths: gangealing_fast/ops/convex_upsample.py.
//
// For one fine position (i, j) inside its coarse cell the 9 logits of all coarse positions are contiguous, so that the
// loops run over blocks of coarse positions, whatever the width. The 3x3 neighbours are laid out once, [9, 2, h * w].
#include "levels.h"
#include "exponential.h"

#include <algorithm>
#include <cmath>
#include <tuple>
#include <utility>

namespace ggf::convex_upsample {

// Coarse positions handled together. Backward writes nine rows of the mask's gradient at a time: it wants them long.
inline constexpr int64_t forward_block = 128, backward_block = 256;

template <typename A>
struct Problem {
  const A* neighbours;  // [N, 9, 2, h * w], times the factor
  const A* mask;        // [N, 9, factor, factor, h * w]
  int64_t width, cells, factor;
};

// Calls body(k) for k = 0 to 8 as constants, so that what it indexes by k stays in registers.
template <typename Body>
GGF_INLINE void for_nine(const Body& body) {
  const auto call = [&]<int64_t... k>(std::integer_sequence<int64_t, k...>)
                        GGF_INLINE_LAMBDA { (body(std::integral_constant<int64_t, k>{}), ...); };
  call(std::make_integer_sequence<int64_t, 9>{});
}

// weight[k] = exp(logit k - largest logit); returns their sum. The logits of k are `stride` apart.
template <typename A>
GGF_INLINE A exponentials(const A* logits, int64_t stride, A least, A (&weight)[9]) {
  for_nine([&](auto k) GGF_INLINE_LAMBDA { weight[k] = logits[k * stride]; });
  // In pairs, so that no operation waits for eight others.
  const auto larger = [](A a, A b) GGF_INLINE_LAMBDA { return a > b ? a : b; };
  const A largest = larger(larger(larger(larger(weight[0], weight[1]), larger(weight[2], weight[3])),
                                  larger(larger(weight[4], weight[5]), larger(weight[6], weight[7]))),
                           weight[8]);
  for_nine([&](auto k) GGF_INLINE_LAMBDA { weight[k] = exponential(weight[k] - largest, least); });
  const A first = (weight[0] + weight[1]) + (weight[2] + weight[3]), second = (weight[4] + weight[5]) + (weight[6] + weight[7]);
  return first + second + weight[8];
}

// The neighbours of a block of cells.
template <int64_t block, typename A>
GGF_INLINE void copy_neighbours(const A* neighbours, int64_t cells, int64_t begin, int64_t count, A (&near)[9][2][block]) {
  for (int64_t k = 0; k < 9; ++k)
    for (int64_t c = 0; c < 2; ++c) std::copy_n(neighbours + (2 * k + c) * cells + begin, count, near[k][c]);
}

// Where the fine vectors of cells [begin, end) start in the output.
template <int64_t block, typename A>
GGF_INLINE void fine_offsets(const Problem<A>& problem, int64_t begin, int64_t end, int64_t (&offset)[block]) {
  int64_t row = begin / problem.width, column = begin % problem.width;
  for (int64_t p = 0; p < end - begin; ++p) {
    offset[p] = 2 * problem.factor * (row * problem.width * problem.factor + column);
    if (++column == problem.width) {
      column = 0;
      ++row;
    }
  }
}

// output: [h * factor, w * factor, 2] of the sample whose neighbours and mask are given
template <typename A>
GGF_INLINE void forward_cells(const Problem<A>& problem, const A* neighbours, const A* mask, A* output, int64_t begin,
                              int64_t end) {
  constexpr int64_t block = forward_block;
  const int64_t factor = problem.factor, cells = problem.cells, width = problem.width, count = end - begin;
  const int64_t stride = factor * factor * cells;
  const A least = least_argument<A>;
  alignas(64) A vectors[2 * block];
  int64_t offset[block];
  fine_offsets(problem, begin, end, offset);
  A near[9][2][block];
  copy_neighbours(neighbours, cells, begin, count, near);
  for (int64_t i = 0; i < factor; ++i)
    for (int64_t j = 0; j < factor; ++j) {
      const A* logits = mask + (i * factor + j) * cells + begin;
      for (int64_t p = 0; p < count; ++p) {
        A weight[9], x = 0, y = 0;
        const A scale = 1 / exponentials(logits + p, stride, least, weight);
        for_nine([&](auto k) GGF_INLINE_LAMBDA {
          x += weight[k] * near[k][0][p];
          y += weight[k] * near[k][1][p];
        });
        vectors[2 * p] = x * scale;
        vectors[2 * p + 1] = y * scale;
      }
      A* fine = output + 2 * (i * width * factor + j);
      for (int64_t p = 0; p < count; ++p) __builtin_memcpy(fine + offset[p], vectors + 2 * p, 2 * sizeof(A));
    }
}

// grad: [h * factor, w * factor, 2]; grad_mask like mask; grad_neighbours like neighbours, without the factor
template <typename A>
GGF_INLINE void backward_cells(const Problem<A>& problem, const A* neighbours, const A* mask, const A* grad, A* grad_mask,
                               A* grad_neighbours, int64_t begin, int64_t end) {
  constexpr int64_t block = backward_block;
  const int64_t factor = problem.factor, cells = problem.cells, width = problem.width, count = end - begin;
  const int64_t stride = factor * factor * cells;
  const A least = least_argument<A>;
  alignas(64) A vectors[2 * block], sums[9][2][block] = {};
  int64_t offset[block];
  fine_offsets(problem, begin, end, offset);
  A near[9][2][block];
  copy_neighbours(neighbours, cells, begin, count, near);
  for (int64_t i = 0; i < factor; ++i)
    for (int64_t j = 0; j < factor; ++j) {
      const A* fine = grad + 2 * (i * width * factor + j);
      for (int64_t p = 0; p < count; ++p) __builtin_memcpy(vectors + 2 * p, fine + offset[p], 2 * sizeof(A));
      const int64_t first = (i * factor + j) * cells + begin;
      const A* logits = mask + first;
      A* result = grad_mask + first;
#pragma GCC ivdep  // the results alias nothing that is read here
      for (int64_t p = 0; p < count; ++p) {
        A weight[9], product[9], mean = 0;
        const A x = vectors[2 * p], y = vectors[2 * p + 1];
        const A scale = 1 / exponentials(logits + p, stride, least, weight);
        for_nine([&](auto k) GGF_INLINE_LAMBDA {
          weight[k] *= scale;
          product[k] = x * near[k][0][p] + y * near[k][1][p];
          mean += weight[k] * product[k];
          sums[k][0][p] += weight[k] * x;
          sums[k][1][p] += weight[k] * y;
        });
        for_nine([&](auto k) GGF_INLINE_LAMBDA { result[k * stride + p] = weight[k] * (product[k] - mean); });
      }
    }
  for (int64_t k = 0; k < 9; ++k)
    for (int64_t c = 0; c < 2; ++c) std::copy_n(sums[k][c], count, grad_neighbours + (2 * k + c) * cells + begin);
}

// Calls body(k, cell, neighbour, count) for runs of `count` cells whose k-th neighbours, from `neighbour` on, exist.
template <typename Body>
GGF_INLINE void for_each_neighbour(int64_t height, int64_t width, const Body& body) {
  for (int64_t k = 0; k < 9; ++k) {
    const int64_t down = k / 3 - 1, across = k % 3 - 1;
    const int64_t first = std::max<int64_t>(0, -across), last = std::min(width, width - across);
    for (int64_t y = std::max<int64_t>(0, -down); y < std::min(height, height - down); ++y)
      body(k, y * width + first, (y + down) * width + first + across, last - first);
  }
}

// flow: [h * w, 2] -> neighbours [9, 2, h * w], which are 0 before
template <typename A>
GGF_INLINE void gather_neighbours(const A* flow, A* neighbours, int64_t height, int64_t width, A factor) {
  const int64_t cells = height * width;
  for_each_neighbour(height, width, [&](int64_t k, int64_t cell, int64_t neighbour, int64_t count) GGF_INLINE_LAMBDA {
    const A* GGF_RESTRICT from = flow + 2 * neighbour;
    A* GGF_RESTRICT x = neighbours + 2 * k * cells + cell;
    A* GGF_RESTRICT y = x + cells;
    for (int64_t p = 0; p < count; ++p) {
      x[p] = factor * from[2 * p];
      y[p] = factor * from[2 * p + 1];
    }
  });
}

// The adjoint of `gather_neighbours`; grad_flow is 0 before.
template <typename A>
GGF_INLINE void add_neighbours(const A* grad_neighbours, A* grad_flow, int64_t height, int64_t width, A factor) {
  const int64_t cells = height * width;
  for_each_neighbour(height, width, [&](int64_t k, int64_t cell, int64_t neighbour, int64_t count) GGF_INLINE_LAMBDA {
    A* GGF_RESTRICT to = grad_flow + 2 * neighbour;
    const A* GGF_RESTRICT x = grad_neighbours + 2 * k * cells + cell;
    const A* GGF_RESTRICT y = x + cells;
    for (int64_t p = 0; p < count; ++p) {
      to[2 * p] += factor * x[p];
      to[2 * p + 1] += factor * y[p];
    }
  });
}

bool any_double(const Tensor& a, const Tensor& b) {
  return a.scalar_type() == ScalarType::Double || b.scalar_type() == ScalarType::Double;
}

void check(const Tensor& flow, const Tensor& mask, int64_t factor) {
  STD_TORCH_CHECK(flow.dim() == 4 && flow.size(3) == 2 && mask.dim() == 4 && factor >= 1 && factor <= 64 &&
                      mask.size(0) == flow.size(0) && mask.size(1) == 9 * factor * factor && mask.size(2) == flow.size(1) &&
                      mask.size(3) == flow.size(2),
                  "convex_upsample: mask does not fit flow and factor");
}

// Calls body(sample, begin, end) for every block of cells of every sample.
template <typename Body>
void for_each_block(int64_t batch, int64_t cells, int64_t factor, int64_t block, const Body& body) {
  const int64_t blocks = ceil_divide(cells, block);
  parallel_for(0, batch * blocks, grain(9 * factor * factor * block), [&](int64_t first, int64_t last) {
    for (int64_t item = first; item < last; ++item)
      body(item / blocks, item % blocks * block, std::min(cells, (item % blocks + 1) * block));
  });
}

template <typename A>
std::vector<A> all_neighbours(const Tensor& flow, int64_t factor) {
  const int64_t height = flow.size(1), width = flow.size(2), cells = height * width;
  std::vector<A> neighbours(flow.size(0) * 18 * cells);
  const A* data = flow.const_data_ptr<A>();
  for (int64_t n = 0; n < flow.size(0); ++n)
    at_level<gather_neighbours<A>>(data + n * 2 * cells, neighbours.data() + n * 18 * cells, height, width, static_cast<A>(factor));
  return neighbours;
}

template <typename A>
Tensor forward_as(const Tensor& flow_, const Tensor& mask_, int64_t factor) {
  const Tensor flow = converted(flow_, compute_scalar_type<A>), mask = converted(mask_, compute_scalar_type<A>);
  const int64_t batch = flow.size(0), height = flow.size(1), width = flow.size(2), cells = height * width;
  const Tensor output = empty({batch, height * factor, width * factor, 2}, compute_scalar_type<A>);
  if (output.numel() == 0) return output;
  const std::vector<A> neighbours = all_neighbours<A>(flow, factor);
  const Problem<A> problem{neighbours.data(), mask.const_data_ptr<A>(), width, cells, factor};
  A* data = output.mutable_data_ptr<A>();
  const int64_t fine = factor * factor * cells;
  for_each_block(batch, cells, factor, forward_block, [&](int64_t n, int64_t begin, int64_t end) {
    at_level<forward_cells<A>>(problem, problem.neighbours + n * 18 * cells, problem.mask + n * 9 * fine, data + n * 2 * fine,
                               begin, end);
  });
  return output;
}

Tensor forward(const Tensor& flow, const Tensor& mask, int64_t factor) {
  check(flow, mask, factor);
  const Tensor output = any_double(flow, mask) ? forward_as<double>(flow, mask, factor) : forward_as<float>(flow, mask, factor);
  return in_type(output, flow.scalar_type());
}

template <typename A>
std::tuple<Tensor, Tensor> backward_as(const Tensor& grad_, const Tensor& flow_, const Tensor& mask_, int64_t factor) {
  const Tensor flow = converted(flow_, compute_scalar_type<A>), mask = converted(mask_, compute_scalar_type<A>);
  const Tensor grad = converted(grad_, compute_scalar_type<A>);
  const int64_t batch = flow.size(0), height = flow.size(1), width = flow.size(2), cells = height * width;
  const Tensor grad_flow = empty(sizes_of(flow), compute_scalar_type<A>);
  const Tensor grad_mask = empty(sizes_of(mask), compute_scalar_type<A>);
  if (grad.numel() == 0) return {grad_flow, grad_mask};
  const std::vector<A> neighbours = all_neighbours<A>(flow, factor);
  std::vector<A> grad_neighbours(neighbours.size());
  const Problem<A> problem{neighbours.data(), mask.const_data_ptr<A>(), width, cells, factor};
  const A* grad_data = grad.const_data_ptr<A>();
  A* mask_data = grad_mask.mutable_data_ptr<A>();
  const int64_t fine = factor * factor * cells;
  for_each_block(batch, cells, factor, backward_block, [&](int64_t n, int64_t begin, int64_t end) {
    at_level<backward_cells<A>>(problem, problem.neighbours + n * 18 * cells, problem.mask + n * 9 * fine, grad_data + n * 2 * fine,
                                mask_data + n * 9 * fine, grad_neighbours.data() + n * 18 * cells, begin, end);
  });
  A* flow_data = grad_flow.mutable_data_ptr<A>();
  std::fill_n(flow_data, grad_flow.numel(), A(0));
  for (int64_t n = 0; n < batch; ++n)
    at_level<add_neighbours<A>>(grad_neighbours.data() + n * 18 * cells, flow_data + n * 2 * cells, height, width,
                                static_cast<A>(factor));
  return {grad_flow, grad_mask};
}

std::tuple<Tensor, Tensor> backward(const Tensor& grad, const Tensor& flow, const Tensor& mask, int64_t factor) {
  check(flow, mask, factor);
  STD_TORCH_CHECK(grad.dim() == 4 && grad.size(0) == flow.size(0) && grad.size(1) == flow.size(1) * factor &&
                      grad.size(2) == flow.size(2) * factor && grad.size(3) == 2,
                  "convex_upsample_backward: grad does not fit flow and factor");
  const auto [grad_flow, grad_mask] =
      any_double(flow, mask) ? backward_as<double>(grad, flow, mask, factor) : backward_as<float>(grad, flow, mask, factor);
  return {in_type(grad_flow, flow.scalar_type()), in_type(grad_mask, mask.scalar_type())};
}

}  // namespace ggf::convex_upsample

STABLE_TORCH_LIBRARY_IMPL(gangealing_fast, CPU, m) {
  m.impl("convex_upsample", TORCH_BOX(&ggf::convex_upsample::forward));
  m.impl("convex_upsample_backward", TORCH_BOX(&ggf::convex_upsample::backward));
}
