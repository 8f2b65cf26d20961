// SPDX-License-Identifier: Apache-2.0
// The bounding boxes of a grid's tiles, to search few of them for a point: shared by nearest_grid_point and invert_grid.
#pragma once

#include "../nearest_grid_point.h"
#include "wide.h"

#include <algorithm>
#include <limits>
#include <vector>

namespace ggf {

inline constexpr int64_t tile_width = 16, tile_height = 8;

// One sample's vertices and boxes. A box is empty (left at infinity, right at minus infinity) where its tile has no
// number, and beyond the last tile, up to a multiple of tile_width.
template <typename A>
struct Tiles {
  const A* grid;  // [height, width, 2]
  int64_t height, width, rows, columns;
  const A *left, *right, *top, *bottom;  // [boxes]

  int64_t row(int64_t tile) const { return tile / columns * tile_height; }
  int64_t column(int64_t tile) const { return tile % columns * tile_width; }
};

template <typename A>
struct TiledGrid {
  const A* grid;  // [N, height, width, 2]
  int64_t height, width, rows, columns, boxes;
  std::vector<A> memory;

  TiledGrid(const A* grid, int64_t samples, int64_t height, int64_t width)
      : grid(grid), height(height), width(width), rows(ceil_divide(height, tile_height)), columns(ceil_divide(width, tile_width)),
        boxes(ceil_divide(rows * columns, tile_width) * tile_width), memory(samples * 4 * boxes) {}

  Tiles<A> sample(int64_t n) const {
    const A* box = memory.data() + n * 4 * boxes;
    return {grid + n * height * width * 2, height, width, rows, columns, box, box + boxes, box + 2 * boxes, box + 3 * boxes};
  }
};

// The boxes of samples [begin, end). With a halo of 1 they cover the cells of their tile, which reach to the next tiles'
// first vertices.
template <typename A>
GGF_INLINE void build_boxes(TiledGrid<A>& tiled, int64_t halo, int64_t begin, int64_t end) {
  constexpr int64_t lanes = 2 * tile_width;  // x and y alternate
  constexpr A infinity = std::numeric_limits<A>::infinity();
  for (int64_t n = begin; n < end; ++n) {
    A* box = tiled.memory.data() + n * 4 * tiled.boxes;
    const Tiles<A> tiles = tiled.sample(n);
    for (int64_t tile = 0; tile < tiled.boxes; ++tile) {
      A least[lanes], most[lanes];
      for (int64_t k = 0; k < lanes; ++k) {
        least[k] = infinity;
        most[k] = -infinity;
      }
      const int64_t last_row = std::min(tiles.height, tiles.row(tile) + tile_height + halo);
      const int64_t numbers = 2 * std::min(tiles.width - tiles.column(tile), tile_width + halo);
      for (int64_t row = tiles.row(tile); row < last_row; ++row) {
        const A* GGF_RESTRICT vertex = tiles.grid + 2 * (row * tiles.width + tiles.column(tile));
        if (numbers >= lanes)
          for (int64_t k = 0; k < lanes; ++k) {
            least[k] = vertex[k] < least[k] ? vertex[k] : least[k];
            most[k] = vertex[k] > most[k] ? vertex[k] : most[k];
          }
        for (int64_t i = numbers >= lanes ? lanes : 0; i < numbers; ++i) {
          const int64_t k = i % lanes;
          least[k] = vertex[i] < least[k] ? vertex[i] : least[k];
          most[k] = vertex[i] > most[k] ? vertex[i] : most[k];
        }
      }
      for (int64_t k = 2; k < lanes; ++k) {
        least[k % 2] = least[k] < least[k % 2] ? least[k] : least[k % 2];
        most[k % 2] = most[k] > most[k % 2] ? most[k] : most[k % 2];
      }
      box[tile] = least[0];
      box[tiled.boxes + tile] = most[0];
      box[2 * tiled.boxes + tile] = least[1];
      box[3 * tiled.boxes + tile] = most[1];
    }
  }
}

template <typename A>
struct Nearest {
  A distance = std::numeric_limits<A>::infinity();
  int64_t index = -1;  // in reading order
};

template <typename A>
GGF_INLINE void search_tile(const Tiles<A>& tiles, int64_t tile, A x, A y, Nearest<A>& nearest) {
  const int64_t rows = std::min(tile_height, tiles.height - tiles.row(tile));
  const int64_t columns = std::min(tile_width, tiles.width - tiles.column(tile));
  const int64_t first = tiles.row(tile) * tiles.width + tiles.column(tile);
  A distance[tile_height * tile_width], lane[tile_width], padded[2 * tile_width];
  for (int64_t k = 0; k < tile_width; ++k) lane[k] = std::numeric_limits<A>::infinity();
  for (int64_t k = 0; k < 2 * tile_width; ++k) padded[k] = std::numeric_limits<A>::quiet_NaN();
  for (int64_t j = 0; j < rows; ++j) {
    const A* vertex = tiles.grid + 2 * (first + j * tiles.width);
    if (columns < tile_width) {
      std::copy_n(vertex, 2 * columns, padded);
      vertex = padded;
    }
    for (int64_t k = 0; k < tile_width; ++k) {
      const A d = squared_distance(vertex[2 * k], vertex[2 * k + 1], x, y);
      distance[j * tile_width + k] = d;
      lane[k] = d < lane[k] ? d : lane[k];
    }
  }
  A least = lane[0];
  for (int64_t k = 1; k < tile_width; ++k) least = lane[k] < least ? lane[k] : least;
  if (least > nearest.distance || !(least < std::numeric_limits<A>::infinity())) return;
  int64_t i = 0;
  while (distance[i] != least) ++i;
  const int64_t index = first + i / tile_width * tiles.width + i % tile_width;
  if (least < nearest.distance || index < nearest.index) nearest = {least, index};
}

// The first vertex in reading order among those nearest to (x, y). `bounds` is scratch for every box.
template <typename A>
GGF_INLINE Nearest<A> find_nearest(const Tiles<A>& tiles, int64_t boxes, A x, A y, A* GGF_RESTRICT bounds) {
  constexpr A infinity = std::numeric_limits<A>::infinity();
  Nearest<A> nearest;
  A lane[tile_width];
  for (int64_t k = 0; k < tile_width; ++k) lane[k] = infinity;
  for (int64_t first = 0; first < boxes; first += tile_width)
    for (int64_t k = 0; k < tile_width; ++k) {
      const int64_t tile = first + k;
      const A bound = squared_distance_to_box(tiles.left[tile], tiles.right[tile], tiles.top[tile], tiles.bottom[tile], x, y);
      bounds[tile] = bound;
      lane[k] = bound < lane[k] ? bound : lane[k];
    }
  A least = lane[0];
  for (int64_t k = 1; k < tile_width; ++k) least = lane[k] < least ? lane[k] : least;
  if (!(least < infinity)) return nearest;
  int64_t start = 0;
  while (bounds[start] != least) ++start;
  search_tile(tiles, start, x, y, nearest);
  bounds[start] = infinity;
  for (int64_t first = 0; first < boxes; first += tile_width) {
    int close = 0;
    for (int64_t k = 0; k < tile_width; ++k) close |= bounds[first + k] <= nearest.distance;
    if (!close) continue;
    // A bound of infinity is that of an empty box, or of the tile searched already.
    for (int64_t tile = first; tile < first + tile_width; ++tile)
      if (bounds[tile] <= nearest.distance && bounds[tile] < infinity) search_tile(tiles, tile, x, y, nearest);
  }
  return nearest;
}

}  // namespace ggf
