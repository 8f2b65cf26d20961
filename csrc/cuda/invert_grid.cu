// SPDX-License-Identifier: Apache-2.0
// The inverse of a grid between its vertices. Maths: gangealing_fast/ops/invert_grid.py.
//
// A warp handles one point: its lanes look for the nearest vertex and for the cells that hold it (grid_tiles.cuh), one solves.
// The gradient by the grid is added in integers (exact_sum.cuh) and so bit-identical between runs.
#include "../invert_grid.h"
#include "../sampling.h"
#include "exact_sum.cuh"
#include "grid_tiles.cuh"

#include <tuple>

namespace ggf::cuda::invert_grid {

using ggf::invert_grid::Cell;
using ggf::invert_grid::cell_at;
using ggf::invert_grid::corner_weight;
using ggf::invert_grid::crosses;
using ggf::invert_grid::has_gradient;
using ggf::invert_grid::invert;
using ggf::invert_grid::is_finite;

template <typename A>
using Point = ggf::invert_grid::Vector<A>;

// Whether the ray from `point` towards larger x crosses the outline of the cell an odd number of times.
template <typename A>
GGF_INLINE bool holds(const Cell<A>& cell, Point<A> point) {
  const bool odd = crosses(cell.first, cell.right, point) ^ crosses(cell.lower, cell.last, point) ^
                   crosses(cell.first, cell.lower, point) ^ crosses(cell.right, cell.last, point);
  return odd && is_finite(cell);
}

// One warp per point: 32 of per_sample threads. points: [N, P, 2]; cell, offset: [N, P, 2]; confidence: [N, P]
template <typename A>
__global__ void __launch_bounds__(block_threads, 2)  // without the 2 the compiler spills a few registers
    locate_points(TiledGrid<A> tiled, const A* points, int64_t* cell, A* offset, A* confidence, uint32_t per_sample,
                  int64_t first_sample, uint32_t threads) {
  const uint32_t thread = blockIdx.x * block_threads + threadIdx.x;
  if (thread >= threads) return;  // whole warps
  const int64_t sample = first_sample + thread / per_sample;
  const int64_t i = sample * (per_sample / 32) + thread % per_sample / 32;
  const int32_t lane = threadIdx.x % 32, height = tiled.height, width = tiled.width;
  const A* grid = tiled.grid + sample * height * width * 2;
  const Point<A> point{points[2 * i], points[2 * i + 1]};
  int32_t cells = 0, first = INT32_MAX;
  const Vertex<A> nearest = find_nearest(tiled, sample, point.x, point.y, [&](int32_t tile) {
    const int32_t top = tile / tiled.columns * tile_height, left = tile % tiled.columns * tile_width;
    for (int32_t k = lane; k < tile_width * tile_height; k += 32) {
      const int32_t y = top + k / tile_width, x = left + k % tile_width;
      if (x + 1 >= width || y + 1 >= height || !holds(cell_at(grid, height, width, x, y), point)) continue;
      ++cells;
      first = y * width + x < first ? y * width + x : first;
    }
  });
  for (int step = 16; step > 0; step >>= 1) {
    cells += __shfl_down_sync(0xffffffffu, cells, step);
    const int32_t other = __shfl_down_sync(0xffffffffu, first, step);
    first = other < first ? other : first;
  }
  if (lane != 0) return;
  const auto found = invert(grid, height, width, point, nearest.index, cells, first);
  cell[2 * i] = found.x;
  cell[2 * i + 1] = found.y;
  offset[2 * i] = found.u;
  offset[2 * i + 1] = found.v;
  confidence[i] = found.confidence;
}

// grad, grad_points: [N, P, 2]
template <typename A>
__global__ void __launch_bounds__(block_threads)
    point_gradient(const A* grad, const A* grids, const int64_t* cell, const A* offset, const A* confidence, A* grad_points,
                   int32_t height, int32_t width, uint32_t count, int64_t first_sample, uint32_t threads) {
  const uint32_t thread = blockIdx.x * block_threads + threadIdx.x;
  if (thread >= threads) return;
  const int64_t sample = first_sample + thread / count, i = first_sample * count + thread;
  const int64_t x = cell[2 * i], y = cell[2 * i + 1];
  Point<A> result{0, 0};
  if (has_gradient(confidence[i], x, y, height, width)) {
    const A* grid = grids + sample * height * width * 2;
    const Cell<A> corners = cell_at(grid, height, width, static_cast<int32_t>(x), static_cast<int32_t>(y));
    result = ggf::invert_grid::point_gradient(corners, offset[2 * i], offset[2 * i + 1], grad[2 * i], grad[2 * i + 1]);
  }
  grad_points[2 * i] = result.x;
  grad_points[2 * i + 1] = result.y;
}

// sums: [N, H, W, 2]
template <typename A>
__global__ void __launch_bounds__(block_threads)
    scatter(const A* grad_points, const int64_t* cell, const A* offset, const A* confidence, Sums<A> sums, int32_t height,
            int32_t width, uint32_t count, int64_t first_sample, uint32_t threads) {
  const uint32_t thread = blockIdx.x * block_threads + threadIdx.x;
  if (thread >= threads) return;
  const int64_t sample = first_sample + thread / count, i = first_sample * count + thread;
  const int64_t x = cell[2 * i], y = cell[2 * i + 1];
  const SumScale<A> scale = sums.scale(sample);
  if (!has_gradient(confidence[i], x, y, height, width) || !scale.finite) return;
  for (int k = 0; k < 4; ++k) {
    const A weight = corner_weight(offset[2 * i], offset[2 * i + 1], k);
    const int64_t vertex = (sample * height + y + k / 2) * width + x + k % 2;
    sums.add(2 * vertex, -weight * grad_points[2 * i], scale);
    sums.add(2 * vertex + 1, -weight * grad_points[2 * i + 1], scale);
  }
}

template <typename A>
std::tuple<Tensor, Tensor, Tensor> forward_as(const Tensor& grid_, const Tensor& points_) {
  const OnDevice device(grid_);
  const Tensor grid = converted(grid_, compute_scalar_type<A>), points = converted(points_, compute_scalar_type<A>);
  const Tensor cell = empty_on(points, sizes_of(points), ScalarType::Long);
  const Tensor offset = empty_on(points, sizes_of(points), compute_scalar_type<A>);
  const Tensor confidence = empty_on(points, {points.size(0), points.size(1)}, compute_scalar_type<A>);
  if (points.numel() > 0) {
    const Tiling<A> tiling("invert_grid", grid, 1, device.stream());
    launch_items("invert_grid", &locate_points<A>, points.size(0), 32 * points.size(1), device.stream(), tiling.tiled,
                 points.template const_data_ptr<A>(), cell.mutable_data_ptr<int64_t>(), offset.template mutable_data_ptr<A>(),
                 confidence.template mutable_data_ptr<A>(), 32 * points.size(1));
  }
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
  const auto* cells = cell.const_data_ptr<int64_t>();
  const A *offsets = offset.template const_data_ptr<A>(), *confidences = confidence.template const_data_ptr<A>();
  A* by_point = grad_points.template mutable_data_ptr<A>();
  launch_items(name, &point_gradient<A>, batch, count, stream, grad.template const_data_ptr<A>(), grid.template const_data_ptr<A>(),
               cells, offsets, confidences, by_point, height, width, count);
  // A point adds to a vertex once; the margin lets weights exceed 1 a little.
  const int32_t count_bits = bits_of_count(count) + 1;
  sum_exactly<A>(
      name, by_point, 2 * count, count_bits, {batch, 1, 2 * height * width, 0}, grad_grid, stream, [&](const Sums<A>& sums) {
        launch_items(name, &scatter<A>, batch, count, stream, by_point, cells, offsets, confidences, sums, height, width, count);
      });
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
