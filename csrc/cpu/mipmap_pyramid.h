// SPDX-License-Identifier: Apache-2.0
// The mip-map pyramid of one image from level 1 on, four channels side by side, and its adjoint. Maths:
// gangealing_fast/ops/mipmap_warp.py.
//
// Level 0 is the image itself, read where it lies. Every other level repeats its last column and its last row, so that
// three texels in a row, from any one on, are its neighbours as they count at the edge.
#pragma once

#include "../common.h"
#include "levels.h"

#include <algorithm>
#include <array>

namespace ggf::mipmap_warp {

inline constexpr int64_t most_levels = 17;
inline constexpr int64_t margin = 2;  // repeated columns and rows

// One level of one group of four channels: rows of width + margin texels, starting `first` texels into the group.
struct Level {
  int64_t height, width, first;
  std::vector<int32_t> rows;     // the 4 rows of the finer level that each row is made of
  std::vector<int32_t> columns;  // what the finer row holds when reflected at both ends, 2 width + 2 texels
  int64_t stride() const { return width + margin; }
};

template <typename A>
struct Pyramid {
  std::vector<Level> levels;
  int64_t groups, texels;  // groups of four channels; texels of all levels of one group
  int64_t left, top;       // padding of the image to a power of two
  // By level: how much smaller it is than the padded image; where it starts, and from row to row, in numbers. Level 0,
  // which is not here, borrows the entries of level 1.
  std::array<A, most_levels> scale_x{}, scale_y{};
  std::array<int32_t, most_levels> first{}, stride{};
  // One texel more than the groups hold: the last sample reads four, of which it uses three.
  int64_t size() const { return 4 * (groups * texels + 1); }
  int64_t longest_line() const { return levels.size() > 1 ? 4 * (2 * levels[1].width + 2) : 0; }
};

inline int64_t reflect(int64_t index, int64_t size) {
  if (size == 1) return 0;
  const int64_t period = 2 * (size - 1), folded = (index < 0 ? -index : index) % period;
  return folded < size ? folded : period - folded;
}

// The shape of the pyramid; the padding to a power of two exists in the index tables alone.
template <typename A>
Pyramid<A> plan_pyramid(int64_t channels, int64_t height, int64_t width, int64_t count) {
  Pyramid<A> pyramid;
  pyramid.groups = ceil_divide(channels, 4);
  int64_t full_height = height, full_width = width;
  if (width & (width - 1)) {
    full_width = std::bit_ceil(static_cast<uint64_t>(width));
    full_height = std::max(height, full_width);
  }
  pyramid.left = (full_width - width) / 2;
  pyramid.top = (full_height - height) / 2;
  pyramid.levels.push_back({height, width, 0, {}, {}});
  int64_t finer_height = full_height, finer_width = full_width, texels = 0;
  for (int64_t l = 1; l < count; ++l) {
    Level level{std::max<int64_t>(1, finer_height / 2), std::max<int64_t>(1, finer_width / 2), texels, {}, {}};
    const auto finer = [l](int64_t index, int64_t finer_size, int64_t padding, int64_t size) {
      const int64_t inside = reflect(index, finer_size);
      return static_cast<int32_t>(l == 1 ? reflect(inside - padding, size) : inside);
    };
    for (int64_t i = 0; i < 4 * level.height; ++i)
      level.rows.push_back(finer(i / 4 * 2 - 1 + i % 4, finer_height, pyramid.top, height));
    for (int64_t i = 0; i < 2 * level.width + 2; ++i) level.columns.push_back(finer(i - 1, finer_width, pyramid.left, width));
    texels += (level.height + margin) * level.stride();
    finer_height = level.height;
    finer_width = level.width;
    pyramid.levels.push_back(std::move(level));
  }
  STD_TORCH_CHECK(texels < (int64_t(1) << 28), "mipmap_warp: a plane of x must have fewer than 2^28 texels");
  pyramid.texels = texels;
  for (int64_t l = 0; l < count && count > 1; ++l) {
    const Level& level = pyramid.levels[std::max<int64_t>(l, 1)];
    pyramid.scale_x[l] = static_cast<A>(level.width) / static_cast<A>(full_width);
    pyramid.scale_y[l] = static_cast<A>(level.height) / static_cast<A>(full_height);
    pyramid.first[l] = static_cast<int32_t>(level.first * 4);
    pyramid.stride[l] = static_cast<int32_t>(level.stride() * 4);
  }
  return pyramid;
}

template <typename A>
inline constexpr A tent[4] = {A(0.125), A(0.375), A(0.375), A(0.125)};

// `parts` numbers a texel. `line` holds a row of the finer level from texel `begin` on: fills in what is around it.
template <int64_t parts, typename A>
GGF_INLINE void extend(A* line, const Level& level, int64_t begin, int64_t count) {
  const int64_t length = 2 * level.width + 2;
  for (int64_t j = 0; j < length; ++j) {
    if (j == begin) j += count;
    if (j >= length) break;
    for (int64_t c = 0; c < parts; ++c) line[parts * j + c] = line[parts * (begin + level.columns[j]) + c];
  }
}

// The adjoint of `extend`.
template <int64_t parts, typename A>
GGF_INLINE void extend_adjoint(A* line, const Level& level, int64_t begin, int64_t count) {
  const int64_t length = 2 * level.width + 2;
  for (int64_t j = 0; j < length; ++j) {
    if (j == begin) j += count;
    if (j >= length) break;
    for (int64_t c = 0; c < parts; ++c) line[parts * (begin + level.columns[j]) + c] += line[parts * j + c];
  }
}

// extended line [2 width + 2, parts] -> out [width, parts]
template <int64_t parts, typename A>
GGF_INLINE void halve_line(const A* GGF_RESTRICT line, int64_t width, A* GGF_RESTRICT out) {
  for (int64_t x = 0; x < width; ++x)
    for (int64_t c = 0; c < parts; ++c) {
      const A* near = line + 2 * parts * x + c;
      out[parts * x + c] = tent<A>[0] * (near[0] + near[3 * parts]) + tent<A>[1] * (near[parts] + near[2 * parts]);
    }
}

// The adjoint of `halve_line`; overwrites the line.
template <int64_t parts, typename A>
GGF_INLINE void halve_line_adjoint(const A* GGF_RESTRICT in, int64_t width, A* GGF_RESTRICT line) {
  for (int64_t c = 0; c < parts; ++c) {
    line[c] = tent<A>[0] * in[c];
    line[parts + c] = tent<A>[1] * in[c];
  }
  for (int64_t x = 1; x < width; ++x)
    for (int64_t c = 0; c < parts; ++c) {
      const A here = in[parts * x + c], before = in[parts * (x - 1) + c];
      line[2 * parts * x + c] = tent<A>[0] * here + tent<A>[1] * before;
      line[2 * parts * x + parts + c] = tent<A>[1] * here + tent<A>[0] * before;
    }
  for (int64_t c = 0; c < parts; ++c) {
    line[2 * parts * width + c] = tent<A>[1] * in[parts * (width - 1) + c];
    line[2 * parts * width + parts + c] = tent<A>[0] * in[parts * (width - 1) + c];
  }
}

// Mixes the four rows that row y of the level is made of; `count` numbers, `step` apart.
template <typename A>
GGF_INLINE void mix_rows(const A* finer, int64_t stride, int64_t step, const Level& level, int64_t y, int64_t count,
                         A* GGF_RESTRICT out) {
  const A* GGF_RESTRICT r0 = finer + stride * level.rows[4 * y];
  const A* GGF_RESTRICT r1 = finer + stride * level.rows[4 * y + 1];
  const A* GGF_RESTRICT r2 = finer + stride * level.rows[4 * y + 2];
  const A* GGF_RESTRICT r3 = finer + stride * level.rows[4 * y + 3];
  if (step == 1)
    for (int64_t i = 0; i < count; ++i) out[i] = tent<A>[0] * (r0[i] + r3[i]) + tent<A>[1] * (r1[i] + r2[i]);
  else
    for (int64_t i = 0; i < count * step; i += step) *out++ = tent<A>[0] * (r0[i] + r3[i]) + tent<A>[1] * (r1[i] + r2[i]);
}

// The adjoint of `mix_rows` where step is 1: adds to the finer rows.
template <typename A>
GGF_INLINE void mix_rows_adjoint(const A* GGF_RESTRICT mixed, const Level& level, int64_t y, int64_t count, A* finer,
                                 int64_t stride) {
  for (int64_t k = 0; k < 4; ++k) {
    A* GGF_RESTRICT out = finer + stride * level.rows[4 * y + k];
    for (int64_t i = 0; i < count; ++i) out[i] += tent<A>[k] * mixed[i];
  }
}

template <typename A>
GGF_INLINE void repeat_last_column(A* row, int64_t width) {
  for (int64_t i = 0; i < 4 * margin; ++i) row[4 * width + i] = row[4 * (width - 1) + i % 4];
}

template <typename A>
GGF_INLINE void repeat_last_row(A* texels, const Level& level) {
  const int64_t row = 4 * level.stride();
  const A* last = texels + (level.height - 1) * row;
  for (int64_t k = 0; k < margin; ++k) std::copy_n(last, row, texels + (level.height + k) * row);
}

// The adjoint of both.
template <typename A>
GGF_INLINE void gather_margin(A* texels, const Level& level) {
  const int64_t row = 4 * level.stride();
  A* last = texels + (level.height - 1) * row;
  for (int64_t i = 0; i < margin * row; ++i) last[i % row] += last[row + i];
  for (int64_t y = 0; y < level.height; ++y) {
    A* end = texels + y * row + 4 * (level.width - 1);
    for (int64_t i = 0; i < 4 * margin; ++i) end[i % 4] += end[4 + i];
  }
}

// Up to four channels of an image with these strides -> level 1. `line` has room for pyramid.longest_line() numbers.
template <typename A>
GGF_INLINE void halve_image(const A* x, const std::array<int64_t, 3>& strides, int64_t channels, const Pyramid<A>& pyramid,
                            A* texels, A* line) {
  const Level& level = pyramid.levels[1];
  const int64_t width = pyramid.levels[0].width, begin = 1 + pyramid.left;
  const int64_t length = 2 * level.width + 2;
  A* halved = line + length;
  std::fill_n(halved, 4 * level.width, A(0));
  for (int64_t y = 0; y < level.height; ++y) {
    for (int64_t c = 0; c < channels; ++c) {
      mix_rows(x + c * strides[0], strides[1], strides[2], level, y, width, line + begin);
      extend<1>(line, level, begin, width);
      halve_line<1>(line, level.width, halved + c * level.width);
    }
    A* GGF_RESTRICT row = texels + 4 * y * level.stride();
    const A *h0 = halved, *h1 = h0 + level.width, *h2 = h1 + level.width, *h3 = h2 + level.width;
    for (int64_t i = 0; i < level.width; ++i) {
      row[4 * i] = h0[i];
      row[4 * i + 1] = h1[i];
      row[4 * i + 2] = h2[i];
      row[4 * i + 3] = h3[i];
    }
    repeat_last_column(row, level.width);
  }
  repeat_last_row(texels, level);
}

template <typename A>
GGF_INLINE void halve_level(const A* finer, const Level& finer_level, const Level& level, A* texels, A* line) {
  for (int64_t y = 0; y < level.height; ++y) {
    A* row = texels + 4 * y * level.stride();
    mix_rows(finer, 4 * finer_level.stride(), 1, level, y, 4 * finer_level.width, line + 4);
    extend<4>(line, level, 1, finer_level.width);
    halve_line<4>(line, level.width, row);
    repeat_last_column(row, level.width);
  }
  repeat_last_row(texels, level);
}

// Adds to the planes [channels, height, width] of the image's gradient.
template <typename A>
GGF_INLINE void halve_image_adjoint(const A* texels, int64_t channels, const Pyramid<A>& pyramid, A* planes, A* line) {
  const Level& level = pyramid.levels[1];
  const int64_t height = pyramid.levels[0].height, width = pyramid.levels[0].width, begin = 1 + pyramid.left;
  A* extended = line;
  A* halved = line + 2 * level.width + 2;
  for (int64_t y = 0; y < level.height; ++y)
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t i = 0; i < level.width; ++i) halved[i] = texels[4 * (y * level.stride() + i) + c];
      halve_line_adjoint<1>(halved, level.width, extended);
      extend_adjoint<1>(extended, level, begin, width);
      mix_rows_adjoint(extended + begin, level, y, width, planes + c * height * width, width);
    }
}

// Adds to the finer level.
template <typename A>
GGF_INLINE void halve_level_adjoint(const A* texels, const Level& level, const Level& finer_level, A* finer, A* line) {
  for (int64_t y = 0; y < level.height; ++y) {
    halve_line_adjoint<4>(texels + 4 * y * level.stride(), level.width, line);
    extend_adjoint<4>(line, level, 1, finer_level.width);
    mix_rows_adjoint(line + 4, level, y, 4 * finer_level.width, finer, 4 * finer_level.stride());
  }
}

// Fills the levels of all groups of one sample `x`, whose strides are those of its axes (channel, row, column).
template <typename A>
void build_pyramid(const Pyramid<A>& pyramid, const A* x, const std::array<int64_t, 3>& strides, int64_t channels, A* texels,
                   A* line) {
  const std::vector<Level>& levels = pyramid.levels;
  for (int64_t group = 0; group < pyramid.groups && levels.size() > 1; ++group) {
    A* start = texels + 4 * group * pyramid.texels;
    at_level<halve_image<A>>(x + 4 * group * strides[0], strides, std::min<int64_t>(4, channels - 4 * group), pyramid, start, line);
    for (size_t l = 2; l < levels.size(); ++l)
      at_level<halve_level<A>>(start + 4 * levels[l - 1].first, levels[l - 1], levels[l], start + 4 * levels[l].first, line);
  }
}

// Adds the gradients of the coarse levels to the finer ones, and at last to the planes [C, H, W] of the gradient.
template <typename A>
void collect_gradient(const Pyramid<A>& pyramid, A* texels, A* line, int64_t channels, A* planes) {
  const std::vector<Level>& levels = pyramid.levels;
  for (int64_t group = 0; group < pyramid.groups && levels.size() > 1; ++group) {
    A* start = texels + 4 * group * pyramid.texels;
    for (size_t l = levels.size(); l-- > 2;) {
      gather_margin(start + 4 * levels[l].first, levels[l]);
      at_level<halve_level_adjoint<A>>(start + 4 * levels[l].first, levels[l], levels[l - 1], start + 4 * levels[l - 1].first,
                                       line);
    }
    gather_margin(start, levels[1]);
    at_level<halve_image_adjoint<A>>(start, std::min<int64_t>(4, channels - 4 * group), pyramid,
                                     planes + 4 * group * levels[0].height * levels[0].width, line);
  }
}

}  // namespace ggf::mipmap_warp
