// SPDX-License-Identifier: Apache-2.0
// Anti-aliased grid sampling from a mip-map pyramid. Maths: gangealing_fast/ops/mipmap_warp.py.
//
// Level 0 is the image where it lies, in any layout; the small levels, a third of it, are made first, one launch each. A level
// is never brought to full size: along one axis a sample reads two neighbouring full-size texels, each a blend of two
// neighbouring small ones, so three small ones in all. How many levels there are follows from max_levels alone, so nothing
// waits for the device and CUDA graphs can record it all. The image's gradient is scattered into integers (exact_sum.cuh), that
// of the grid is gathered: results are bit-identical between runs.
#include "../mipmap_taps.h"
#include "exact_sum.cuh"

#include <limits>
#include <tuple>

namespace ggf::cuda::mipmap_warp {

using ggf::mipmap_warp::binary_log;
using ggf::mipmap_warp::level_taps;
using ggf::mipmap_warp::LevelAxis;
using ggf::mipmap_warp::LevelTaps;

inline constexpr int most_levels = 17;

template <typename A>
struct Level {
  int32_t height, width, full_height, full_width;  // full: with the padding to a power of two, which level 0 alone has
  int32_t top, left;                               // of that padding
  int64_t offset;                                  // texels of a plane before this level, level 0 not counted
  A scale_x, scale_y, shift_x, shift_y;  // finest texel X lies at (X + shift + 1/2) * scale - 1/2 of the level
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

template <typename T>
struct Problem {
  using A = Compute<T>;
  Image<T> x;     // [N, C, H, W]
  const A* grid;  // [N, rows, columns, 2]
  const A* small; // [N, C, texels]: levels 1, 2, ...
  int32_t channels, chunk, chunks, rows, columns;  // chunk: channels of a thread
  int64_t padding;
  A pixels_x, pixels_y;  // half of width - 1 and of height - 1: from grid units to the pixels of step 1
  A largest;             // the largest level
  Axis<A> horizontal, vertical;
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
    halve(Image<T> finer, Level<Compute<T>> from, Level<Compute<T>> to, int32_t channels, Compute<T>* target,
          int64_t target_stride, uint32_t per_plane, int64_t first_plane, uint32_t threads) {
  using A = Compute<T>;
  const uint32_t thread = blockIdx.x * block_threads + threadIdx.x;
  if (thread >= threads) return;
  const int64_t plane = first_plane + thread / per_plane;
  const uint32_t in_plane = thread % per_plane;
  const int32_t row = in_plane / to.width, column = in_plane % to.width;
  const T* source = finer.data + plane / channels * finer.sample_stride + plane % channels * finer.channel_stride;
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
  target[plane * target_stride + in_plane] = sum;
}

// The largest squared distance to the four neighbours, 1 or more, and which neighbour it is: 0 left, 1 right, 2 above, 3 below.
template <typename A>
struct Distance {
  A squared;
  int32_t neighbour;
  bool finite;
};

// `point` in its sample, whose grid starts at `grid`.
template <typename T>
__device__ __forceinline__ Distance<Compute<T>> measure(const Problem<T>& p, const Compute<T>* grid, int32_t point) {
  using A = Compute<T>;
  const int32_t row = point / p.columns, column = point % p.columns;
  const int32_t others[4] = {column > 0 ? point - 1 : point, column + 1 < p.columns ? point + 1 : point,
                             row > 0 ? point - p.columns : point, row + 1 < p.rows ? point + p.columns : point};
  const A x = grid[2 * int64_t(point)], y = grid[2 * int64_t(point) + 1];
  Distance<A> result{-1, 0, true};
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    const A dx = (grid[2 * int64_t(others[k])] - x) * p.pixels_x, dy = (grid[2 * int64_t(others[k]) + 1] - y) * p.pixels_y;
    const A squared = dx * dx + dy * dy;
    result.finite = result.finite && squared - squared == 0;
    result.neighbour = squared > result.squared ? k : result.neighbour;
    result.squared = squared > result.squared ? squared : result.squared;
  }
  if (!(result.squared > 1)) result.squared = 1;
  return result;
}

// Three texels of a level along one axis, their weights, and the weights' derivatives by the normalised coordinate.
template <typename A>
struct AxisTaps {
  int32_t index[3];
  A weight[3], slope[3];
};

template <typename A>
GGF_INLINE AxisTaps<A> axis_taps(const Position<A>& at, A size, A shift, A scale, int32_t level_size) {
  const LevelTaps<A> taps = level_taps(at.low, at.part, at.slope, size - 1, LevelAxis<A>{shift, scale, A(level_size - 1)});
  const int32_t base = static_cast<int32_t>(taps.base), end = level_size - 1;
  return {{base, base + 1 < end ? base + 1 : end, base + 2 < end ? base + 2 : end},
          {taps.weight0, taps.weight1, taps.weight2},
          {taps.slope0, taps.slope1, taps.slope2}};
}

// Where a grid point samples the pyramid.
template <typename A>
struct Place {
  Position<A> x, y;
  Distance<A> distance;
  A level, fraction;  // fraction: the weight of the level after `lower`
  int32_t lower;
  bool finite;
};

template <typename T>
__device__ __forceinline__ Place<Compute<T>> place_of(const Problem<T>& p, int64_t sample, uint32_t point) {
  using A = Compute<T>;
  const A* grid = p.grid + sample * p.rows * p.columns * 2;
  const A x = grid[2 * int64_t(point)], y = grid[2 * int64_t(point) + 1];
  Place<A> place;
  if (p.padding == zeros) {
    place.x = locate<zeros>(x, p.horizontal);
    place.y = locate<zeros>(y, p.vertical);
  } else if (p.padding == border) {
    place.x = locate<border>(x, p.horizontal);
    place.y = locate<border>(y, p.vertical);
  } else {
    place.x = locate<reflection>(x, p.horizontal);
    place.y = locate<reflection>(y, p.vertical);
  }
  place.distance = measure(p, grid, static_cast<int32_t>(point));
  place.finite = place.distance.finite && place.x.finite * place.y.finite > 0;
  if (!place.finite) place.distance.squared = 1;
  place.level = binary_log(place.distance.squared) / 2;
  const A limited = place.level < p.largest ? place.level : p.largest;
  place.lower = static_cast<int32_t>(std::floor(limited));
  place.fraction = limited - std::floor(limited);
  return place;
}

// The taps of one level, as offsets from its first texel in a plane.
template <typename A>
struct Taps {
  AxisTaps<A> x, y;
};

template <typename T>
__device__ __forceinline__ Taps<Compute<T>> taps_in(const Problem<T>& p, const Level<Compute<T>>& level,
                                                    const Place<Compute<T>>& place) {
  return {axis_taps(place.x, p.horizontal.size, level.shift_x, level.scale_x, level.width),
          axis_taps(place.y, p.vertical.size, level.shift_y, level.scale_y, level.height)};
}

template <typename A>
struct Sampled {
  A value, by_x, by_y;
};

// Level 0 needs 2 texels an axis, the others 3.
template <int taps_per_axis, bool derivatives, typename T>
__device__ __forceinline__ Sampled<Compute<T>> sample(const T* plane, int64_t row_stride, int64_t column_stride,
                                                      const Taps<Compute<T>>& taps) {
  using A = Compute<T>;
  Sampled<A> result{};
#pragma unroll
  for (int r = 0; r < taps_per_axis; ++r) {
    const T* row = plane + taps.y.index[r] * row_stride;
    A value = 0, slope = 0;
#pragma unroll
    for (int k = 0; k < taps_per_axis; ++k) {
      const A texel = load(row[taps.x.index[k] * column_stride]);
      value += taps.x.weight[k] * texel;
      if constexpr (derivatives) slope += taps.x.slope[k] * texel;
    }
    result.value += taps.y.weight[r] * value;
    if constexpr (derivatives) {
      result.by_x += taps.y.weight[r] * slope;
      result.by_y += taps.y.slope[r] * value;
    }
  }
  return result;
}

// Channel c of a sample at one level.
template <bool derivatives, typename T>
__device__ __forceinline__ Sampled<Compute<T>> sample_level(const Problem<T>& p, const Pyramid<Compute<T>>& pyramid,
                                                            int32_t level, const Taps<Compute<T>>& taps, int64_t n,
                                                            int32_t c) {
  if (level == 0)
    return sample<2, derivatives>(p.x.data + n * p.x.sample_stride + c * p.x.channel_stride, p.x.row_stride,
                                  p.x.column_stride, taps);
  const Level<Compute<T>>& from = pyramid.levels[level];
  return sample<3, derivatives>(p.small + (n * p.channels + c) * pyramid.texels + from.offset, from.width, 1, taps);
}

// Which point and channels a thread handles.
struct Share {
  int64_t sample;
  uint32_t point;
  int32_t first, last;  // channels
};

template <typename T>
__device__ __forceinline__ Share share_of(const Problem<T>& p, uint32_t thread, uint32_t per_sample,
                                          int64_t first_sample) {
  const uint32_t in_sample = thread % per_sample, points = p.rows * p.columns;
  const int32_t first = static_cast<int32_t>(in_sample / points) * p.chunk;
  return {first_sample + thread / per_sample, in_sample % points, first,
          first + p.chunk < p.channels ? first + p.chunk : p.channels};
}

// output: [N, C, rows, columns]
template <typename T>
__global__ void __launch_bounds__(block_threads)
    warp(const __grid_constant__ Problem<T> p, const __grid_constant__ Pyramid<Compute<T>> pyramid, T* output,
         uint32_t per_sample, int64_t first_sample, uint32_t threads) {
  using A = Compute<T>;
  const uint32_t thread = blockIdx.x * block_threads + threadIdx.x;
  if (thread >= threads) return;
  const Share share = share_of(p, thread, per_sample, first_sample);
  const Place<A> place = place_of(p, share.sample, share.point);
  const int64_t points = int64_t(p.rows) * p.columns;
  T* out = output + (share.sample * p.channels + share.first) * points + share.point;
  const int32_t upper = place.fraction > 0 ? place.lower + 1 : place.lower;
  const Taps<A> taps = taps_in(p, pyramid.levels[place.lower], place);
  const Taps<A> upper_taps = taps_in(p, pyramid.levels[upper], place);
  for (int32_t c = share.first; c < share.last; ++c, out += points) {
    A value = sample_level<false>(p, pyramid, place.lower, taps, share.sample, c).value;
    if (upper > place.lower)
      value += place.fraction * (sample_level<false>(p, pyramid, upper, upper_taps, share.sample, c).value - value);
    *out = store<T>(place.finite ? value : std::numeric_limits<A>::quiet_NaN());
  }
}

// grad: [N, C, rows, columns]. Writes grad_grid [N, rows, columns, 2], without what comes through the level, and by_square
// [N, rows, columns], the derivative by the squared distance.
template <typename T>
__global__ void __launch_bounds__(block_threads)
    grid_gradient(const __grid_constant__ Problem<T> p, const __grid_constant__ Pyramid<Compute<T>> pyramid,
                  const T* grad, Compute<T>* grad_grid, Compute<T>* by_square, uint32_t per_sample, int64_t first_sample,
                  uint32_t threads) {
  using A = Compute<T>;
  const uint32_t thread = blockIdx.x * block_threads + threadIdx.x;
  if (thread >= threads) return;
  const int64_t n = first_sample + thread / per_sample;
  const uint32_t point = thread % per_sample;
  const Place<A> place = place_of(p, n, point);
  const int32_t upper = place.fraction > 0 ? place.lower + 1 : place.lower;
  const Taps<A> taps = taps_in(p, pyramid.levels[place.lower], place);
  const Taps<A> upper_taps = taps_in(p, pyramid.levels[upper], place);
  A by_x = 0, by_y = 0, by_level = 0;
  for (int32_t c = 0; c < p.channels && place.finite; ++c) {
    const A g = load(grad[(n * p.channels + c) * per_sample + point]);
    Sampled<A> result = sample_level<true>(p, pyramid, place.lower, taps, n, c);
    if (upper > place.lower) {
      const Sampled<A> coarse = sample_level<true>(p, pyramid, upper, upper_taps, n, c);
      by_level += g * (coarse.value - result.value);
      result.by_x += place.fraction * (coarse.by_x - result.by_x);
      result.by_y += place.fraction * (coarse.by_y - result.by_y);
    }
    by_x += g * result.by_x;
    by_y += g * result.by_y;
  }
  // level = log2(squared) / 2 below the largest level; there is no slope at a whole level, nor where it is capped.
  const A factor = static_cast<A>(0.5 / 0.69314718055994530942);
  const int64_t i = n * per_sample + point;
  by_square[i] = place.level <= p.largest ? by_level * factor / place.distance.squared : A(0);
  grad_grid[2 * i] = by_x;
  grad_grid[2 * i + 1] = by_y;
}

// Adds to grad_grid what comes through the level: from the point's own distance and from those that its neighbours measure to it.
template <typename T>
__global__ void __launch_bounds__(block_threads)
    level_gradient(const __grid_constant__ Problem<T> p, const Compute<T>* by_square, Compute<T>* grad_grid,
                   uint32_t per_sample, int64_t first_sample, uint32_t threads) {
  using A = Compute<T>;
  const uint32_t thread = blockIdx.x * block_threads + threadIdx.x;
  if (thread >= threads) return;
  const int64_t sample = (first_sample + thread / per_sample) * per_sample;
  const int32_t point = thread % per_sample, row = point / p.columns, column = point % p.columns;
  const A* grid = p.grid + 2 * sample;
  const A x = grid[2 * int64_t(point)], y = grid[2 * int64_t(point) + 1];
  A by_x = 0, by_y = 0;
  const auto add = [&](int64_t other, A slope) {
    by_x += 2 * slope * p.pixels_x * p.pixels_x * (x - grid[2 * other]);
    by_y += 2 * slope * p.pixels_y * p.pixels_y * (y - grid[2 * other + 1]);
  };
  const int32_t step[4] = {-1, 1, -p.columns, p.columns};
  const bool exists[4] = {column > 0, column + 1 < p.columns, row > 0, row + 1 < p.rows};
  const A own = by_square[sample + point];
  const int32_t farthest = own != 0 ? measure(p, grid, point).neighbour : -1;
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    if (!exists[k]) continue;
    const int32_t other = point + step[k];
    if (k == farthest) add(other, own);
    const A its = by_square[sample + other];
    // The neighbour on the left has this point on its right, and so on.
    if (its != 0 && measure(p, grid, other).neighbour == (k ^ 1)) add(other, its);
  }
  grad_grid[2 * (sample + point)] += by_x;
  grad_grid[2 * (sample + point) + 1] += by_y;
}

// sums: [words, N * C, H * W + texels]: level 0, then the small ones.
template <typename T>
__global__ void __launch_bounds__(block_threads)
    scatter(const __grid_constant__ Problem<T> p, const __grid_constant__ Pyramid<Compute<T>> pyramid, const T* grad,
            const Bits<Compute<T>>* largest, int32_t count_bits, Word* sums, int64_t word_stride, uint32_t per_sample,
            int64_t first_sample, uint32_t threads) {
  using A = Compute<T>;
  const uint32_t thread = blockIdx.x * block_threads + threadIdx.x;
  if (thread >= threads) return;
  const Share share = share_of(p, thread, per_sample, first_sample);
  const Place<A> place = place_of(p, share.sample, share.point);
  const SumScale<A> scale = sum_scale<A>(largest[share.sample], count_bits);
  if (!place.finite || !scale.finite) return;
  const int64_t points = int64_t(p.rows) * p.columns;
  const int64_t image = int64_t(pyramid.levels[0].height) * pyramid.levels[0].width, plane = image + pyramid.texels;
  for (int step = 0; step < 2; ++step) {
    const A part = step == 0 ? 1 - place.fraction : place.fraction;
    if (part == 0) continue;
    const int32_t index = place.lower + step;
    const Level<A>& level = pyramid.levels[index];
    const Taps<A> taps = taps_in(p, level, place);
    const int64_t first = index == 0 ? 0 : image + level.offset;
    for (int32_t c = share.first; c < share.last; ++c) {
      const A g = part * load(grad[(share.sample * p.channels + c) * points + share.point]);
      Word* target = sums + (share.sample * p.channels + c) * plane + first;
      for (int r = 0; r < 3; ++r)
        for (int k = 0; k < 3; ++k) {
          const A weight = taps.y.weight[r] * taps.x.weight[k];
          if (weight != 0)
            add_exactly(target + int64_t(taps.y.index[r]) * level.width + taps.x.index[k], word_stride, weight * g, scale);
        }
    }
  }
}

// The adjoint of `halve`: hands the sums of a level down to the next finer one.
template <typename T>
__global__ void __launch_bounds__(block_threads)
    spread(Word* sums, int64_t word_stride, int64_t plane_stride, int64_t from_offset, int64_t to_offset,
           const Bits<Compute<T>>* largest, int32_t count_bits, int32_t channels, Level<Compute<T>> finer,
           Level<Compute<T>> level, uint32_t per_plane, int64_t first_plane, uint32_t threads) {
  using A = Compute<T>;
  const uint32_t thread = blockIdx.x * block_threads + threadIdx.x;
  if (thread >= threads) return;
  const int64_t plane = first_plane + thread / per_plane;
  const uint32_t in_plane = thread % per_plane;
  const SumScale<A> scale = sum_scale<A>(largest[plane / channels], count_bits);
  const A total = exact_sum(sums + plane * plane_stride + from_offset + in_plane, word_stride, scale);
  if (total == 0 || !scale.finite) return;
  const int32_t row = in_plane / level.width, column = in_plane % level.width;
  Word* target = sums + plane * plane_stride + to_offset;
  for (int k = 0; k < 4; ++k) {
    const int32_t y = reflect(reflect(2 * row - 1 + k, finer.full_height) - finer.top, finer.height);
    for (int l = 0; l < 4; ++l) {
      const int32_t x = reflect(reflect(2 * column - 1 + l, finer.full_width) - finer.left, finer.width);
      add_exactly(target + int64_t(y) * finer.width + x, word_stride, tent<A>(k) * tent<A>(l) * total, scale);
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

void check(const Tensor& x, const Tensor& grid, int64_t padding, double max_levels) {
  STD_TORCH_CHECK(padding >= zeros && padding <= reflection, "mipmap_warp: padding mode must be 0, 1 or 2");
  STD_TORCH_CHECK(x.dim() == 4 && grid.dim() == 4 && grid.size(3) == 2 && x.size(0) == grid.size(0) && x.size(2) > 0 &&
                      x.size(3) > 0 && max_levels >= 1 && max_levels <= 16,
                  "mipmap_warp: x must be [N, C, H, W], grid [N, h, w, 2], max_levels 1 to 16");
  STD_TORCH_CHECK(x.size(2) < (1 << 24) && x.size(3) < (1 << 24) && x.size(2) <= (1 << 29) / x.size(3) &&
                      x.size(1) <= INT32_MAX && grid.size(1) * grid.size(2) <= INT32_MAX,
                  "mipmap_warp: a plane of x must have at most 2^29 texels, a grid fewer than 2^31 points");
}

// What forward and backward have in common.
template <typename T>
struct Plan {
  using A = Compute<T>;
  Pyramid<A> pyramid;
  Problem<T> problem;
  int64_t planes, per_sample;
  Tensor small;  // keeps the memory of the small levels

  Plan(const Tensor& x, const Tensor& grid, int64_t padding, double max_levels, bool levels, cudaStream_t stream)
      : pyramid(plan_pyramid<A>(x.size(2), x.size(3), max_levels)),
        planes(x.size(0) * x.size(1)),
        small(empty_on(x, {levels ? planes * pyramid.texels : 0}, compute_scalar_type<T>)) {
    const int32_t channels = static_cast<int32_t>(x.size(1)), chunk = channels <= 4 ? std::max(channels, 1) : 4;
    problem = {{x.const_data_ptr<T>(), x.stride(0), x.stride(1), x.stride(2), x.stride(3)},
               grid.const_data_ptr<A>(),
               small.const_data_ptr<A>(),
               channels,
               chunk,
               static_cast<int32_t>(ceil_divide(channels, chunk)),
               static_cast<int32_t>(grid.size(1)),
               static_cast<int32_t>(grid.size(2)),
               padding,
               static_cast<A>(x.size(3) - 1) / 2,
               static_cast<A>(x.size(2) - 1) / 2,
               static_cast<A>(max_levels - 1),
               axis_of<A>(x.size(3), false),
               axis_of<A>(x.size(2), false)};
    per_sample = grid.size(1) * grid.size(2) * problem.chunks;
    if (levels) build(stream);
  }

  int64_t texels(int level) const { return int64_t(pyramid.levels[level].height) * pyramid.levels[level].width; }

  void build(cudaStream_t stream) const {
    A* data = small.mutable_data_ptr<A>();
    for (int l = 1; l < pyramid.count; ++l) {
      const Level<A>&from = pyramid.levels[l - 1], &to = pyramid.levels[l];
      if (l == 1) {
        launch_items("mipmap_warp", &halve<T>, planes, texels(l), stream, problem.x, from, to, problem.channels,
                     data + to.offset, pyramid.texels, texels(l));
      } else {
        const int64_t stride = pyramid.texels;
        const Image<A> finer{data + from.offset, stride * problem.channels, stride, from.width, 1};
        launch_items("mipmap_warp", &halve<A>, planes, texels(l), stream, finer, from, to, problem.channels,
                     data + to.offset, stride, texels(l));
      }
    }
  }
};

Tensor forward(const Tensor& x_, const Tensor& grid_, int64_t padding, double max_levels) {
  check(x_, grid_, padding, max_levels);
  check_devices("mipmap_warp", {x_, grid_});
  const OnDevice device(x_);
  const ScalarType wide = widest(x_, grid_);
  const Tensor x = wide == ScalarType::Double ? torch::stable::to(x_, wide) : x_, grid = converted(grid_, wide);
  const Tensor output = empty_on(x, {x.size(0), x.size(1), grid.size(1), grid.size(2)}, x.scalar_type());
  if (output.numel() > 0)
    dispatch_floating(x.scalar_type(), "mipmap_warp", [&]<typename T>() {
      const Plan<T> plan(x, grid, padding, max_levels, true, device.stream());
      launch_items("mipmap_warp", &warp<T>, x.size(0), plan.per_sample, device.stream(), plan.problem, plan.pyramid,
                   output.mutable_data_ptr<T>(), plan.per_sample);
    });
  return torch::stable::to(output, x_.scalar_type());
}

template <typename T>
void image_gradient(const Plan<T>& plan, const Tensor& grad, const Tensor& grad_x, cudaStream_t stream) {
  using A = Compute<T>;
  const char* name = "mipmap_warp_backward";
  const Problem<T>& p = plan.problem;
  const int64_t batch = grad_x.size(0), points = int64_t(p.rows) * p.columns;
  const int64_t plane_stride = plan.texels(0) + plan.pyramid.texels, word_stride = plan.planes * plane_stride;
  const Tensor largest_ = empty_on(grad, {batch}, std::is_same_v<A, double> ? ScalarType::Long : ScalarType::Int);
  const Tensor sums_ = empty_on(grad, {sum_words<A> * word_stride}, ScalarType::Long);
  clear(largest_, stream);
  clear(sums_, stream);
  auto* largest = static_cast<Bits<A>*>(largest_.mutable_data_ptr());
  auto* sums = static_cast<Word*>(sums_.mutable_data_ptr());
  const T* g = grad.const_data_ptr<T>();
  const int32_t count_bits = bits_of_count(points);
  find_largest<T>(name, g, largest, batch, p.channels * points, stream);
  launch_items(name, &scatter<T>, batch, plan.per_sample, stream, p, plan.pyramid, g, largest, count_bits, sums,
               word_stride, plan.per_sample);
  const auto offset = [&](int l) { return l ? plan.texels(0) + plan.pyramid.levels[l].offset : 0; };
  for (int l = plan.pyramid.count - 1; l > 0; --l)
    launch_items(name, &spread<T>, plan.planes, plan.texels(l), stream, sums, word_stride, plane_stride, offset(l),
                 offset(l - 1), largest, count_bits, p.channels, plan.pyramid.levels[l - 1], plan.pyramid.levels[l],
                 plan.texels(l));
  launch_items(name, &round_sums<T>, plan.planes, plan.texels(0), stream, sums, word_stride, plane_stride, largest,
               count_bits, p.channels, grad_x.mutable_data_ptr<T>(), plan.texels(0));
}

std::tuple<Tensor, Tensor> backward(const Tensor& grad_, const Tensor& x_, const Tensor& grid_, int64_t padding,
                                    double max_levels, bool need_x, bool need_grid) {
  check(x_, grid_, padding, max_levels);
  STD_TORCH_CHECK(grad_.dim() == 4 && grad_.size(0) == x_.size(0) && grad_.size(1) == x_.size(1) &&
                      grad_.size(2) == grid_.size(1) && grad_.size(3) == grid_.size(2),
                  "mipmap_warp_backward: grad does not fit x and grid");
  check_devices("mipmap_warp_backward", {grad_, x_, grid_});
  const OnDevice device(x_);
  const ScalarType wide = widest(x_, grid_);
  const Tensor x = wide == ScalarType::Double ? torch::stable::to(x_, wide) : x_, grid = converted(grid_, wide);
  const Tensor grad = converted(grad_, x.scalar_type());
  const Tensor grad_x = empty_on(x, need_x ? sizes_of(x) : std::vector<int64_t>{0}, x.scalar_type());
  const Tensor grad_grid = empty_on(x, need_grid ? sizes_of(grid) : std::vector<int64_t>{0}, wide);
  if (grad.numel() == 0) {
    clear(grad_x, device.stream());
    clear(grad_grid, device.stream());
  } else {
    dispatch_floating(x.scalar_type(), "mipmap_warp_backward", [&]<typename T>() {
      using A = Compute<T>;
      const Plan<T> plan(x, grid, padding, max_levels, need_grid, device.stream());
      if (need_x) image_gradient<T>(plan, grad, grad_x, device.stream());
      if (!need_grid) return;
      const int64_t points = grid.size(1) * grid.size(2);
      const Tensor by_square = empty_on(x, {x.size(0) * points}, wide);
      A* data = grad_grid.mutable_data_ptr<A>();
      launch_items("mipmap_warp_backward", &grid_gradient<T>, x.size(0), points, device.stream(), plan.problem,
                   plan.pyramid, grad.const_data_ptr<T>(), data, by_square.mutable_data_ptr<A>(), points);
      launch_items("mipmap_warp_backward", &level_gradient<T>, x.size(0), points, device.stream(), plan.problem,
                   by_square.const_data_ptr<A>(), data, points);
    });
  }
  return {torch::stable::to(grad_x, x_.scalar_type()), torch::stable::to(grad_grid, grid_.scalar_type())};
}

}  // namespace ggf::cuda::mipmap_warp

GGF_CUDA_KERNELS(m) {
  m.impl("mipmap_warp", TORCH_BOX(&ggf::cuda::mipmap_warp::forward));
  m.impl("mipmap_warp_backward", TORCH_BOX(&ggf::cuda::mipmap_warp::backward));
}
