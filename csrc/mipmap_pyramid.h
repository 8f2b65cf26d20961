// SPDX-License-Identifier: Apache-2.0
// The shape of the mip-map pyramid of one image, four channels side by side. Maths: gangealing_fast/ops/mipmap_warp.py.
#pragma once

#include "common.h"

#include <algorithm>
#include <array>

namespace ggf::mipmap_warp {

inline constexpr int64_t most_levels = 17;

// One level of one group of channels: [height, width] texels of four channels, starting `texels` texels into the group.
struct Level {
  int64_t height, width, texels;
  std::vector<int32_t> rows, columns;  // the 4 rows of the finer level that each row is made of; likewise columns
};

template <typename A>
struct Pyramid {
  std::vector<Level> levels;
  int64_t groups, texels;  // groups of four channels; texels of all levels of one group
  // By level, for the weights: where the finer pixel X lies in the level: (X + shift + 1/2) * scale - 1/2.
  std::array<A, most_levels> shift_x{}, shift_y{}, scale_x{}, scale_y{}, last_x{}, last_y{};
  std::array<int32_t, most_levels> first{}, stride{};
  int64_t size() const { return 4 * groups * texels; }
};

GGF_INLINE int64_t reflect(int64_t index, int64_t size) {
  if (size == 1) return 0;
  const int64_t period = 2 * (size - 1), folded = (index < 0 ? -index : index) % period;
  return folded < size ? folded : period - folded;
}

// The shape of the pyramid: level 0 is the image; the padding to a power of two exists in the index tables alone.
template <typename A>
Pyramid<A> plan_pyramid(int64_t channels, int64_t height, int64_t width, int64_t count) {
  Pyramid<A> pyramid;
  pyramid.groups = ceil_divide(channels, 4);
  int64_t full_height = height, full_width = width;
  if (width & (width - 1)) {
    full_width = std::bit_ceil(static_cast<uint64_t>(width));
    full_height = std::max(height, full_width);
  }
  const int64_t left = (full_width - width) / 2, top = (full_height - height) / 2;
  pyramid.levels.push_back({height, width, 0, {}, {}});
  int64_t finer_height = full_height, finer_width = full_width, texels = height * width;
  for (int64_t l = 1; l < count; ++l) {
    Level level{std::max<int64_t>(1, finer_height / 2), std::max<int64_t>(1, finer_width / 2), texels, {}, {}};
    for (int64_t i = 0; i < 4 * level.height; ++i) {
      const int64_t row = reflect(i / 4 * 2 - 1 + i % 4, finer_height);
      level.rows.push_back(static_cast<int32_t>(l == 1 ? reflect(row - top, height) : row));
    }
    for (int64_t i = 0; i < 4 * level.width; ++i) {
      const int64_t column = reflect(i / 4 * 2 - 1 + i % 4, finer_width);
      level.columns.push_back(static_cast<int32_t>(l == 1 ? reflect(column - left, width) : column));
    }
    texels += level.height * level.width;
    finer_height = level.height;
    finer_width = level.width;
    pyramid.levels.push_back(std::move(level));
  }
  STD_TORCH_CHECK(texels < (int64_t(1) << 29), "mipmap_warp: a plane of x must have fewer than 2^28 texels");
  pyramid.texels = texels;
  for (int64_t l = 0; l < count; ++l) {
    const Level& level = pyramid.levels[l];
    pyramid.shift_x[l] = l ? static_cast<A>(left) : A(0);
    pyramid.shift_y[l] = l ? static_cast<A>(top) : A(0);
    pyramid.scale_x[l] = l ? static_cast<A>(level.width) / static_cast<A>(full_width) : A(1);
    pyramid.scale_y[l] = l ? static_cast<A>(level.height) / static_cast<A>(full_height) : A(1);
    pyramid.last_x[l] = static_cast<A>(level.width - 1);
    pyramid.last_y[l] = static_cast<A>(level.height - 1);
    pyramid.first[l] = static_cast<int32_t>(level.texels * 4);
    pyramid.stride[l] = static_cast<int32_t>(level.width * 4);
  }
  return pyramid;
}

}  // namespace ggf::mipmap_warp
