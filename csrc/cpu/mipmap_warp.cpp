// SPDX-License-Identifier: Apache-2.0
// Anti-aliased grid sampling from a mip-map pyramid. Maths: gangealing_fast/ops/mipmap_warp.py.
//
// The pyramid holds groups of four channels side by side, so that one vector load reads a texel. A level is never brought
// to full size: along one axis a sample reads two neighbouring full-size texels, each a blend of two neighbouring small
// ones, so three small ones in all, whose weights are worked out for a block of grid points at a time. Work is divided by
// grid rows and, where gradients are scattered, by samples: no result depends on the number of threads.
#include "../sampling.h"

#include <algorithm>
#include <array>
#include <limits>
#include <tuple>

namespace ggf::mipmap_warp {

inline constexpr int64_t block = 64;  // grid points handled together
inline constexpr int64_t most_levels = 17;

typedef float Float4 __attribute__((vector_size(16)));
typedef double Double4 __attribute__((vector_size(32)));
template <typename A>
using Vec4 = std::conditional_t<std::is_same_v<A, double>, Double4, Float4>;

// log2 of numbers >= 1, to about 1 unit in the last place.
GGF_INLINE float binary_log(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value) - 0x3f3504f3u;  // relative to sqrt(1/2): mantissa in [0.707, 1.414)
  const float exponent = static_cast<float>(static_cast<int32_t>(bits) >> 23);
  const float x = std::bit_cast<float>((bits & 0x7fffffu) + 0x3f3504f3u) - 1;
  float p = 7.0376836292e-2f;  // log(1 + x), Cephes' coefficients
  p = p * x - 1.1514610310e-1f;
  p = p * x + 1.1676998740e-1f;
  p = p * x - 1.2420140846e-1f;
  p = p * x + 1.4249322787e-1f;
  p = p * x - 1.6668057665e-1f;
  p = p * x + 2.0000714765e-1f;
  p = p * x - 2.4999993993e-1f;
  p = p * x + 3.3333331174e-1f;
  const float log = p * x * x * x - 0.5f * x * x + x;
  return log * 1.44269504f + exponent;
}
GGF_INLINE double binary_log(double value) { return std::log2(value); }

// One level of one sample's group: [height, width] texels of four channels, `texels` into the sample's pyramid.
struct Level {
  int64_t height, width, texels;
  std::vector<int32_t> rows, columns;  // the 4 rows of the finer level that each row is made of; likewise columns
};

template <typename A>
struct Pyramid {
  std::vector<Level> levels;
  int64_t groups, sample_texels;  // texels of all levels of one group of one sample
  // By level, for the weights: where the finer pixel X lies in the level: (X + shift + 1/2) * scale - 1/2.
  std::array<A, most_levels> shift_x{}, shift_y{}, scale_x{}, scale_y{}, last_x{}, last_y{};
  std::array<int32_t, most_levels> first{}, stride{};
  int64_t offset(int64_t sample, int64_t group) const { return (sample * groups + group) * sample_texels * 4; }
};

int64_t reflect(int64_t index, int64_t size) {
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
  pyramid.sample_texels = texels;
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

// Copies four channels of the image into level 0, with zeros where there are fewer.
template <typename T>
GGF_MULTIVERSION void interleave(const T* x, const int64_t (&strides)[4], int64_t channels, int64_t height, int64_t width,
                                 Compute<T>* level) {
  const int64_t across = strides[3];
  for (int64_t y = 0; y < height; ++y) {
    Compute<T>* GGF_RESTRICT out = level + y * width * 4;
    const T* row[4];
    for (int64_t c = 0; c < 4; ++c) row[c] = x + std::min(c, channels - 1) * strides[1] + y * strides[2];
    for (int64_t i = 0; i < width; ++i) {
      out[4 * i] = load(row[0][i * across]);
      out[4 * i + 1] = channels > 1 ? load(row[1][i * across]) : 0;
      out[4 * i + 2] = channels > 2 ? load(row[2][i * across]) : 0;
      out[4 * i + 3] = channels > 3 ? load(row[3][i * across]) : 0;
    }
  }
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

template <typename A>
struct Problem {
  const A* grid;  // [N, rows, columns, 2]
  int64_t rows, columns, channels;
  A scale_x, scale_y;  // half of width - 1 and of height - 1: from grid units to the pixels of step 1
  A largest;           // the largest level
  Axis<A> horizontal, vertical;
};

// The largest squared distance to the four neighbours, 1 or more (NaN or infinity where one is not finite), and which
// neighbour it is: 0 left, 1 right, 2 above, 3 below.
template <typename A>
GGF_MULTIVERSION void measure_row(const Problem<A>& problem, int64_t row, A* GGF_RESTRICT squared,
                                  int32_t* GGF_RESTRICT nearest) {
  const int64_t columns = problem.columns, y = row % problem.rows;
  const A* here = problem.grid + 2 * row * columns;
  const A* above = y > 0 ? here - 2 * columns : here;
  const A* below = y + 1 < problem.rows ? here + 2 * columns : here;
  const A scale_x = problem.scale_x, scale_y = problem.scale_y;
  const auto measure = [&](int64_t i, int64_t left, int64_t right) __attribute__((always_inline)) {
    const A x = here[2 * i], y = here[2 * i + 1];
    const auto distance = [&](const A* other) __attribute__((always_inline)) {
      const A dx = (other[0] - x) * scale_x, dy = (other[1] - y) * scale_y;
      return dx * dx + dy * dy;
    };
    const A d0 = distance(here + 2 * left), d1 = distance(here + 2 * right);
    const A d2 = distance(above + 2 * i), d3 = distance(below + 2 * i);
    A largest = d0;
    int32_t which = 0;
    which = d1 > largest ? 1 : which;
    largest = d1 > largest ? d1 : largest;
    which = d2 > largest ? 2 : which;
    largest = d2 > largest ? d2 : largest;
    which = d3 > largest ? 3 : which;
    largest = d3 > largest ? d3 : largest;
    largest = largest < 1 ? A(1) : largest;
    // d - d is 0 for finite numbers and NaN for all others.
    squared[i] = largest + ((d0 - d0) + (d1 - d1) + (d2 - d2) + (d3 - d3));
    nearest[i] = which;
  };
  measure(0, 0, std::min<int64_t>(1, columns - 1));
  for (int64_t i = 1; i < columns - 1; ++i) measure(i, i - 1, i + 1);
  if (columns > 1) measure(columns - 1, columns - 2, columns - 1);
}

// The weights of three texels of a level along one axis, and their derivatives by the normalised coordinate.
template <typename A>
struct AxisTaps {
  int32_t offset[3][block];
  A weight[3][block], slope[3][block];
};

template <typename A>
struct Samples {
  int32_t level[block];
  A squared[block], fraction[block], finite[block];  // fraction: the weight of the next level
  A low_x[block], part_x[block], slope_x[block], low_y[block], part_y[block], slope_y[block];
};

template <typename A>
GGF_INLINE A clamp(A value, A last) {
  const A lifted = value > 0 ? value : A(0);
  return lifted < last ? lifted : last;
}

template <Padding padding, typename A>
GGF_INLINE void locate_block(const Problem<A>& problem, const A* GGF_RESTRICT grid, const A* GGF_RESTRICT squared,
                             int64_t count, Samples<A>& samples) {
  for (int64_t p = 0; p < count; ++p) {
    const Position<A> x = locate<padding>(grid[2 * p], problem.horizontal);
    const Position<A> y = locate<padding>(grid[2 * p + 1], problem.vertical);
    samples.low_x[p] = x.low;
    samples.part_x[p] = x.part;
    samples.slope_x[p] = x.slope;
    samples.low_y[p] = y.low;
    samples.part_y[p] = y.part;
    samples.slope_y[p] = y.slope;
    samples.finite[p] = x.finite * y.finite;
  }
  for (int64_t p = 0; p < count; ++p) {
    const A known = squared[p] - squared[p] == 0 ? A(1) : A(0);
    samples.finite[p] *= known;
    samples.squared[p] = samples.finite[p] > 0 ? squared[p] : A(1);
    const A level = binary_log(samples.squared[p]) / 2;
    const A limited = level < problem.largest ? level : problem.largest;
    const A whole = std::floor(limited);
    samples.level[p] = static_cast<int32_t>(whole);
    samples.fraction[p] = limited - whole;
  }
}

// Taps along one axis of `size` pixels, for every sample in its level plus `up`.
template <typename A>
GGF_INLINE void find_taps(const A* GGF_RESTRICT low, const A* GGF_RESTRICT part, const A* GGF_RESTRICT slope,
                          const Samples<A>& samples, int64_t count, int32_t up, A size, const A* shifts, const A* scales,
                          const A* lasts, const int32_t* firsts, const int32_t* strides, int32_t texel,
                          AxisTaps<A>& taps) {
  A shift[block], scale[block], last_texel[block];
  int32_t first[block], stride[block];
  for (int64_t p = 0; p < count; ++p) {
    const int32_t level = samples.level[p] + (samples.fraction[p] > 0 ? up : 0);
    shift[p] = shifts[level];
    scale[p] = scales[level];
    last_texel[p] = lasts[level];
    first[p] = texel ? 0 : firsts[level];
    stride[p] = texel ? texel : strides[level];
  }
  const A last = size - 1;
  for (int64_t p = 0; p < count; ++p) {
    const A left = clamp(low[p], last), right = clamp(low[p] + 1, last);
    const A in_left = left == low[p] ? A(1) : A(0), in_right = right == low[p] + 1 ? A(1) : A(0);
    const A weight_left = in_left * (1 - part[p]), weight_right = in_right * part[p];
    const A slope_left = -in_left * slope[p], slope_right = in_right * slope[p];
    // Where both full-size texels lie in the level, as torch.nn.functional.interpolate has it.
    A near = (left + shift[p] + A(0.5)) * scale[p] - A(0.5);
    A far = (right + shift[p] + A(0.5)) * scale[p] - A(0.5);
    near = near > 0 ? near : A(0);
    far = far > 0 ? far : A(0);
    const A base = std::floor(near), other = std::floor(far);
    const A blend = near - base, other_blend = far - other;
    const A same = other > base ? A(0) : A(1), next = 1 - same;
    taps.weight[0][p] = weight_left * (1 - blend) + weight_right * same * (1 - other_blend);
    taps.weight[1][p] = weight_left * blend + weight_right * (same * other_blend + next * (1 - other_blend));
    taps.weight[2][p] = weight_right * next * other_blend;
    taps.slope[0][p] = slope_left * (1 - blend) + slope_right * same * (1 - other_blend);
    taps.slope[1][p] = slope_left * blend + slope_right * (same * other_blend + next * (1 - other_blend));
    taps.slope[2][p] = slope_right * next * other_blend;
    const A end = last_texel[p], one = base + 1, two = base + 2;
    taps.offset[0][p] = first[p] + static_cast<int32_t>(base) * stride[p];
    taps.offset[1][p] = first[p] + static_cast<int32_t>(one < end ? one : end) * stride[p];
    taps.offset[2][p] = first[p] + static_cast<int32_t>(two < end ? two : end) * stride[p];
  }
}

template <typename A>
struct Taps {
  AxisTaps<A> x, y;
};

template <typename A>
GGF_INLINE void find_taps(const Problem<A>& problem, const Pyramid<A>& pyramid, const Samples<A>& samples, int64_t count,
                          int32_t up, Taps<A>& taps) {
  find_taps(samples.low_x, samples.part_x, samples.slope_x, samples, count, up, problem.horizontal.size,
            pyramid.shift_x.data(), pyramid.scale_x.data(), pyramid.last_x.data(), pyramid.first.data(),
            pyramid.stride.data(), 4, taps.x);
  find_taps(samples.low_y, samples.part_y, samples.slope_y, samples, count, up, problem.vertical.size,
            pyramid.shift_y.data(), pyramid.scale_y.data(), pyramid.last_y.data(), pyramid.first.data(),
            pyramid.stride.data(), 0, taps.y);
}

template <typename A>
GGF_INLINE Vec4<A> read(const A* texel) {
  Vec4<A> value;
  __builtin_memcpy(&value, texel, sizeof(value));
  return value;
}

template <typename A>
struct Sampled {
  Vec4<A> value, by_x, by_y;
};

// Level 0 needs 2 texels an axis, the others 3.
template <int taps_per_axis, bool derivatives, typename A>
GGF_INLINE Sampled<A> sample(const A* texels, const Taps<A>& taps, int64_t p) {
  Sampled<A> result{};
  for (int r = 0; r < taps_per_axis; ++r) {
    const A* row = texels + taps.y.offset[r][p];
    Vec4<A> value{}, slope{};
    for (int k = 0; k < taps_per_axis; ++k) {
      const Vec4<A> texel = read(row + taps.x.offset[k][p]);
      value += taps.x.weight[k][p] * texel;
      if constexpr (derivatives) slope += taps.x.slope[k][p] * texel;
    }
    result.value += taps.y.weight[r][p] * value;
    if constexpr (derivatives) {
      result.by_x += taps.y.weight[r][p] * slope;
      result.by_y += taps.y.slope[r][p] * value;
    }
  }
  return result;
}

template <bool derivatives, typename A>
GGF_INLINE Sampled<A> sample_level(const A* texels, const Taps<A>& taps, int64_t p, int32_t level) {
  return level == 0 ? sample<2, derivatives>(texels, taps, p) : sample<3, derivatives>(texels, taps, p);
}

// One row of the grid, counted over all samples. output: [N, C, rows, columns]
template <Padding padding, typename A>
GGF_MULTIVERSION void forward_row(const Problem<A>& problem, const Pyramid<A>& pyramid, const A* texels, const A* squared,
                                  A* output, int64_t row) {
  const int64_t n = row / problem.rows, y = row % problem.rows, plane = problem.rows * problem.columns;
  Samples<A> samples;
  Taps<A> lower, upper;
  for (int64_t begin = 0; begin < problem.columns; begin += block) {
    const int64_t count = std::min(block, problem.columns - begin), point = row * problem.columns + begin;
    locate_block<padding>(problem, problem.grid + 2 * point, squared + point, count, samples);
    find_taps(problem, pyramid, samples, count, 0, lower);
    find_taps(problem, pyramid, samples, count, 1, upper);
    for (int64_t group = 0; group < pyramid.groups; ++group) {
      const A* source = texels + pyramid.offset(n, group);
      alignas(64) A values[block][4];
      for (int64_t p = 0; p < count; ++p) {
        Vec4<A> value = sample_level<false>(source, lower, p, samples.level[p]).value;
        if (samples.fraction[p] > 0)
          value += samples.fraction[p] * (sample<3, false>(source, upper, p).value - value);
        __builtin_memcpy(values[p], &value, sizeof(value));
      }
      for (int64_t c = 0; c < std::min<int64_t>(4, problem.channels - 4 * group); ++c) {
        A* GGF_RESTRICT out = output + (n * problem.channels + 4 * group + c) * plane + y * problem.columns + begin;
        for (int64_t p = 0; p < count; ++p)
          out[p] = samples.finite[p] > 0 ? values[p][c] : std::numeric_limits<A>::quiet_NaN();
      }
    }
  }
}

template <typename A>
GGF_INLINE void add_scaled(A* target, A factor, Vec4<A> value) {
  const Vec4<A> sum = read(target) + factor * value;
  __builtin_memcpy(target, &sum, sizeof(sum));
}

template <int taps_per_axis, typename A>
GGF_INLINE void scatter(A* texels, const Taps<A>& taps, int64_t p, Vec4<A> value) {
  for (int r = 0; r < taps_per_axis; ++r) {
    A* row = texels + taps.y.offset[r][p];
    const Vec4<A> part = taps.y.weight[r][p] * value;
    for (int k = 0; k < taps_per_axis; ++k) add_scaled(row + taps.x.offset[k][p], taps.x.weight[k][p], part);
  }
}

template <typename A>
GGF_INLINE Vec4<A> gradient_at(const A* grad, int64_t plane, int64_t channels, int64_t p) {
  Vec4<A> value{};
  for (int64_t c = 0; c < channels; ++c) value[c] = grad[c * plane + p];
  return value;
}

// grad: [N, C, rows, columns]. Writes grad_grid [N, rows, columns, 2], without what comes through the level, and by_square,
// the derivative by the squared distance; scatters to grad_texels. Either of grad_grid and grad_texels may be null.
template <Padding padding, typename A>
GGF_MULTIVERSION void backward_row(const Problem<A>& problem, const Pyramid<A>& pyramid, const A* texels,
                                   const A* squared, const A* grad, A* grad_grid, A* by_square, A* grad_texels,
                                   int64_t row) {
  const int64_t n = row / problem.rows, y = row % problem.rows, plane = problem.rows * problem.columns;
  Samples<A> samples;
  Taps<A> lower, upper;
  A by_x[block], by_y[block], by_level[block];
  for (int64_t begin = 0; begin < problem.columns; begin += block) {
    const int64_t count = std::min(block, problem.columns - begin), point = row * problem.columns + begin;
    locate_block<padding>(problem, problem.grid + 2 * point, squared + point, count, samples);
    find_taps(problem, pyramid, samples, count, 0, lower);
    find_taps(problem, pyramid, samples, count, 1, upper);
    for (int64_t p = 0; p < count; ++p) by_x[p] = by_y[p] = by_level[p] = 0;
    for (int64_t group = 0; group < pyramid.groups; ++group) {
      const A* source = texels + pyramid.offset(n, group);
      const A* gradient = grad + (n * problem.channels + 4 * group) * plane + y * problem.columns + begin;
      const int64_t channels = std::min<int64_t>(4, problem.channels - 4 * group);
      for (int64_t p = 0; p < count; ++p) {
        if (samples.finite[p] == 0) continue;
        const Vec4<A> g = gradient_at(gradient, plane, channels, p);
        const A fraction = samples.fraction[p];
        const int32_t level = samples.level[p];
        if (grad_grid) {
          Sampled<A> result = sample_level<true>(source, lower, p, level);
          if (fraction > 0) {
            const Sampled<A> coarse = sample<3, true>(source, upper, p);
            const Vec4<A> through = g * (coarse.value - result.value);
            by_level[p] += through[0] + through[1] + through[2] + through[3];
            result.by_x += fraction * (coarse.by_x - result.by_x);
            result.by_y += fraction * (coarse.by_y - result.by_y);
          }
          const Vec4<A> x = g * result.by_x, y = g * result.by_y;
          by_x[p] += x[0] + x[1] + x[2] + x[3];
          by_y[p] += y[0] + y[1] + y[2] + y[3];
        }
        if (grad_texels) {
          A* target = grad_texels + pyramid.offset(n, group);
          if (level == 0)
            scatter<2>(target, lower, p, (1 - fraction) * g);
          else
            scatter<3>(target, lower, p, (1 - fraction) * g);
          if (fraction > 0) scatter<3>(target, upper, p, fraction * g);
        }
      }
    }
    if (!grad_grid) continue;
    // level = log2(squared) / 2 below the largest level; there is no slope at a whole level, nor where it is capped.
    const A factor = static_cast<A>(0.5 / 0.69314718055994530942);
    for (int64_t p = 0; p < count; ++p) {
      const A level = binary_log(samples.squared[p]) / 2;
      const A slope = level <= problem.largest ? by_level[p] * factor / samples.squared[p] : A(0);
      by_square[point + p] = samples.finite[p] > 0 ? slope : A(0);
      grad_grid[2 * (point + p)] = by_x[p];
      grad_grid[2 * (point + p) + 1] = by_y[p];
    }
  }
}

// Hands the derivative by the squared distance on to the two grid points it is measured between, for one sample.
template <typename A>
void distance_gradient(const Problem<A>& problem, const int32_t* nearest, const A* by_square, A* grad_grid, int64_t n) {
  const int64_t points = problem.rows * problem.columns, first = n * points;
  const int64_t step[4] = {-1, 1, -problem.columns, problem.columns};
  for (int64_t p = first; p < first + points; ++p) {
    if (by_square[p] == 0) continue;
    const int64_t other = p + step[nearest[p]];
    for (int64_t axis = 0; axis < 2; ++axis) {
      const A scale = axis ? problem.scale_y : problem.scale_x;
      const A slope = 2 * by_square[p] * scale * scale * (problem.grid[2 * other + axis] - problem.grid[2 * p + axis]);
      grad_grid[2 * other + axis] += slope;
      grad_grid[2 * p + axis] -= slope;
    }
  }
}

template <typename A>
struct Prepared {
  Tensor grid;
  Problem<A> problem;
  std::vector<A> squared, texels;
  std::vector<int32_t> nearest;
  Pyramid<A> pyramid;
};

// Grows without writing zeros first.
template <typename A>
A* scratch(std::vector<A>& buffer, int64_t size) {
  buffer.resize(size);
  return buffer.data();
}

template <typename A>
Prepared<A> prepare(const Tensor& x, const Tensor& grid, double max_levels) {
  Prepared<A> all{converted(grid, compute_scalar_type<A>), {}, {}, {}, {}, {}};
  const int64_t batch = x.size(0), channels = x.size(1), height = x.size(2), width = x.size(3);
  all.problem = {all.grid.template const_data_ptr<A>(), grid.size(1), grid.size(2), channels,
                 static_cast<A>(width - 1) / 2, static_cast<A>(height - 1) / 2, static_cast<A>(max_levels - 1),
                 axis_of<A>(width, false), axis_of<A>(height, false)};
  const Problem<A>& problem = all.problem;
  const int64_t rows = batch * problem.rows;
  A* squared = scratch(all.squared, rows * problem.columns);
  int32_t* nearest = scratch(all.nearest, rows * problem.columns);
  parallel_for(0, rows, grain(8 * problem.columns), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      measure_row<A>(problem, row, squared + row * problem.columns, nearest + row * problem.columns);
  });
  A largest = 1;
  for (const A value : all.squared) largest = value > largest && value - value == 0 ? value : largest;
  const double deepest = std::min(std::ceil(std::log2(static_cast<double>(largest)) / 2 + 1e-6),
                                  std::ceil(max_levels - 1));
  all.pyramid = plan_pyramid<A>(channels, height, width, static_cast<int64_t>(deepest) + 1);
  const Pyramid<A>& pyramid = all.pyramid;
  A* texels = scratch(all.texels, batch * pyramid.groups * pyramid.sample_texels * 4);
  const int64_t strides[4] = {x.stride(0), x.stride(1), x.stride(2), x.stride(3)};
  dispatch_floating(x.scalar_type(), "mipmap_warp", [&]<typename T>() {
    if constexpr (std::is_same_v<A, double> || !std::is_same_v<T, double>) {
      const T* data = x.template const_data_ptr<T>();
      parallel_for(0, batch * pyramid.groups, 1, [&](int64_t begin, int64_t end) {
        std::vector<A> line(4 * width);
        for (int64_t item = begin; item < end; ++item) {
          const int64_t sample = item / pyramid.groups, group = item % pyramid.groups;
          A* levels = texels + pyramid.offset(sample, group);
          if constexpr (std::is_same_v<Compute<T>, A>)
            interleave<T>(data + sample * strides[0] + 4 * group * strides[1], strides,
                          std::min<int64_t>(4, channels - 4 * group), height, width, levels);
          for (size_t l = 1; l < pyramid.levels.size(); ++l)
            halve<A>(levels + 4 * pyramid.levels[l - 1].texels, pyramid.levels[l - 1].width, pyramid.levels[l],
                     levels + 4 * pyramid.levels[l].texels, line.data());
        }
      });
    }
  });
  return all;
}

void check(const Tensor& x, const Tensor& grid, double max_levels) {
  STD_TORCH_CHECK(x.dim() == 4 && grid.dim() == 4 && grid.size(3) == 2 && x.size(0) == grid.size(0) && x.size(2) > 0 &&
                      x.size(3) > 0 && max_levels >= 1 && max_levels <= 16,
                  "mipmap_warp: x must be [N, C, H, W], grid [N, h, w, 2], max_levels 1 to 16");
  STD_TORCH_CHECK(x.size(2) < (1 << 24) && x.size(3) < (1 << 24), "mipmap_warp: x must have fewer than 2^24 rows");
}

template <typename A>
Tensor forward_as(const Tensor& x_, const Tensor& grid, int64_t padding, double max_levels) {
  const Tensor x = std::is_same_v<A, double> ? torch::stable::to(x_, ScalarType::Double) : x_;
  const Tensor output = empty({x.size(0), x.size(1), grid.size(1), grid.size(2)}, compute_scalar_type<A>);
  if (output.numel() == 0) return output;
  const Prepared<A> all = prepare<A>(x, grid, max_levels);
  A* data = output.mutable_data_ptr<A>();
  dispatch_padding(padding, [&]<Padding mode>() {
    parallel_for(0, x.size(0) * all.problem.rows, grain(32 * all.problem.columns), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row)
        forward_row<mode, A>(all.problem, all.pyramid, all.texels.data(), all.squared.data(), data, row);
    });
  });
  return output;
}

Tensor forward(const Tensor& x, const Tensor& grid, int64_t padding, double max_levels) {
  check(x, grid, max_levels);
  const Tensor output = widest(x, grid) == ScalarType::Double ? forward_as<double>(x, grid, padding, max_levels)
                                                              : forward_as<float>(x, grid, padding, max_levels);
  return torch::stable::to(output, x.scalar_type());
}

// Adds the gradients of the coarse levels to the finer ones, and takes level 0 apart into planes.
template <typename A>
void collect_image_gradient(const Pyramid<A>& pyramid, A* levels, A* line, int64_t channels, A* planes) {
  for (size_t l = pyramid.levels.size(); l-- > 1;)
    halve_adjoint<A>(levels + 4 * pyramid.levels[l - 1].texels, pyramid.levels[l - 1].width, pyramid.levels[l],
                     levels + 4 * pyramid.levels[l].texels, line);
  const int64_t texels = pyramid.levels[0].height * pyramid.levels[0].width;
  for (int64_t c = 0; c < channels; ++c)
    for (int64_t i = 0; i < texels; ++i) planes[c * texels + i] = levels[4 * i + c];
}

template <typename A>
std::tuple<Tensor, Tensor> backward_as(const Tensor& grad_, const Tensor& x_, const Tensor& grid_, int64_t padding,
                                       double max_levels, bool need_x, bool need_grid) {
  const Tensor x = std::is_same_v<A, double> ? torch::stable::to(x_, ScalarType::Double) : x_;
  const Tensor grad = converted(grad_, compute_scalar_type<A>);
  const Tensor grad_x = empty(need_x ? sizes_of(x) : std::vector<int64_t>{0}, compute_scalar_type<A>);
  const Tensor grad_grid = empty(need_grid ? sizes_of(grid_) : std::vector<int64_t>{0}, compute_scalar_type<A>);
  if (grad.numel() == 0 || (!need_x && !need_grid)) {
    for (const Tensor& gradient : {grad_x, grad_grid})
      std::fill_n(gradient.mutable_data_ptr<A>(), gradient.numel(), A(0));
    return {grad_x, grad_grid};
  }
  const Prepared<A> all = prepare<A>(x, grid_, max_levels);
  const Problem<A>& problem = all.problem;
  const Pyramid<A>& pyramid = all.pyramid;
  const int64_t batch = x.size(0), group_size = pyramid.sample_texels * 4;
  std::vector<A> grad_texels(need_x ? all.texels.size() : 0), by_square(need_grid ? all.squared.size() : 0);
  const A* grad_data = grad.const_data_ptr<A>();
  A* grid_data = need_grid ? grad_grid.mutable_data_ptr<A>() : nullptr;
  A* image_data = need_x ? grad_x.mutable_data_ptr<A>() : nullptr;
  dispatch_padding(padding, [&]<Padding mode>() {
    const auto rows = [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row)
        backward_row<mode, A>(problem, pyramid, all.texels.data(), all.squared.data(), grad_data, grid_data,
                              by_square.data(), need_x ? grad_texels.data() : nullptr, row);
    };
    if (!need_x) parallel_for(0, batch * problem.rows, grain(64 * problem.columns), rows);
    parallel_for(0, batch, 1, [&](int64_t begin, int64_t end) {
      std::vector<A> line(4 * x.size(3));
      for (int64_t n = begin; n < end; ++n) {
        if (need_x) rows(n * problem.rows, (n + 1) * problem.rows);
        if (need_grid) distance_gradient(problem, all.nearest.data(), by_square.data(), grid_data, n);
        if (!need_x) continue;
        for (int64_t group = 0; group < pyramid.groups; ++group)
          collect_image_gradient(pyramid, grad_texels.data() + (n * pyramid.groups + group) * group_size, line.data(),
                                 std::min<int64_t>(4, problem.channels - 4 * group),
                                 image_data + (n * problem.channels + 4 * group) * x.size(2) * x.size(3));
      }
    });
  });
  return {grad_x, grad_grid};
}

std::tuple<Tensor, Tensor> backward(const Tensor& grad, const Tensor& x, const Tensor& grid, int64_t padding,
                                    double max_levels, bool need_x, bool need_grid) {
  check(x, grid, max_levels);
  STD_TORCH_CHECK(grad.dim() == 4 && grad.size(0) == x.size(0) && grad.size(1) == x.size(1) &&
                      grad.size(2) == grid.size(1) && grad.size(3) == grid.size(2),
                  "mipmap_warp_backward: grad does not fit x and grid");
  const auto [grad_x, grad_grid] = widest(x, grid) == ScalarType::Double
                                       ? backward_as<double>(grad, x, grid, padding, max_levels, need_x, need_grid)
                                       : backward_as<float>(grad, x, grid, padding, max_levels, need_x, need_grid);
  return {torch::stable::to(grad_x, x.scalar_type()), torch::stable::to(grad_grid, grid.scalar_type())};
}

}  // namespace ggf::mipmap_warp

STABLE_TORCH_LIBRARY_IMPL(gangealing_fast, CPU, m) {
  m.impl("mipmap_warp", TORCH_BOX(&ggf::mipmap_warp::forward));
  m.impl("mipmap_warp_backward", TORCH_BOX(&ggf::mipmap_warp::backward));
}
