// SPDX-License-Identifier: Apache-2.0
// The vertex of a grid nearest to a point, and the cells around the point, found by looking into few of the grid's tiles: shared by
// nearest_grid_point and invert_grid. The same search on a CPU: csrc/cpu/grid_tiles.h.
//
// A warp handles one point. It reads the bounding boxes of all tiles, then the vertices of those tiles alone that could hold a
// nearer vertex than the one found so far. Box bounds are rounded as the distances are, so that nothing is left out that could
// win or tie.
#pragma once

#include "../nearest_grid_point.h"
#include "block.cuh"

namespace ggf {

inline constexpr int32_t tile_width = 16, tile_height = 8;

// Left at infinity and right at minus infinity if the tile has no number.
template <typename A>
struct alignas(16) Box {
  A left, right, top, bottom;
};

template <typename A>
struct TiledGrid {
  const A* grid;        // [N, height, width, 2]
  const Box<A>* boxes;  // [N, rows * columns]
  int32_t height, width, rows, columns;
};

// One warp per tile. boxes: [N, rows * columns]. With a halo of 1 they cover the cells of their tile, which reach to the next tiles'
// first vertices.
template <typename A>
__global__ void __launch_bounds__(block_threads)
    build_boxes(TiledGrid<A> tiled, Box<A>* boxes, int32_t halo, uint32_t per_sample, int64_t first_sample, uint32_t threads) {
  const uint32_t thread = blockIdx.x * block_threads + threadIdx.x;
  if (thread >= threads) return;  // whole warps
  const int64_t sample = first_sample + thread / per_sample;
  const int32_t tile = thread % per_sample / 32, lane = threadIdx.x % 32;
  const int32_t top = tile / tiled.columns * tile_height, left = tile % tiled.columns * tile_width;
  const int32_t across = tile_width + halo, vertices = across * (tile_height + halo);
  constexpr A infinity = std::numeric_limits<A>::infinity();
  Box<A> box{infinity, -infinity, infinity, -infinity};
  for (int32_t k = lane; k < vertices; k += 32) {
    const int32_t row = top + k / across, column = left + k % across;
    if (row >= tiled.height || column >= tiled.width) continue;
    const A* vertex = tiled.grid + 2 * ((sample * tiled.height + row) * tiled.width + column);
    const A x = vertex[0], y = vertex[1];
    box = {x < box.left ? x : box.left, x > box.right ? x : box.right, y < box.top ? y : box.top, y > box.bottom ? y : box.bottom};
  }
  for (int step = 16; step > 0; step >>= 1) {
    const A other_left = __shfl_xor_sync(0xffffffffu, box.left, step), other_right = __shfl_xor_sync(0xffffffffu, box.right, step);
    const A other_top = __shfl_xor_sync(0xffffffffu, box.top, step), other_bottom = __shfl_xor_sync(0xffffffffu, box.bottom, step);
    box.left = other_left < box.left ? other_left : box.left;
    box.right = other_right > box.right ? other_right : box.right;
    box.top = other_top < box.top ? other_top : box.top;
    box.bottom = other_bottom > box.bottom ? other_bottom : box.bottom;
  }
  if (lane == 0) boxes[sample * (per_sample / 32) + tile] = box;
}

// The nearest vertex of a tile, in every lane.
template <typename A>
__device__ __forceinline__ Vertex<A> nearest_in_tile(const TiledGrid<A>& tiled, const A* grid, int32_t tile, A x, A y) {
  const int32_t top = tile / tiled.columns * tile_height, left = tile % tiled.columns * tile_width;
  Vertex<A> nearest;
#pragma unroll
  for (int32_t k = threadIdx.x % 32; k < tile_width * tile_height; k += 32) {
    const int32_t row = top + k / tile_width, column = left + k % tile_width;
    if (row >= tiled.height || column >= tiled.width) continue;
    const int32_t vertex = row * tiled.width + column;
    nearest.meet(squared_distance(grid[2 * vertex], grid[2 * vertex + 1], x, y), vertex);
  }
  return nearest_of_warp(nearest);
}

// The vertex of a sample's grid nearest to (x, y), in every lane; index -1 if no distance is finite. If there is one,
// `look_into(tile)` is called for every tile whose box holds the point.
template <typename A, typename LookInto>
__device__ __forceinline__ Vertex<A> find_nearest(const TiledGrid<A>& tiled, int64_t sample, A x, A y, const LookInto& look_into) {
  constexpr A infinity = std::numeric_limits<A>::infinity();
  const int32_t lane = threadIdx.x % 32, tiles = tiled.rows * tiled.columns;
  const A* grid = tiled.grid + sample * tiled.height * tiled.width * 2;
  const Box<A>* boxes = tiled.boxes + sample * tiles;
  Vertex<A> start;  // a tile, and the bound of its distances
  for (int32_t tile = lane; tile < tiles; tile += 32) {
    const Box<A> box = boxes[tile];
    start.meet(squared_distance_to_box(box.left, box.right, box.top, box.bottom, x, y), tile);
  }
  start = nearest_of_warp(start);
  if (start.index < 0) return {};
  Vertex<A> nearest = nearest_in_tile(tiled, grid, start.index, x, y);
  for (int32_t first = 0; first < tiles; first += 32) {
    const int32_t tile = first + lane;
    A bound = infinity;
    bool inside = false;
    if (tile < tiles) {
      const Box<A> box = boxes[tile];
      inside = box.left <= x && box.right >= x && box.top <= y && box.bottom >= y;
      if (tile != start.index) bound = squared_distance_to_box(box.left, box.right, box.top, box.bottom, x, y);
    }
    const unsigned close = __ballot_sync(0xffffffffu, bound <= nearest.squared && bound < infinity);
    const unsigned holding = __ballot_sync(0xffffffffu, inside);
    for (unsigned waiting = close | holding; waiting != 0; waiting &= waiting - 1) {
      const int k = __ffs(waiting) - 1;
      // What was found meanwhile may be nearer than anything in this tile.
      if ((close >> k & 1u) && __shfl_sync(0xffffffffu, bound, k) <= nearest.squared) {
        const Vertex<A> found = nearest_in_tile(tiled, grid, first + k, x, y);
        nearest.meet(found.squared, found.index);
      }
      if (holding >> k & 1u) look_into(first + k);
    }
  }
  return nearest;
}

// The tiles of a batch of grids, and the memory of their boxes.
template <typename A>
struct Tiling {
  Tensor boxes;
  TiledGrid<A> tiled;

  Tiling(const char* operation, const Tensor& grid, int32_t halo, cudaStream_t stream)
      : boxes(empty_on(grid, {grid.size(0), ceil_divide(grid.size(1), tile_height), ceil_divide(grid.size(2), tile_width), 4},
                       grid.scalar_type())),
        tiled{grid.const_data_ptr<A>(),
              static_cast<const Box<A>*>(boxes.const_data_ptr()),
              static_cast<int32_t>(grid.size(1)),
              static_cast<int32_t>(grid.size(2)),
              static_cast<int32_t>(boxes.size(1)),
              static_cast<int32_t>(boxes.size(2))} {
    const int64_t threads = 32 * boxes.size(1) * boxes.size(2);
    launch_items(operation, &build_boxes<A>, grid.size(0), threads, stream, tiled, static_cast<Box<A>*>(boxes.mutable_data_ptr()),
                 halo, threads);
  }
};

}  // namespace ggf
