// SPDX-License-Identifier: Apache-2.0
// The mip-map pyramid of a batch of images, plane by plane, and its adjoint. Maths: gangealing_fast/ops/mipmap_warp.py.
#pragma once

#include "exact_sum.cuh"

namespace ggf::cuda::mipmap_warp {

inline constexpr int most_levels = 17;

template <typename A>
struct Level {
  int32_t height, width, full_height, full_width;  // full: with the padding to a power of two, which level 0 alone has
  int32_t top, left;                               // of that padding
  int64_t offset;                                  // texels of a plane before this level, level 0 not counted
  A scale_x, scale_y, shift_x, shift_y;            // finest texel X lies at (X + shift + 1/2) * scale - 1/2 of the level
};

template <typename A>
struct Pyramid {
  Level<A> levels[most_levels];
  int32_t count;
  int64_t texels;  // of a plane, level 0 not counted
};

// A plane of some level, read as it lies.
template <typename T>
struct Image {
  const T* data;
  int64_t sample_stride, channel_stride, row_stride, column_stride;
};

GGF_INLINE int32_t reflect(int32_t index, int32_t size) {
  if (size == 1) return 0;
  const int32_t period = 2 * (size - 1), folded = (index < 0 ? -index : index) % period;
  return folded < size ? folded : period - folded;
}

// A tap of the tent [1, 3, 3, 1] / 8.
template <typename A>
GGF_INLINE A tent(int k) {
  return k == 1 || k == 2 ? A(0.375) : A(0.125);
}

// One texel of a level from the next finer one. target: [N, C, texels] at the level
template <typename T>
__global__ void __launch_bounds__(block_threads)
    halve(Image<T> finer, Level<Compute<T>> from, Level<Compute<T>> to, int32_t channels, Compute<T>* target, int64_t target_stride,
          uint32_t per_plane, int64_t first_sample, uint32_t first_channel, uint32_t threads) {
  using A = Compute<T>;
  const uint32_t thread = blockIdx.x * block_threads + threadIdx.x;
  if (thread >= threads) return;
  const auto [sample, channel, index] = in_plane(thread, per_plane, channels, first_sample, first_channel);
  const int32_t row = index / to.width, column = index % to.width;
  const T* source = finer.data + sample * finer.sample_stride + channel * finer.channel_stride;
  int64_t columns[4];
  for (int k = 0; k < 4; ++k)
    columns[k] = reflect(reflect(2 * column - 1 + k, from.full_width) - from.left, from.width) * finer.column_stride;
  A sum = 0;
  for (int k = 0; k < 4; ++k) {
    const int64_t y = reflect(reflect(2 * row - 1 + k, from.full_height) - from.top, from.height) * finer.row_stride;
    const A across = tent<A>(0) * (load(source[y + columns[0]]) + load(source[y + columns[3]])) +
                     tent<A>(1) * (load(source[y + columns[1]]) + load(source[y + columns[2]]));
    sum += tent<A>(k) * across;
  }
  target[(sample * channels + channel) * target_stride + index] = sum;
}

// The adjoint of `halve`: hands the sums of a level down to the next finer one.
template <typename T>
__global__ void __launch_bounds__(block_threads)
    spread(Sums<Compute<T>> sums, int64_t plane_stride, int64_t from_offset, int64_t to_offset, int32_t channels,
           Level<Compute<T>> finer, Level<Compute<T>> level, uint32_t per_plane, int64_t first_sample, uint32_t first_channel,
           uint32_t threads) {
  using A = Compute<T>;
  const uint32_t thread = blockIdx.x * block_threads + threadIdx.x;
  if (thread >= threads) return;
  const auto [sample, channel, index] = in_plane(thread, per_plane, channels, first_sample, first_channel);
  const int64_t plane = sample * channels + channel;
  const SumScale<A> scale = sums.scale(sample);
  const A total = sums.total(plane * plane_stride + from_offset + index, scale);
  if (total == 0 || !scale.finite) return;
  const int32_t row = index / level.width, column = index % level.width;
  const int64_t first = plane * plane_stride + to_offset;
  for (int k = 0; k < 4; ++k) {
    const int32_t y = reflect(reflect(2 * row - 1 + k, finer.full_height) - finer.top, finer.height);
    for (int l = 0; l < 4; ++l) {
      const int32_t x = reflect(reflect(2 * column - 1 + l, finer.full_width) - finer.left, finer.width);
      sums.add(first + int64_t(y) * finer.width + x, tent<A>(k) * tent<A>(l) * total, scale);
    }
  }
}

// The shape of the pyramid: the padding to a power of two exists in the indices alone.
template <typename A>
Pyramid<A> plan_pyramid(int64_t height, int64_t width, double max_levels) {
  Pyramid<A> pyramid{};
  pyramid.count = static_cast<int32_t>(std::ceil(max_levels - 1)) + 1;
  int64_t full_height = height, full_width = width;
  if (width & (width - 1)) {
    full_width = static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(width)));
    full_height = std::max(height, full_width);
  }
  const int64_t left = (full_width - width) / 2, top = (full_height - height) / 2;
  int64_t level_height = full_height, level_width = full_width;
  for (int l = 0; l < pyramid.count; ++l) {
    Level<A>& level = pyramid.levels[l];
    level.height = static_cast<int32_t>(l ? level_height : height);
    level.width = static_cast<int32_t>(l ? level_width : width);
    level.full_height = static_cast<int32_t>(level_height);
    level.full_width = static_cast<int32_t>(level_width);
    level.top = static_cast<int32_t>(l ? 0 : top);
    level.left = static_cast<int32_t>(l ? 0 : left);
    level.offset = pyramid.texels;
    level.shift_x = l ? static_cast<A>(left) : A(0);
    level.shift_y = l ? static_cast<A>(top) : A(0);
    level.scale_x = l ? static_cast<A>(level_width) / static_cast<A>(full_width) : A(1);
    level.scale_y = l ? static_cast<A>(level_height) / static_cast<A>(full_height) : A(1);
    if (l) pyramid.texels += level_height * level_width;
    level_height = std::max<int64_t>(1, level_height / 2);
    level_width = std::max<int64_t>(1, level_width / 2);
  }
  return pyramid;
}

}  // namespace ggf::cuda::mipmap_warp
