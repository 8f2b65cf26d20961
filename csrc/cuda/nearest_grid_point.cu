// SPDX-License-Identifier: Apache-2.0
// The vertex of a grid nearest to a point. Maths: gangealing_fast/ops/nearest_grid_point.py.
//
// A block looks through the vertices of one sample for a few points at a time, so that a vertex is read once for all of them.
#include "../nearest_grid_point.h"
#include "../sampling.h"
#include "block.cuh"

namespace ggf::cuda::nearest_grid_point {

inline constexpr int together = 4;  // points of a block

// grid: [N, vertices, 2]; points: [N, P, 2]; result: [N, P, 2] (x, y)
template <typename A>
__global__ void __launch_bounds__(block_threads) search(const A* grid, const A* points, int64_t* result, int32_t vertices,
                                                        int32_t width, int64_t count, uint32_t blocks_per_sample) {
  const int64_t sample = blockIdx.x / blocks_per_sample;
  const int64_t first = static_cast<int64_t>(blockIdx.x % blocks_per_sample) * together;
  const A* corners = grid + sample * vertices * 2;
  A x[together], y[together];
  Vertex<A> nearest[together];
#pragma unroll
  for (int k = 0; k < together; ++k) {
    const int64_t point = sample * count + (first + k < count ? first + k : count - 1);
    x[k] = points[2 * point];
    y[k] = points[2 * point + 1];
  }
  for (int64_t i = threadIdx.x; i < vertices; i += block_threads) {
    const A vertex_x = corners[2 * i], vertex_y = corners[2 * i + 1];
#pragma unroll
    for (int k = 0; k < together; ++k) nearest[k].meet(squared_distance(vertex_x, vertex_y, x[k], y[k]), static_cast<int32_t>(i));
  }
#pragma unroll
  for (int k = 0; k < together; ++k) {
    const Vertex<A> found = nearest_of_block(nearest[k]);
    if (threadIdx.x != 0 || first + k >= count) continue;
    int64_t* out = result + 2 * (sample * count + first + k);
    out[0] = found.index < 0 ? -1 : found.index % width;
    out[1] = found.index < 0 ? -1 : found.index / width;
  }
}

template <typename A>
void run(const Tensor& grid_, const Tensor& points_, const Tensor& result, cudaStream_t stream) {
  const Tensor grid = converted(grid_, compute_scalar_type<A>), points = converted(points_, compute_scalar_type<A>);
  const int64_t count = points.size(1), blocks = ceil_divide(count, together);
  launch(&search<A>, blocks_for("nearest_grid_point", grid.size(0) * blocks), dim3(block_threads), stream, grid.const_data_ptr<A>(),
         points.const_data_ptr<A>(), result.mutable_data_ptr<int64_t>(), grid.size(1) * grid.size(2), grid.size(2), count, blocks);
}

Tensor forward(const Tensor& grid, const Tensor& points) {
  check_grid_and_points("nearest_grid_point", grid, points);
  const OnDevice device(grid);
  const Tensor result = empty_on(points, sizes_of(points), ScalarType::Long);
  if (result.numel() == 0) return result;
  if (widest(grid, points) == ScalarType::Double)
    run<double>(grid, points, result, device.stream());
  else
    run<float>(grid, points, result, device.stream());
  return result;
}

}  // namespace ggf::cuda::nearest_grid_point

GGF_CUDA_KERNELS(m) { m.impl("nearest_grid_point", TORCH_BOX(&ggf::cuda::nearest_grid_point::forward)); }
