// SPDX-License-Identifier: Apache-2.0
// The inverse of a grid between its vertices. Maths: gangealing_fast/ops/invert_grid.py.
//
// A block handles one point: all threads look for its nearest vertex and the cells that hold it, one solves. The gradient by
// the grid is added in integers (exact_sum.cuh) and so bit-identical between runs.
#include "../sampling.h"
#include "block.cuh"
#include "exact_sum.cuh"

#include <tuple>

namespace ggf::cuda::invert_grid {

// As in the Python file, to which the results must agree.
inline constexpr double margin = 1e-3, largest_step = 1e-2, smallest_area = 1e-6;

template <typename A>
struct Point {
  A x, y;
};

template <typename A>
GGF_INLINE Point<A> operator-(Point<A> a, Point<A> b) {
  return {a.x - b.x, a.y - b.y};
}
template <typename A>
GGF_INLINE Point<A> operator+(Point<A> a, Point<A> b) {
  return {a.x + b.x, a.y + b.y};
}
template <typename A>
GGF_INLINE Point<A> operator*(A factor, Point<A> a) {
  return {factor * a.x, factor * a.y};
}
template <typename A>
GGF_INLINE A cross(Point<A> a, Point<A> b) {
  return a.x * b.y - a.y * b.x;
}

// A number minus itself is 0 where it is finite.
template <typename A>
GGF_INLINE bool finite(Point<A> a, Point<A> b) {
  return (a.x - a.x) + (a.y - a.y) + (b.x - b.x) + (b.y - b.y) == 0;
}

template <typename A>
struct Grid {
  const A* vertices;  // [H, W, 2]
  int32_t height, width;

  // Beyond the border the outermost vertex.
  GGF_INLINE int64_t index(int32_t x, int32_t y) const {
    const int32_t row = y < 0 ? 0 : y < height ? y : height - 1, column = x < 0 ? 0 : x < width ? x : width - 1;
    return static_cast<int64_t>(row) * width + column;
  }
  GGF_INLINE Point<A> at(int32_t x, int32_t y) const {
    const int64_t i = index(x, y);
    return {vertices[2 * i], vertices[2 * i + 1]};
  }
};

// Whether the ray from `point` towards larger x crosses the edge; two cells must agree about their common one.
template <typename A>
__device__ __forceinline__ bool crosses(Point<A> start, Point<A> end, Point<A> point) {
  if ((start.y > point.y) == (end.y > point.y)) return false;
  const A side =
      plus(times(plus(end.x, -start.x), plus(point.y, -start.y)), -times(plus(end.y, -start.y), plus(point.x, -start.x)));
  return end.y > start.y ? side > 0 : side < 0;
}

template <typename A>
struct Solution {
  A u, v;
  bool held;
};

// Where in the cell (x, y) the grid takes the value `point`.
template <typename A>
__device__ Solution<A> solve(const Grid<A>& grid, int32_t x, int32_t y, Point<A> point) {
  const Point<A> first = grid.at(x, y), right = grid.at(x + 1, y), lower = grid.at(x, y + 1);
  Point<A> e = right - first, f = lower - first, h = grid.at(x + 1, y + 1) - right - f, d = point - first;
  A longest = 0;
  for (const A length : {e.x, e.y, f.x, f.y, h.x, h.y}) longest = std::max(longest, std::abs(length));
  e = {e.x / longest, e.y / longest};
  f = {f.x / longest, f.y / longest};
  h = {h.x / longest, h.y / longest};
  d = {d.x / longest, d.y / longest};
  const A a = -cross(e, h), b = cross(d, h) - cross(e, f), c = cross(d, f);
  const A q = -(b + std::copysign(std::sqrt(std::max(b * b - 4 * a * c, A(0))), b)) / 2;
  const A roots[2] = {c / q, q / a};
  A distance = std::numeric_limits<A>::infinity(), u = std::numeric_limits<A>::quiet_NaN(), v = u;
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    const Point<A> w = f + roots[k] * h, rest = d - roots[k] * e;
    const A other = (rest.x * w.x + rest.y * w.y) / (w.x * w.x + w.y * w.y);
    const A from_u = std::abs(roots[k] - A(0.5)), from_v = std::abs(other - A(0.5));
    const A outside = from_u > from_v ? from_u : from_v + 0 * from_u;  // NaN if either is
    if (!(outside < distance)) continue;
    distance = outside;
    u = roots[k];
    v = other;
  }
  const Point<A> across = e + v * h, down = f + u * h;
  const A area = cross(across, down);
  const Point<A> rest = d - u * e - v * f - (u * v) * h;
  const A step_u = cross(rest, down) / area, step_v = cross(across, rest) / area;
  const bool solved = std::abs(area) > A(smallest_area) && std::abs(step_u) < A(largest_step) && std::abs(step_v) < A(largest_step);
  u += step_u;
  v += step_v;
  const A reach = A(0.5 + margin);
  return {u, v, solved && std::abs(u - A(0.5)) <= reach && std::abs(v - A(0.5)) <= reach};
}

// grid: [N, H, W, 2]; points: [N, P, 2]; cell, offset: [N, P, 2]; confidence: [N, P]
template <typename A>
__global__ void __launch_bounds__(block_threads) locate_points(const A* grids, const A* points, int64_t* cell, A* offset,
                                                               A* confidence, int32_t height, int32_t width, uint32_t count) {
  const int64_t i = blockIdx.x;
  const Grid<A> grid{grids + i / count * height * width * 2, height, width};
  const Point<A> point{points[2 * i], points[2 * i + 1]};
  Vertex<A> nearest;
  int32_t cells = 0, first = INT32_MAX;
  for (int32_t vertex = threadIdx.x; vertex < height * width; vertex += block_threads) {
    const int32_t x = vertex % width, y = vertex / width;
    const Point<A> corner = grid.at(x, y);
    nearest.meet(squared_distance(corner.x, corner.y, point.x, point.y), vertex);
    if (x + 1 == width || y + 1 == height) continue;
    const Point<A> right = grid.at(x + 1, y), lower = grid.at(x, y + 1), last = grid.at(x + 1, y + 1);
    const bool odd =
        crosses(corner, right, point) ^ crosses(lower, last, point) ^ crosses(corner, lower, point) ^ crosses(right, last, point);
    if (!odd || !finite(corner, right) || !finite(lower, last)) continue;
    ++cells;
    first = vertex < first ? vertex : first;
  }
  nearest = nearest_of_block(nearest);
  constexpr int warps = block_threads / 32;
  GGF_SHARED(int32_t, counts, [warps]);
  GGF_SHARED(int32_t, firsts, [warps]);
  for (int step = 16; step > 0; step >>= 1) {
    cells += __shfl_down_sync(0xffffffffu, cells, step);
    const int32_t other = __shfl_down_sync(0xffffffffu, first, step);
    first = other < first ? other : first;
  }
  if (threadIdx.x % 32 == 0) {
    counts[threadIdx.x / 32] = cells;
    firsts[threadIdx.x / 32] = first;
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int warp = 1; warp < warps; ++warp) {
    cells += counts[warp];
    first = firsts[warp] < first ? firsts[warp] : first;
  }

  const bool lost = nearest.index < 0;
  const int32_t near_x = lost ? 0 : nearest.index % width, near_y = lost ? 0 : nearest.index / width;
  int32_t x = near_x, y = near_y;
  A u = 0, v = 0, trust = 0;
  if (cells > 0) {
    const Solution<A> found = solve(grid, first % width, first / width, point);
    if (found.held) {
      x = first % width;
      y = first / width;
      u = found.u;
      v = found.v;
      trust = A(1) / cells;
    }
  } else {  // on the outline: the cells around the nearest vertex, the first in reading order last
#pragma unroll 1
    for (int32_t k = 0; k < 4; ++k) {
      const int32_t other_x = near_x - k % 2, other_y = near_y - k / 2;
      if (other_x < 0 || other_y < 0 || other_x >= width - 1 || other_y >= height - 1) continue;
      const Solution<A> found = solve(grid, other_x, other_y, point);
      if (!found.held) continue;
      x = other_x;
      y = other_y;
      u = found.u;
      v = found.v;
      trust = 1;
    }
  }
  const A nothing = std::numeric_limits<A>::quiet_NaN();
  cell[2 * i] = x;
  cell[2 * i + 1] = y;
  offset[2 * i] = lost ? nothing : u;
  offset[2 * i + 1] = lost ? nothing : v;
  confidence[i] = lost ? A(0) : trust;
}

// grad, grad_points: [N, P, 2]
template <typename A>
__global__ void __launch_bounds__(block_threads)
    point_gradient(const A* grad, const A* grids, const int64_t* cell, const A* offset, const A* confidence, A* grad_points,
                   int32_t height, int32_t width, uint32_t count, int64_t first_sample, uint32_t threads) {
  const uint32_t thread = blockIdx.x * block_threads + threadIdx.x;
  if (thread >= threads) return;
  const int64_t i = first_sample * count + thread;
  Point<A> result{0, 0};
  if (confidence[i] > 0) {
    const Grid<A> grid{grids + i / count * height * width * 2, height, width};
    const int32_t x = static_cast<int32_t>(cell[2 * i]), y = static_cast<int32_t>(cell[2 * i + 1]);
    const Point<A> first = grid.at(x, y), right = grid.at(x + 1, y), lower = grid.at(x, y + 1);
    const Point<A> h = grid.at(x + 1, y + 1) - right - lower + first;
    const Point<A> across = right - first + offset[2 * i + 1] * h, down = lower - first + offset[2 * i] * h;
    const A area = cross(across, down), by_u = grad[2 * i], by_v = grad[2 * i + 1];
    result = {(by_u * down.y - by_v * across.y) / area, (by_v * across.x - by_u * down.x) / area};
  }
  grad_points[2 * i] = result.x;
  grad_points[2 * i + 1] = result.y;
}

// sums: [words, N, H, W, 2]
template <typename A>
__global__ void __launch_bounds__(block_threads)
    scatter(const A* grad_points, const int64_t* cell, const A* offset, const A* confidence, const Bits<A>* largest,
            int32_t count_bits, Word* sums, int64_t word_stride, int32_t height, int32_t width, uint32_t count,
            int64_t first_sample, uint32_t threads) {
  const uint32_t thread = blockIdx.x * block_threads + threadIdx.x;
  if (thread >= threads) return;
  const int64_t i = first_sample * count + thread, sample = i / count;
  const SumScale<A> scale = sum_scale<A>(largest[sample], count_bits);
  if (!(confidence[i] > 0) || !scale.finite) return;
  const A u = offset[2 * i], v = offset[2 * i + 1];
  for (int32_t k = 0; k < 4; ++k) {
    const int32_t x = static_cast<int32_t>(cell[2 * i]) + k % 2, y = static_cast<int32_t>(cell[2 * i + 1]) + k / 2;
    const A weight = (k % 2 ? u : 1 - u) * (k / 2 ? v : 1 - v);
    const int64_t vertex = sample * height * width + Grid<A>{nullptr, height, width}.index(x, y);
    add_exactly(sums + 2 * vertex, word_stride, -weight * grad_points[2 * i], scale);
    add_exactly(sums + 2 * vertex + 1, word_stride, -weight * grad_points[2 * i + 1], scale);
  }
}

template <typename A>
std::tuple<Tensor, Tensor, Tensor> forward_as(const Tensor& grid_, const Tensor& points_) {
  const OnDevice device(grid_);
  const Tensor grid = converted(grid_, compute_scalar_type<A>), points = converted(points_, compute_scalar_type<A>);
  const Tensor cell = empty_on(points, sizes_of(points), ScalarType::Long);
  const Tensor offset = empty_on(points, sizes_of(points), compute_scalar_type<A>);
  const Tensor confidence = empty_on(points, {points.size(0), points.size(1)}, compute_scalar_type<A>);
  if (points.numel() > 0)
    launch(&locate_points<A>, blocks_for("invert_grid", points.size(0) * points.size(1)), dim3(block_threads), device.stream(),
           grid.template const_data_ptr<A>(), points.template const_data_ptr<A>(), cell.mutable_data_ptr<int64_t>(),
           offset.template mutable_data_ptr<A>(), confidence.template mutable_data_ptr<A>(), grid.size(1), grid.size(2),
           points.size(1));
  return {cell, offset, confidence};
}

std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& grid, const Tensor& points) {
  check_grid_and_points("invert_grid", grid, points);
  return widest(grid, points) == ScalarType::Double ? forward_as<double>(grid, points) : forward_as<float>(grid, points);
}

template <typename A>
std::tuple<Tensor, Tensor> backward_as(const Tensor& grad_, const Tensor& grid_, const Tensor& cell_, const Tensor& offset_,
                                       const Tensor& confidence_) {
  const char* name = "invert_grid_backward";
  const OnDevice device(grid_);
  const cudaStream_t stream = device.stream();
  const ScalarType type = compute_scalar_type<A>;
  const Tensor grad = converted(grad_, type), grid = converted(grid_, type), offset = converted(offset_, type);
  const Tensor confidence = converted(confidence_, type), cell = torch::stable::contiguous(cell_);
  const Tensor grad_grid = empty_on(grid, sizes_of(grid), type), grad_points = empty_on(grid, sizes_of(offset), type);
  const int64_t batch = grid.size(0), height = grid.size(1), width = grid.size(2), count = offset.size(1);
  if (offset.numel() == 0) {
    clear(grad_grid, stream);
    return {grad_grid, grad_points};
  }
  const Tensor largest_ = empty_on(grid, {batch}, std::is_same_v<A, double> ? ScalarType::Long : ScalarType::Int);
  const Tensor sums_ = empty_on(grid, {sum_words<A> * grid.numel()}, ScalarType::Long);
  clear(largest_, stream);
  clear(sums_, stream);
  auto* largest = static_cast<Bits<A>*>(largest_.mutable_data_ptr());
  auto* sums = static_cast<Word*>(sums_.mutable_data_ptr());
  A* by_point = grad_points.template mutable_data_ptr<A>();
  launch_items(name, &point_gradient<A>, batch, count, stream, grad.template const_data_ptr<A>(), grid.template const_data_ptr<A>(),
               cell.const_data_ptr<int64_t>(), offset.template const_data_ptr<A>(), confidence.template const_data_ptr<A>(),
               by_point, height, width, count);
  find_largest<A>(name, by_point, largest, batch, 2 * count, stream);
  // In a grid of one row or column a vertex is several corners, and the margin lets weights exceed 1 a little.
  const int32_t count_bits = bits_of_count(4 * count) + 1;
  launch_items(name, &scatter<A>, batch, count, stream, by_point, cell.const_data_ptr<int64_t>(),
               offset.template const_data_ptr<A>(), confidence.template const_data_ptr<A>(), largest, count_bits, sums,
               grid.numel(), height, width, count);
  const int64_t per_sample = 2 * height * width;
  launch_items(name, &round_sums<A>, batch, per_sample, stream, sums, grid.numel(), per_sample, largest, count_bits, 1,
               grad_grid.template mutable_data_ptr<A>(), per_sample);
  return {grad_grid, grad_points};
}

std::tuple<Tensor, Tensor> backward(const Tensor& grad, const Tensor& grid, const Tensor& cell, const Tensor& offset,
                                    const Tensor& confidence) {
  check_grid_and_points("invert_grid_backward", grid, offset);
  STD_TORCH_CHECK(sizes_of(grad) == sizes_of(offset) && sizes_of(cell) == sizes_of(offset) &&
                      confidence.numel() * 2 == offset.numel() && cell.scalar_type() == ScalarType::Long,
                  "invert_grid_backward: grad, cell, offset and confidence must agree");
  check_devices("invert_grid_backward", {grid, grad, cell, offset, confidence});
  return grid.scalar_type() == ScalarType::Double ? backward_as<double>(grad, grid, cell, offset, confidence)
                                                  : backward_as<float>(grad, grid, cell, offset, confidence);
}

}  // namespace ggf::cuda::invert_grid

GGF_CUDA_KERNELS(m) {
  m.impl("invert_grid", TORCH_BOX(&ggf::cuda::invert_grid::forward));
  m.impl("invert_grid_backward", TORCH_BOX(&ggf::cuda::invert_grid::backward));
}
