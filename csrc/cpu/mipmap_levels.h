// SPDX-License-Identifier: Apache-2.0
// The levels of a mip-map pyramid, four channels side by side, and their adjoint. Maths:
// gangealing_fast/ops/mipmap_warp.py.
#pragma once

#include "../mipmap_pyramid.h"

namespace ggf::mipmap_warp {

// Copies up to four channels of the image into level 0. Where there are fewer the last one is repeated: the surplus is
// never looked at.
template <int64_t fixed_stride, typename T>
GGF_INLINE void interleave_rows(const T* x, int64_t channel_stride, int64_t row_stride, int64_t column_stride,
                                int64_t channels, int64_t height, int64_t width, Compute<T>* level) {
  const int64_t across = fixed_stride ? fixed_stride : column_stride;
  for (int64_t y = 0; y < height; ++y) {
    Compute<T>* GGF_RESTRICT out = level + y * width * 4;
    const T* first = x + y * row_stride;
    const T* second = first + std::min<int64_t>(1, channels - 1) * channel_stride;
    const T* third = first + std::min<int64_t>(2, channels - 1) * channel_stride;
    const T* fourth = first + std::min<int64_t>(3, channels - 1) * channel_stride;
    for (int64_t i = 0; i < width; ++i) {
      out[4 * i] = load(first[i * across]);
      out[4 * i + 1] = load(second[i * across]);
      out[4 * i + 2] = load(third[i * across]);
      out[4 * i + 3] = load(fourth[i * across]);
    }
  }
}

template <typename T>
GGF_MULTIVERSION void interleave(const T* x, int64_t channel_stride, int64_t row_stride, int64_t column_stride,
                                 int64_t channels, int64_t height, int64_t width, Compute<T>* level) {
  if (column_stride == 1)
    interleave_rows<1>(x, channel_stride, row_stride, column_stride, channels, height, width, level);
  else
    interleave_rows<0>(x, channel_stride, row_stride, column_stride, channels, height, width, level);
}

template <typename A>
inline constexpr A tent[4] = {A(0.125), A(0.375), A(0.375), A(0.125)};

// finer [*, finer_width, 4] -> coarser [level.height, level.width, 4]; `line` has room for one finer row.
template <typename A>
GGF_MULTIVERSION void halve(const A* finer, int64_t finer_width, const Level& level, A* coarser, A* line) {
  for (int64_t y = 0; y < level.height; ++y) {
    const A* GGF_RESTRICT r0 = finer + int64_t(4) * finer_width * level.rows[4 * y];
    const A* GGF_RESTRICT r1 = finer + int64_t(4) * finer_width * level.rows[4 * y + 1];
    const A* GGF_RESTRICT r2 = finer + int64_t(4) * finer_width * level.rows[4 * y + 2];
    const A* GGF_RESTRICT r3 = finer + int64_t(4) * finer_width * level.rows[4 * y + 3];
    A* GGF_RESTRICT mixed = line;
    for (int64_t i = 0; i < 4 * finer_width; ++i)
      mixed[i] = tent<A>[0] * (r0[i] + r3[i]) + tent<A>[1] * (r1[i] + r2[i]);
    const int32_t* columns = level.columns.data();
    A* GGF_RESTRICT out = coarser + 4 * y * level.width;
    for (int64_t x = 0; x < level.width; ++x, columns += 4)
      for (int64_t c = 0; c < 4; ++c)
        out[4 * x + c] = tent<A>[0] * (mixed[4 * columns[0] + c] + mixed[4 * columns[3] + c]) +
                         tent<A>[1] * (mixed[4 * columns[1] + c] + mixed[4 * columns[2] + c]);
  }
}

// The adjoint of `halve`: adds to finer.
template <typename A>
GGF_MULTIVERSION void halve_adjoint(A* finer, int64_t finer_width, const Level& level, const A* coarser, A* line) {
  for (int64_t y = 0; y < level.height; ++y) {
    std::fill_n(line, 4 * finer_width, A(0));
    const A* GGF_RESTRICT in = coarser + 4 * y * level.width;
    const int32_t* columns = level.columns.data();
    for (int64_t x = 0; x < level.width; ++x)
      for (int64_t k = 0; k < 4; ++k)
        for (int64_t c = 0; c < 4; ++c) line[4 * columns[4 * x + k] + c] += tent<A>[k] * in[4 * x + c];
    const A* GGF_RESTRICT mixed = line;
    for (int64_t k = 0; k < 4; ++k) {
      A* GGF_RESTRICT out = finer + int64_t(4) * finer_width * level.rows[4 * y + k];
      for (int64_t i = 0; i < 4 * finer_width; ++i) out[i] += tent<A>[k] * mixed[i];
    }
  }
}

// Fills the levels of all groups of one sample `x`, whose strides are those of its axes (channel, row, column).
template <typename T>
void build_pyramid(const Pyramid<Compute<T>>& pyramid, const T* x, const std::array<int64_t, 3>& strides,
                   int64_t channels, Compute<T>* texels, Compute<T>* line) {
  for (int64_t group = 0; group < pyramid.groups; ++group) {
    Compute<T>* levels = texels + 4 * group * pyramid.texels;
    interleave<T>(x + 4 * group * strides[0], strides[0], strides[1], strides[2],
                  std::min<int64_t>(4, channels - 4 * group), pyramid.levels[0].height, pyramid.levels[0].width,
                  levels);
    for (size_t l = 1; l < pyramid.levels.size(); ++l)
      halve(levels + 4 * pyramid.levels[l - 1].texels, pyramid.levels[l - 1].width, pyramid.levels[l],
            levels + 4 * pyramid.levels[l].texels, line);
  }
}

// Adds the gradients of the coarse levels to the finer ones, and takes level 0 apart into planes [C, H, W].
template <typename A>
void collect_gradient(const Pyramid<A>& pyramid, A* texels, A* line, int64_t channels, A* planes) {
  const int64_t size = pyramid.levels[0].height * pyramid.levels[0].width;
  for (int64_t group = 0; group < pyramid.groups; ++group) {
    A* levels = texels + 4 * group * pyramid.texels;
    for (size_t l = pyramid.levels.size(); l-- > 1;)
      halve_adjoint(levels + 4 * pyramid.levels[l - 1].texels, pyramid.levels[l - 1].width, pyramid.levels[l],
                    levels + 4 * pyramid.levels[l].texels, line);
    for (int64_t c = 4 * group; c < std::min(channels, 4 * group + 4); ++c)
      for (int64_t i = 0; i < size; ++i) planes[c * size + i] = levels[4 * i + c % 4];
  }
}

}  // namespace ggf::mipmap_warp
