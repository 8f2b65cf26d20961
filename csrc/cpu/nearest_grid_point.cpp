// SPDX-License-Identifier: Apache-2.0
// The nearest grid vertex to each point, exactly, by searching only those tiles of the grid whose bounding box comes close
// enough. Maths: gangealing_fast/ops/nearest_grid_point.py.
#ifdef __clang__
#pragma clang fp contract(off)
#else
#pragma GCC optimize("fp-contract=off")  // see product() in nearest_grid_point.h
#endif

#include "levels.h"
#include "grid_tiles.h"

namespace ggf::nearest_grid_point {

template <typename A>
GGF_INLINE void find_points(const TiledGrid<A>& tiled, const A* points, int64_t* found, int64_t per_sample, int64_t begin,
                            int64_t end) {
  std::vector<A> bounds(tiled.boxes);
  for (int64_t point = begin; point < end; ++point) {
    const Tiles<A> tiles = tiled.sample(point / per_sample);
    const A x = points[2 * point], y = points[2 * point + 1];
    const int64_t index = find_nearest(tiles, tiled.boxes, x, y, bounds.data()).index;
    found[2 * point] = index < 0 ? -1 : index % tiled.width;
    found[2 * point + 1] = index < 0 ? -1 : index / tiled.width;
  }
}

Tensor forward(const Tensor& grid_, const Tensor& points_) {
  STD_TORCH_CHECK(grid_.dim() == 4 && grid_.size(3) == 2 && points_.dim() == 3 && points_.size(2) == 2 &&
                      grid_.size(0) == points_.size(0) && grid_.size(1) > 0 && grid_.size(2) > 0 &&
                      grid_.scalar_type() == points_.scalar_type(),
                  "nearest_grid_point: grid must be [N, H, W, 2] and points [N, P, 2], of one dtype");
  const Tensor grid = in_layout(grid_, false), points = in_layout(points_, false);
  const int64_t batch = grid.size(0), height = grid.size(1), width = grid.size(2), per_sample = points.size(1);
  const Tensor found = empty(sizes_of(points), ScalarType::Long);
  if (points.numel() == 0) return found;
  dispatch_wide(grid.scalar_type(), "nearest_grid_point", [&]<typename A>() {
    TiledGrid<A> tiled(grid.template const_data_ptr<A>(), batch, height, width);
    const A* data = points.template const_data_ptr<A>();
    int64_t* indices = found.template mutable_data_ptr<int64_t>();
    parallel_for(0, batch, grain(2 * height * width),
                 [&](int64_t begin, int64_t end) { at_level<build_boxes<A>>(tiled, 0, begin, end); });
    parallel_for(0, batch * per_sample, grain(tiled.boxes + 4 * tile_width * tile_height),
                 [&](int64_t begin, int64_t end) { at_level<find_points<A>>(tiled, data, indices, per_sample, begin, end); });
  });
  return found;
}

}  // namespace ggf::nearest_grid_point

STABLE_TORCH_LIBRARY_IMPL(gangealing_fast, CPU, m) { m.impl("nearest_grid_point", TORCH_BOX(&ggf::nearest_grid_point::forward)); }
