// SPDX-License-Identifier: Apache-2.0
// What kernels that work block by block share: reductions whose result has one order only.
#pragma once

#include "launch.cuh"

#include <limits>

namespace ggf {

// The sum over the lanes of a warp, in lane 0.
template <typename A>
__device__ __forceinline__ A warp_sum(A value) {
  for (int step = 16; step > 0; step >>= 1) value += __shfl_down_sync(0xffffffffu, value, step);
  return value;
}

// A vertex of a grid and its squared distance from a point; index -1 where there is none.
template <typename A>
struct Vertex {
  A squared = std::numeric_limits<A>::infinity();
  int32_t index = -1;

  // Keeps the nearer one, of equally near ones that with the smaller index. No distance that is not finite gets in.
  __device__ __forceinline__ void meet(A other, int32_t other_index) {
    if (other < squared || (other == squared && other_index < index)) {
      squared = other;
      index = other_index;
    }
  }
};

// The nearest vertex that any thread of the block knows, in thread 0.
template <typename A>
__device__ __forceinline__ Vertex<A> nearest_of_block(Vertex<A> vertex) {
  constexpr int warps = block_threads / 32;
  GGF_SHARED(A, distances, [warps]);
  GGF_SHARED(int32_t, indices, [warps]);
  for (int step = 16; step > 0; step >>= 1) {
    const A squared = __shfl_down_sync(0xffffffffu, vertex.squared, step);
    const int32_t index = __shfl_down_sync(0xffffffffu, vertex.index, step);
    vertex.meet(squared, index);
  }
  __syncthreads();  // the arrays may still be read for the point before
  if (threadIdx.x % 32 == 0) {
    distances[threadIdx.x / 32] = vertex.squared;
    indices[threadIdx.x / 32] = vertex.index;
  }
  __syncthreads();
  if (threadIdx.x == 0)
    for (int warp = 1; warp < warps; ++warp) vertex.meet(distances[warp], indices[warp]);
  return vertex;
}

// The smallest grid of blocks for `items`, one each.
inline dim3 blocks_for(const char* operation, int64_t items) {
  STD_TORCH_CHECK(items <= INT32_MAX, operation, ": too many points: ", items);
  return dim3(static_cast<unsigned>(items));
}

inline void check_grid_and_points(const char* operation, const Tensor& grid, const Tensor& points) {
  STD_TORCH_CHECK(grid.dim() == 4 && grid.size(3) == 2 && points.dim() == 3 && points.size(2) == 2 &&
                      grid.size(0) == points.size(0) && grid.size(1) > 0 && grid.size(2) > 0,
                  operation, ": grid must be [N, H, W, 2] and points [N, P, 2]");
  STD_TORCH_CHECK(grid.size(1) <= INT32_MAX / 4 / grid.size(2), operation, ": grid must have fewer than 2^29 vertices");
  check_devices(operation, {grid, points});
}

}  // namespace ggf
