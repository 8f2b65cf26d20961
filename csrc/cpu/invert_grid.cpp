// SPDX-License-Identifier: Apache-2.0
// The sub-pixel inverse of a grid: cells that hold a point are looked for in those tiles alone whose box does.
// Maths: gangealing_fast/ops/invert_grid.py.
#ifdef __clang__
#pragma clang fp contract(off)
#else
#pragma GCC optimize("fp-contract=off")  // see product() in nearest_grid_point.h
#endif

#include "../invert_grid.h"

#include "levels.h"
#include "grid_tiles.h"

#include <tuple>

namespace ggf::invert_grid {

// Cells that hold a point: how many, and the first in reading order of the grid's vertices.
struct Holders {
  int64_t count = 0, first = std::numeric_limits<int64_t>::max();
};

template <typename A>
GGF_INLINE void holders_in_tile(const Tiles<A>& tiles, int64_t tile, Vector<A> point, Holders& holders) {
  const int64_t top = tiles.row(tile), left = tiles.column(tile), row = 2 * tiles.width;
  const int64_t bottom = std::min(top + tile_height, tiles.height - 1);
  const int64_t cells = std::min(tile_width, tiles.width - 1 - left);
  int odd[tile_width], above[tile_width], below[tile_width], side[tile_width + 1];
  for (int64_t y = top; y < bottom; ++y) {
    const A* GGF_RESTRICT vertex = tiles.grid + y * row + 2 * left;
    const auto at = [&](int64_t i) GGF_INLINE_LAMBDA { return Vector<A>{vertex[i], vertex[i + 1]}; };
    if (y == top)
      for (int64_t k = 0; k < cells; ++k) above[k] = crosses(at(2 * k), at(2 * k + 2), point);
    for (int64_t k = 0; k < cells; ++k) below[k] = crosses(at(row + 2 * k), at(row + 2 * k + 2), point);
    for (int64_t k = 0; k < cells + 1; ++k) side[k] = crosses(at(2 * k), at(row + 2 * k), point);
    int any = 0;
    for (int64_t k = 0; k < cells; ++k) {
      odd[k] = above[k] ^ below[k] ^ side[k] ^ side[k + 1];
      above[k] = below[k];
      any |= odd[k];
    }
    for (int64_t k = 0; any && k < cells; ++k)
      if (odd[k] && is_finite(cell_at(tiles.grid, tiles.height, tiles.width, left + k, y))) {
        ++holders.count;
        holders.first = std::min(holders.first, y * tiles.width + left + k);
      }
  }
}

template <typename A>
GGF_INLINE Holders find_holders(const Tiles<A>& tiles, Vector<A> point) {
  Holders holders;
  for (int64_t first = 0; first < tiles.rows * tiles.columns; first += tile_width) {
    int inside[tile_width], any = 0;
    for (int64_t k = 0; k < tile_width; ++k) {
      const int64_t tile = first + k;
      inside[k] = (tiles.left[tile] <= point.x) & (tiles.right[tile] >= point.x) & (tiles.top[tile] <= point.y) &
                  (tiles.bottom[tile] >= point.y);
      any |= inside[k];
    }
    for (int64_t k = 0; any && k < tile_width; ++k)
      if (inside[k]) holders_in_tile(tiles, first + k, point, holders);
  }
  return holders;
}

template <typename A>
struct Output {
  int64_t* cell;
  A *offset, *confidence;
};

template <typename A>
GGF_INLINE void invert_points(const TiledGrid<A>& tiled, const A* points, const Output<A>& output, int64_t per_sample,
                              int64_t begin, int64_t end) {
  std::vector<A> bounds(tiled.boxes);
  for (int64_t p = begin; p < end; ++p) {
    const Tiles<A> tiles = tiled.sample(p / per_sample);
    const Vector<A> point{points[2 * p], points[2 * p + 1]};
    const int64_t nearest = find_nearest(tiles, tiled.boxes, point.x, point.y, bounds.data()).index;
    const Holders holders = nearest < 0 ? Holders{} : find_holders(tiles, point);
    const auto found = invert(tiles.grid, tiles.height, tiles.width, point, nearest, holders.count, holders.first);
    output.cell[2 * p] = found.x;
    output.cell[2 * p + 1] = found.y;
    output.offset[2 * p] = found.u;
    output.offset[2 * p + 1] = found.v;
    output.confidence[p] = found.confidence;
  }
}

std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& grid_, const Tensor& points_) {
  STD_TORCH_CHECK(grid_.dim() == 4 && grid_.size(3) == 2 && points_.dim() == 3 && points_.size(2) == 2 &&
                      grid_.size(0) == points_.size(0) && grid_.size(1) > 0 && grid_.size(2) > 0 &&
                      grid_.scalar_type() == points_.scalar_type(),
                  "invert_grid: grid must be [N, H, W, 2] and points [N, P, 2], of one dtype");
  const Tensor grid = in_layout(grid_, false), points = in_layout(points_, false);
  const int64_t batch = grid.size(0), height = grid.size(1), width = grid.size(2), per_sample = points.size(1);
  const Tensor cell = empty(sizes_of(points), ScalarType::Long);
  const Tensor offset = empty(sizes_of(points), points.scalar_type());
  const Tensor confidence = empty({batch, per_sample}, points.scalar_type());
  if (points.numel() > 0)
    dispatch_wide(grid.scalar_type(), "invert_grid", [&]<typename A>() {
      TiledGrid<A> tiled(grid.template const_data_ptr<A>(), batch, height, width);
      const A* data = points.template const_data_ptr<A>();
      const Output<A> output{cell.template mutable_data_ptr<int64_t>(), offset.template mutable_data_ptr<A>(),
                             confidence.template mutable_data_ptr<A>()};
      parallel_for(0, batch, grain(2 * height * width),
                   [&](int64_t begin, int64_t end) { at_level<build_boxes<A>>(tiled, 1, begin, end); });
      parallel_for(0, batch * per_sample, grain(2 * tiled.boxes + 16 * tile_width * tile_height),
                   [&](int64_t begin, int64_t end) { at_level<invert_points<A>>(tiled, data, output, per_sample, begin, end); });
    });
  return {cell, offset, confidence};
}

std::tuple<Tensor, Tensor> backward(const Tensor& grad_, const Tensor& grid_, const Tensor& cell_, const Tensor& offset_,
                                    const Tensor& confidence_) {
  const Tensor grad = in_layout(grad_, false), grid = in_layout(grid_, false);
  const Tensor cell = in_layout(cell_, false), offset = in_layout(offset_, false);
  const Tensor confidence = in_layout(confidence_, false);
  STD_TORCH_CHECK(grid.dim() == 4 && grid.size(3) == 2 && offset.dim() == 3 && offset.size(0) == grid.size(0) &&
                      offset.size(2) == 2 && sizes_of(grad) == sizes_of(offset) && sizes_of(cell) == sizes_of(offset) &&
                      confidence.numel() * 2 == offset.numel() && grad.scalar_type() == grid.scalar_type() &&
                      offset.scalar_type() == grid.scalar_type() && confidence.scalar_type() == grid.scalar_type(),
                  "invert_grid_backward: the arguments do not fit together");
  const int64_t batch = grid.size(0), height = grid.size(1), width = grid.size(2), per_sample = offset.size(1);
  const Tensor grad_grid = empty(sizes_of(grid), grid.scalar_type()), grad_points = empty(sizes_of(offset), grid.scalar_type());
  dispatch_wide(grid.scalar_type(), "invert_grid_backward", [&]<typename A>() {
    const int64_t* cells = cell.template const_data_ptr<int64_t>();
    const A *gradients = grad.template const_data_ptr<A>(), *offsets = offset.template const_data_ptr<A>();
    const A *vertices = grid.template const_data_ptr<A>(), *confidences = confidence.template const_data_ptr<A>();
    A *to_grid = grad_grid.template mutable_data_ptr<A>(), *to_points = grad_points.template mutable_data_ptr<A>();
    // Points of one sample share vertices, so a sample is one task, and adds them in their order.
    parallel_for(0, batch, grain(2 * height * width + 16 * per_sample), [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        A* sums = to_grid + n * height * width * 2;
        std::fill_n(sums, height * width * 2, A(0));
        for (int64_t p = n * per_sample; p < (n + 1) * per_sample; ++p) {
          const int64_t x = cells[2 * p], y = cells[2 * p + 1];
          Vector<A> gradient{0, 0};
          if (has_gradient(confidences[p], x, y, height, width)) {
            const A u = offsets[2 * p], v = offsets[2 * p + 1];
            const Cell<A> corners = cell_at(vertices + n * height * width * 2, height, width, x, y);
            gradient = point_gradient(corners, u, v, gradients[2 * p], gradients[2 * p + 1]);
            for (int corner = 0; corner < 4; ++corner) {
              A* sum = sums + 2 * ((y + corner / 2) * width + x + corner % 2);
              const A weight = corner_weight(u, v, corner);
              sum[0] -= weight * gradient.x;
              sum[1] -= weight * gradient.y;
            }
          }
          to_points[2 * p] = gradient.x;
          to_points[2 * p + 1] = gradient.y;
        }
      }
    });
  });
  return {grad_grid, grad_points};
}

}  // namespace ggf::invert_grid

STABLE_TORCH_LIBRARY_IMPL(gangealing_fast, CPU, m) {
  m.impl("invert_grid", TORCH_BOX(&ggf::invert_grid::forward));
  m.impl("invert_grid_backward", TORCH_BOX(&ggf::invert_grid::backward));
}
