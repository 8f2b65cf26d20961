// SPDX-License-Identifier: Apache-2.0
// What kernels that work warp by warp share: reductions whose result has one order only.
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

// The nearest vertex that any lane of the warp knows, in every lane.
template <typename A>
__device__ __forceinline__ Vertex<A> nearest_of_warp(Vertex<A> vertex) {
  for (int step = 16; step > 0; step >>= 1) {
    const A squared = __shfl_xor_sync(0xffffffffu, vertex.squared, step);
    const int32_t index = __shfl_xor_sync(0xffffffffu, vertex.index, step);
    vertex.meet(squared, index);
  }
  return vertex;
}

inline void check_grid_and_points(const char* operation, const Tensor& grid, const Tensor& points) {
  STD_TORCH_CHECK(grid.dim() == 4 && grid.size(3) == 2 && points.dim() == 3 && points.size(2) == 2 &&
                      grid.size(0) == points.size(0) && grid.size(1) > 0 && grid.size(2) > 0,
                  operation, ": grid must be [N, H, W, 2] and points [N, P, 2]");
  STD_TORCH_CHECK(grid.size(1) <= INT32_MAX / 4 / grid.size(2), operation, ": grid must have fewer than 2^29 vertices");
  check_devices(operation, {grid, points});
}

}  // namespace ggf
