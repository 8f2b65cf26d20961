// SPDX-License-Identifier: Apache-2.0
// The vertex of a grid nearest to a point. Maths: gangealing_fast/ops/nearest_grid_point.py.
#include "../sampling.h"
#include "grid_tiles.cuh"

namespace ggf::cuda::nearest_grid_point {

// One warp per point: 32 of per_sample threads. points: [N, P, 2]; result: [N, P, 2] (x, y)
template <typename A>
__global__ void __launch_bounds__(block_threads, 2)  // without the 2 the compiler spills a few registers for sm_80
    search(TiledGrid<A> tiled, const A* points, int64_t* result, uint32_t per_sample, int64_t first_sample, uint32_t threads) {
  const uint32_t thread = blockIdx.x * block_threads + threadIdx.x;
  if (thread >= threads) return;  // whole warps
  const int64_t sample = first_sample + thread / per_sample;
  const int64_t i = sample * (per_sample / 32) + thread % per_sample / 32;
  const Vertex<A> found = find_nearest(tiled, sample, points[2 * i], points[2 * i + 1], [](int32_t) {});
  if (threadIdx.x % 32 != 0) return;
  result[2 * i] = found.index < 0 ? -1 : found.index % tiled.width;
  result[2 * i + 1] = found.index < 0 ? -1 : found.index / tiled.width;
}

template <typename A>
void run(const Tensor& grid_, const Tensor& points_, const Tensor& result, cudaStream_t stream) {
  const Tensor grid = converted(grid_, compute_scalar_type<A>), points = converted(points_, compute_scalar_type<A>);
  const Tiling<A> tiling("nearest_grid_point", grid, 0, stream);
  launch_items("nearest_grid_point", &search<A>, points.size(0), 32 * points.size(1), stream, tiling.tiled,
               points.const_data_ptr<A>(), result.mutable_data_ptr<int64_t>(), 32 * points.size(1));
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
