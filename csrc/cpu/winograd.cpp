// SPDX-License-Identifier: Apache-2.0
// The images' side of winograd.h. Tiles of 6x6 pixels, 4 apart, are transformed with their channels as vectors; the 36 points
// are 36 matrix products [tiles, Cin] x [Cin, Cout]; 4x4 pixels come back. A task takes some rows of tiles through all three
// steps, so that what lies between them stays near. Every sum has one order, whatever the number of threads.
#include "activation.h"
#include "levels.h"
#include "winograd.h"

#include <algorithm>

namespace ggf::winograd {
namespace {

inline constexpr int64_t panel = 32;  // output channels side by side in the transformed weights
inline constexpr int64_t rows_together = 12;
inline constexpr int64_t depth = 256;  // input channels per pass of the product: a panel then fits the first cache

// ---- matrix product

// c [rows, vectors * lanes] = or += a [rows, depth] b [depth, 32]: the sums stay in registers. On the way the lines of
// `next` are asked for, so that the panel that comes next is there when its turn comes.
template <int rows, int vectors, int width>
GGF_INLINE void product_block(const float* GGF_RESTRICT a, int64_t a_stride, const float* GGF_RESTRICT b, float* GGF_RESTRICT c,
                              int64_t c_stride, int64_t count, bool accumulate, const float* next) {
  typedef float Lanes __attribute__((vector_size(4 * width)));
  Lanes sums[rows][vectors];
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) {
      if (accumulate)
        std::memcpy(&sums[r][v], c + r * c_stride + v * width, sizeof(Lanes));
      else
        sums[r][v] = Lanes{};
    }
#pragma GCC unroll 4
  for (int64_t k = 0; k < count; ++k) {
    if (k % 4 == 0) __builtin_prefetch(next + 4 * k, 0, 2);
    Lanes factors[vectors];
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) std::memcpy(&factors[v], b + k * panel + v * width, sizeof(Lanes));
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
      const float value = a[r * a_stride + k];
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) sums[r][v] += factors[v] * value;
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) std::memcpy(c + r * c_stride + v * width, &sums[r][v], sizeof(Lanes));
}

struct Product {
  const float *a, *b;
  float* c;
  int64_t rows, a_stride, c_stride, channels_in, panels;  // rows: a multiple of rows_together
};

// `rows` and `vectors` of `width` fill the registers of the machine.
template <int rows, int vectors, int width>
GGF_INLINE void product_loops(const Product& p) {
  static_assert(rows_together % rows == 0 && panel % (vectors * width) == 0);
  for (int64_t first = 0; first < p.channels_in; first += depth) {
    const int64_t count = std::min(depth, p.channels_in - first);
    for (int64_t o = 0; o < p.panels; ++o)
      for (int64_t part = 0; part < panel; part += vectors * width) {
        const float* b = p.b + (o * p.channels_in + first) * panel;
        for (int64_t r = 0; r < p.rows; r += rows) {
          const float* next = b + p.channels_in * panel + std::min<int64_t>(r / rows, panel / 4) * count * 4;
          product_block<rows, vectors, width>(p.a + r * p.a_stride + first, p.a_stride, b + part,
                                              p.c + r * p.c_stride + o * panel + part, p.c_stride, count, first > 0, next);
        }
      }
  }
}

void multiply(const Product& product) {
  at_each_level<[]<Level level>(const Product& p) GGF_INLINE_LAMBDA {
    if constexpr (level == Level::avx512)
      product_loops<12, 2, 16>(p);
    else if constexpr (level == Level::avx2)
      product_loops<6, 2, 8>(p);
    else
      product_loops<3, 4, 4>(p);
  }>(product);
}

// ---- transforms

struct Plan {
  const Convolution& c;
  int64_t in, out, tile_rows, tile_columns;  // tile_rows: of one image
  int64_t tiles, in_stride, out_stride;      // of a task's buffers, padded
  float* row_dots;                           // [batch * tile_rows, out], or null
};

// Channels that fill no vector are read into a vector of zeros.
template <typename V>
GGF_INLINE V load_some(const float* source, int64_t count) {
  if (count >= 16) return load_vector<V>(source);
  float values[16] = {};
  for (int64_t lane = 0; lane < count; ++lane) values[lane] = source[lane];
  return load_vector<V>(values);
}

template <typename V>
GGF_INLINE void store_some(float* target, const V& value, int64_t count) {
  if (count >= 16) return store_vector(target, value);
  float values[16];
  store_vector(values, value);
  for (int64_t lane = 0; lane < count; ++lane) target[lane] = values[lane];
}

// One dimension of the transform of a tile of pixels.
template <typename V>
GGF_INLINE void to_points(const V (&d)[6], V (&out)[6]) {
  const V a = d[4] - d[2] * 4.0f, b = d[3] - d[1] * 4.0f;
  const V e = d[4] - d[2], f = (d[3] - d[1]) * 2.0f;
  out[0] = d[0] * 4.0f - d[2] * 5.0f + d[4];
  out[1] = a + b;
  out[2] = a - b;
  out[3] = e + f;
  out[4] = e - f;
  out[5] = d[1] * 4.0f - d[3] * 5.0f + d[5];
}

// And of the way back.
template <typename V>
GGF_INLINE void from_points(const V (&m)[6], V (&out)[4]) {
  const V p = m[1] + m[2], q = m[1] - m[2], r = m[3] + m[4], s = m[3] - m[4];
  out[0] = m[0] + p + r;
  out[1] = q + s * 2.0f;
  out[2] = p + r * 4.0f;
  out[3] = q + s * 8.0f + m[5];
}

// Rows of tiles [begin, end), counted over all images, to points [36, tiles, in_stride].
template <Level level>
GGF_INLINE void transform_in(const Plan& p, float* points, int64_t begin, int64_t end) {
  using V = Vector<float, level>;
  const int64_t H = p.c.height, W = p.c.width, C = p.in, plane = p.tiles * p.in_stride;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t sample = row / p.tile_rows, top = row % p.tile_rows * 4 - 1;
    const float* image = p.c.x + sample * H * W * C;
    for (int64_t column = 0; column < p.tile_columns; ++column) {
      const int64_t left = column * 4 - 1;
      float* target = points + ((row - begin) * p.tile_columns + column) * p.in_stride;
      const bool inside = top >= 0 && left >= 0 && top + 6 <= H && left + 6 <= W;
      for (int64_t c = 0; c < C; c += 16) {
        const int64_t count = C - c;
        const V scale = p.c.scale_in ? load_some<V>(p.c.scale_in + sample * C + c, count) : broadcast<V>(1.0f);
        V columns[6][6];
        for (int64_t j = 0; j < 6; ++j) {
          V d[6], out[6];
          for (int64_t i = 0; i < 6; ++i) {
            const int64_t y = top + i, x = left + j;
            d[i] = inside || (y >= 0 && y < H && x >= 0 && x < W) ? load_some<V>(image + (y * W + x) * C + c, count) * scale : V{};
          }
          to_points(d, out);
          for (int64_t i = 0; i < 6; ++i) columns[i][j] = out[i];
        }
        for (int64_t i = 0; i < 6; ++i) {
          V out[6];
          to_points(columns[i], out);
          for (int64_t j = 0; j < 6; ++j) store_vector(target + (i * 6 + j) * plane + c, out[j]);
        }
      }
    }
  }
}

template <Level level, bool activate>
GGF_INLINE void transform_out_rows(const Plan& p, const float* points, int64_t begin, int64_t end) {
  using V = Vector<float, level>;
  const int64_t H = p.c.height, W = p.c.width, C = p.out, plane = p.tiles * p.out_stride;
  const float positive = p.c.gain, negative = p.c.gain * p.c.slope;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t sample = row / p.tile_rows, top = row % p.tile_rows * 4;
    const int64_t image = sample * H * W, rows = std::min<int64_t>(4, H - top);
    for (int64_t column = 0; column < p.tile_columns; ++column) {
      const int64_t left = column * 4, width = std::min<int64_t>(4, W - left);
      const float* source = points + ((row - begin) * p.tile_columns + column) * p.out_stride;
      float noise[4][4] = {};
      if (activate && p.c.noise)
        for (int64_t i = 0; i < rows; ++i)
          for (int64_t j = 0; j < width; ++j)
            noise[i][j] = p.c.noise[sample * p.c.noise_stride + (top + i) * W + left + j] * p.c.strength;
      for (int64_t c = 0; c < C; c += 16) {
        const int64_t count = C - c;
        V columns[4][6];
        for (int64_t j = 0; j < 6; ++j) {
          V m[6], out[4];
          for (int64_t i = 0; i < 6; ++i) m[i] = load_vector<V>(source + (i * 6 + j) * plane + c);
          from_points(m, out);
          for (int64_t i = 0; i < 4; ++i) columns[i][j] = out[i];
        }
        const V scale = p.c.scale_out ? load_some<V>(p.c.scale_out + sample * C + c, count) : broadcast<V>(1.0f);
        const V bias = activate ? load_some<V>(p.c.bias + c, count) : V{};
        V dot{};
        for (int64_t i = 0; i < rows; ++i) {
          V out[4];
          from_points(columns[i], out);
          for (int64_t j = 0; j < width; ++j) {
            const int64_t at = (image + (top + i) * W + left + j) * C + c;
            if (p.row_dots) dot += out[j] * load_some<V>(p.c.other + at, count);
            V value = out[j] * scale;
            if constexpr (activate) {
              value += bias + noise[i][j];
              value = activate_lanes(value, positive, negative);
            }
            store_some(p.c.y + at, value, count);
          }
        }
        if (p.row_dots) {
          float* sums = p.row_dots + row * C + c;
          store_some(sums, load_some<V>(sums, count) + dot, count);
        }
      }
    }
  }
}

template <Level level>
GGF_INLINE void transform_out(const Plan& p, const float* points, int64_t begin, int64_t end) {
  if (p.c.bias)
    transform_out_rows<level, true>(p, points, begin, end);
  else
    transform_out_rows<level, false>(p, points, begin, end);
}

// Memory that a thread keeps for its next task: fresh pages would cost as much as the transforms.
float* workspace(int64_t count) {
  thread_local std::unique_ptr<float[]> memory;
  thread_local int64_t size = 0;
  if (size < count + 16) {
    memory.reset();
    size = count + 16;
    memory = std::make_unique<float[]>(size);  // zeros: padding rows are multiplied too
  }
  return memory.get() + (64 - reinterpret_cast<uintptr_t>(memory.get()) % 64) % 64 / 4;
}

}  // namespace

void convolve(const Convolution& c) {
  const int64_t in = c.weights.channels_in, out = c.weights.channels_out;
  const int64_t tile_rows = ceil_divide(c.height, 4), tile_columns = ceil_divide(c.width, 4), rows = c.batch * tile_rows;
  if (c.dots) std::fill_n(c.dots, c.batch * out, 0.0f);
  if (rows * tile_columns == 0) return;
  // As many tiles as amortise a pass over the weights, in tasks of equal size, and a task for every thread.
  const int64_t most = std::max<int64_t>((in >= 512 ? 224 : 112) / tile_columns, 1);
  const int64_t tasks = std::max(ceil_divide(rows, most), std::min<int64_t>(torch::stable::get_num_threads(), rows));
  const int64_t rows_each = ceil_divide(rows, tasks), panels = ceil_divide(out, panel);
  const int64_t tiles = ceil_divide(rows_each * tile_columns, rows_together) * rows_together;
  // Strides of a multiple of 4 KiB would share a few sets of the cache.
  const int64_t in_stride = ceil_divide(in, 16) * 16 + 16, out_stride = panels * panel + 16;
  std::vector<float> row_dots(c.other && c.dots ? rows * out : 0);
  const Plan plan{c, in, out, tile_rows, tile_columns, tiles, in_stride, out_stride, row_dots.empty() ? nullptr : row_dots.data()};
  const Grain each = grain(rows_each * tile_columns * in * out);
  parallel_for(0, ceil_divide(rows, rows_each), each, [&](int64_t first_task, int64_t last_task) {
    float* points_in = workspace(36 * tiles * (in_stride + out_stride));
    float* points_out = points_in + 36 * tiles * in_stride;
    for (int64_t task = first_task; task < last_task; ++task) {
      const int64_t begin = task * rows_each, end = std::min(rows, begin + rows_each);
      at_each_level<[]<Level level>(const auto&... all) GGF_INLINE_LAMBDA { transform_in<level>(all...); }>(plan, points_in, begin,
                                                                                                            end);
      for (int64_t point = 0; point < 36; ++point)
        multiply({points_in + point * tiles * in_stride, c.weights.data.get() + point * panels * in * panel,
                  points_out + point * tiles * out_stride, tiles, in_stride, out_stride, in, panels});
      at_each_level<[]<Level level>(const auto&... all) GGF_INLINE_LAMBDA { transform_out<level>(all...); }>(plan, points_out,
                                                                                                             begin, end);
    }
  });
  if (row_dots.empty()) return;
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t channel = 0; channel < out; ++channel) c.dots[row / tile_rows * out + channel] += row_dots[row * out + channel];
}

}  // namespace ggf::winograd
