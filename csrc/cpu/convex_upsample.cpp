// SPDX-License-Identifier: Apache-2.0
// Convex upsampling of a flow, without the 9-fold intermediate. Maths: gangealing_fast/ops/convex_upsample.py.
//
// For one fine position (i, j) inside its coarse cell the 9 logits of all coarse positions are contiguous, so that the
// loops run over blocks of coarse positions, whatever the width. The 3x3 neighbours are laid out once, [9, 2, h * w].
#include "exponential.h"

#include <algorithm>
#include <cmath>
#include <tuple>

namespace ggf::convex_upsample {

inline constexpr int64_t block = 128;  // coarse positions handled together

template <typename A>
struct Problem {
  const A* neighbours;  // [N, 9, 2, h * w], times the factor
  const A* mask;        // [N, 9, factor, factor, h * w]
  int64_t width, cells, factor;
};

// For `count` cells weight[k] = exp(logit k - largest logit) and sum, the sum over k; the logits of k are `stride`
// apart.
template <typename A>
GGF_INLINE void exponentials(const A* logits, int64_t stride, int64_t count, A (&weight)[9][block], A (&sum)[block]) {
  A largest[block];
  for (int64_t p = 0; p < count; ++p) largest[p] = logits[p];
  for (int64_t k = 1; k < 9; ++k) {
    const A* GGF_RESTRICT row = logits + k * stride;
    for (int64_t p = 0; p < count; ++p) largest[p] = row[p] > largest[p] ? row[p] : largest[p];
  }
  for (int64_t p = 0; p < count; ++p) sum[p] = 0;
  for (int64_t k = 0; k < 9; ++k) {
    const A* GGF_RESTRICT row = logits + k * stride;
    for (int64_t p = 0; p < count; ++p) {
      const A value = exponential(row[p] - largest[p]);
      weight[k][p] = value;
      sum[p] += value;
    }
  }
}

// Where the fine vectors of cells [begin, end) start in the output.
template <typename A>
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
GGF_MULTIVERSION void forward_block(const Problem<A>& problem, const A* neighbours, const A* mask, A* output,
                                    int64_t begin, int64_t end) {
  const int64_t factor = problem.factor, cells = problem.cells, width = problem.width, count = end - begin;
  const int64_t stride = factor * factor * cells;
  A weight[9][block], sum[block], x[block], y[block];
  int64_t offset[block];
  fine_offsets(problem, begin, end, offset);
  for (int64_t i = 0; i < factor; ++i)
    for (int64_t j = 0; j < factor; ++j) {
      exponentials(mask + (i * factor + j) * cells + begin, stride, count, weight, sum);
      for (int64_t p = 0; p < count; ++p) x[p] = y[p] = 0;
      for (int64_t k = 0; k < 9; ++k) {
        const A* GGF_RESTRICT neighbour = neighbours + 2 * k * cells + begin;
        for (int64_t p = 0; p < count; ++p) {
          x[p] += weight[k][p] * neighbour[p];
          y[p] += weight[k][p] * neighbour[p + cells];
        }
      }
      for (int64_t p = 0; p < count; ++p) {
        x[p] /= sum[p];
        y[p] /= sum[p];
      }
      A* fine = output + 2 * (i * width * factor + j);
      for (int64_t p = 0; p < count; ++p) {
        fine[offset[p]] = x[p];
        fine[offset[p] + 1] = y[p];
      }
    }
}

// grad: [h * factor, w * factor, 2]; grad_mask like mask; grad_neighbours like neighbours, without the factor
template <typename A>
GGF_MULTIVERSION void backward_block(const Problem<A>& problem, const A* neighbours, const A* mask, const A* grad,
                                     A* grad_mask, A* grad_neighbours, int64_t begin, int64_t end) {
  const int64_t factor = problem.factor, cells = problem.cells, width = problem.width, count = end - begin;
  const int64_t stride = factor * factor * cells;
  A weight[9][block], sum[block], x[block], y[block], product[9][block], mean[block], sums[9][2][block];
  int64_t offset[block];
  fine_offsets(problem, begin, end, offset);
  for (int64_t k = 0; k < 9; ++k)
    for (int64_t p = 0; p < count; ++p) sums[k][0][p] = sums[k][1][p] = 0;
  for (int64_t i = 0; i < factor; ++i)
    for (int64_t j = 0; j < factor; ++j) {
      const int64_t first = (i * factor + j) * cells + begin;
      exponentials(mask + first, stride, count, weight, sum);
      const A* fine = grad + 2 * (i * width * factor + j);
      for (int64_t p = 0; p < count; ++p) {
        x[p] = fine[offset[p]];
        y[p] = fine[offset[p] + 1];
      }
      for (int64_t p = 0; p < count; ++p) {
        sum[p] = 1 / sum[p];
        mean[p] = 0;
      }
      for (int64_t k = 0; k < 9; ++k) {
        const A* GGF_RESTRICT neighbour = neighbours + 2 * k * cells + begin;
        for (int64_t p = 0; p < count; ++p) {
          const A share = weight[k][p] * sum[p];
          weight[k][p] = share;
          product[k][p] = x[p] * neighbour[p] + y[p] * neighbour[p + cells];
          mean[p] += share * product[k][p];
          sums[k][0][p] += share * x[p];
          sums[k][1][p] += share * y[p];
        }
      }
      for (int64_t k = 0; k < 9; ++k) {
        A* GGF_RESTRICT result = grad_mask + k * stride + first;
        for (int64_t p = 0; p < count; ++p) result[p] = weight[k][p] * (product[k][p] - mean[p]);
      }
    }
  for (int64_t k = 0; k < 9; ++k)
    for (int64_t c = 0; c < 2; ++c)
      std::copy_n(sums[k][c], count, grad_neighbours + (2 * k + c) * cells + begin);
}

template <typename A>
void gather_neighbours(const A* flow, A* neighbours, int64_t height, int64_t width, A factor) {
  for (int64_t k = 0; k < 9; ++k)
    for (int64_t c = 0; c < 2; ++c)
      for (int64_t y = 0; y < height; ++y)
        for (int64_t x = 0; x < width; ++x) {
          const int64_t row = y + k / 3 - 1, column = x + k % 3 - 1;
          const bool inside = row >= 0 && row < height && column >= 0 && column < width;
          *neighbours++ = inside ? factor * flow[2 * (row * width + column) + c] : A(0);
        }
}

template <typename A>
void add_neighbours(const A* grad_neighbours, A* grad_flow, int64_t height, int64_t width, A factor) {
  for (int64_t y = 0; y < height; ++y)
    for (int64_t x = 0; x < width; ++x)
      for (int64_t c = 0; c < 2; ++c) {
        A sum = 0;
        for (int64_t k = 0; k < 9; ++k) {
          const int64_t row = y - (k / 3 - 1), column = x - (k % 3 - 1);
          if (row >= 0 && row < height && column >= 0 && column < width)
            sum += grad_neighbours[((2 * k + c) * height + row) * width + column];
        }
        *grad_flow++ = factor * sum;
      }
}

bool any_double(const Tensor& a, const Tensor& b) {
  return a.scalar_type() == ScalarType::Double || b.scalar_type() == ScalarType::Double;
}

void check(const Tensor& flow, const Tensor& mask, int64_t factor) {
  STD_TORCH_CHECK(flow.dim() == 4 && flow.size(3) == 2 && mask.dim() == 4 && factor >= 1 && factor <= 64 &&
                      mask.size(0) == flow.size(0) && mask.size(1) == 9 * factor * factor &&
                      mask.size(2) == flow.size(1) && mask.size(3) == flow.size(2),
                  "convex_upsample: mask does not fit flow and factor");
}

// Calls body(sample, begin, end) for every block of cells of every sample.
template <typename Body>
void for_each_block(int64_t batch, int64_t cells, int64_t factor, const Body& body) {
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
    gather_neighbours(data + n * 2 * cells, neighbours.data() + n * 18 * cells, height, width, static_cast<A>(factor));
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
  for_each_block(batch, cells, factor, [&](int64_t n, int64_t begin, int64_t end) {
    forward_block<A>(problem, problem.neighbours + n * 18 * cells, problem.mask + n * 9 * fine, data + n * 2 * fine,
                     begin, end);
  });
  return output;
}

Tensor forward(const Tensor& flow, const Tensor& mask, int64_t factor) {
  check(flow, mask, factor);
  const Tensor output =
      any_double(flow, mask) ? forward_as<double>(flow, mask, factor) : forward_as<float>(flow, mask, factor);
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
  for_each_block(batch, cells, factor, [&](int64_t n, int64_t begin, int64_t end) {
    backward_block<A>(problem, problem.neighbours + n * 18 * cells, problem.mask + n * 9 * fine,
                      grad_data + n * 2 * fine, mask_data + n * 9 * fine, grad_neighbours.data() + n * 18 * cells,
                      begin, end);
  });
  A* flow_data = grad_flow.mutable_data_ptr<A>();
  for (int64_t n = 0; n < batch; ++n)
    add_neighbours(grad_neighbours.data() + n * 18 * cells, flow_data + n * 2 * cells, height, width,
                   static_cast<A>(factor));
  return {grad_flow, grad_mask};
}

std::tuple<Tensor, Tensor> backward(const Tensor& grad, const Tensor& flow, const Tensor& mask, int64_t factor) {
  check(flow, mask, factor);
  STD_TORCH_CHECK(grad.dim() == 4 && grad.size(0) == flow.size(0) && grad.size(1) == flow.size(1) * factor &&
                      grad.size(2) == flow.size(2) * factor && grad.size(3) == 2,
                  "convex_upsample_backward: grad does not fit flow and factor");
  const auto [grad_flow, grad_mask] = any_double(flow, mask) ? backward_as<double>(grad, flow, mask, factor)
                                                             : backward_as<float>(grad, flow, mask, factor);
  return {in_type(grad_flow, flow.scalar_type()), in_type(grad_mask, mask.scalar_type())};
}

}  // namespace ggf::convex_upsample

STABLE_TORCH_LIBRARY_IMPL(gangealing_fast, CPU, m) {
  m.impl("convex_upsample", TORCH_BOX(&ggf::convex_upsample::forward));
  m.impl("convex_upsample_backward", TORCH_BOX(&ggf::convex_upsample::backward));
}
