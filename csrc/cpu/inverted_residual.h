// SPDX-License-Identifier: Apache-2.0
// The three convolutions of an inverted residual block, some rows at a time. Maths: gangealing_fast/ops/inverted_residual.py.
//
// Channels lie in strips of one vector. Of a group of hidden strips the rows that a window needs are kept, expanded once, in a ring;
// the depthwise convolution of a few rows of the output follows, and adds its part to their projection. So what is hidden, six times
// the size of what comes in, never leaves the second cache.
#pragma once

#include "strips.h"

namespace ggf::inverted_residual {

inline constexpr int64_t largest_kernel = 15;

template <typename A>
struct Problem {
  const A* x;  // [N, height, width, channels_in]
  A* y;        // [N, out_height, out_width, channels_out]
  // Weights and biases in strips, the last one filled up with zeros.
  const A *expand, *expand_bias;        // [strips, channels_in, lanes], [strips, lanes]
  const A *depthwise, *depthwise_bias;  // [strips, kernel * kernel, lanes], [strips, lanes]
  const A *project, *project_bias;      // [out strips, hidden, lanes], [out strips, lanes]
  int64_t batch, height, width, channels_in, hidden, channels_out;
  int64_t kernel, stride, left, right, top, out_height, out_width;
  bool expands;  // else what comes in is hidden already
  bool replicate, residual;
  int64_t rows_together, strips_together;  // rows of the output, and hidden strips, that are computed together

  int64_t strips() const { return strips_of<A>(hidden); }
  int64_t padded_width() const { return left + width + right; }
  int64_t slots() const { return (rows_together - 1) * stride + kernel; }
};

// The rows of a group of strips that a task holds, and what becomes of them.
template <typename A>
struct Scratch {
  A* ring;   // [strips together, slots, padded width, lanes]
  A* deep;   // [strips together, rows together * out_width, lanes]
  A* zeros;  // [padded width, lanes]
};

template <typename A>
inline constexpr A relu6_limits[2] = {0, 6};

// ReLU6 that leaves NaN as it is: of two operands that do not compare the second one is kept. `out`: strips, row by row.
template <typename S, typename A>
GGF_INLINE void store_relu6(S& sums, A* out) {
  // The limits are read anew each time: kept in registers they would push sums out of these.
  const A* limits = relu6_limits<A>;
  asm volatile("" : "+r"(limits));
  using R = std::remove_cvref_t<decltype(sums.value[0][0])>;
  const R zero = R{} + limits[0], six = R{} + limits[1];
  sums.for_each([&](int64_t r, int64_t part, const R& sum) GGF_INLINE_LAMBDA {
    const R positive = zero > sum ? zero : sum, limited = six < positive ? six : positive;
    std::memcpy(out + r * lanes<A> + part * S::width, &limited, sizeof(R));
  });
}

// The first `count` values of a strip to one of which `room` values may be written.
template <typename A>
GGF_INLINE void copy_strip(const A* from, int64_t count, A* to, int64_t room) {
  // Of a constant size it is a move of registers, else a call.
  if (count == lanes<A>) {
    std::memcpy(to, from, 64);
  } else if (2 * count == lanes<A>) {
    std::memcpy(to, from, 32);
    if (room > count) std::memset(to + count, 0, 32);
  } else {
    for (int64_t c = 0; c < count; ++c) to[c] = from[c];
    for (int64_t c = count; c < room; ++c) to[c] = 0;
  }
}

// One strip of a row of the picture, [width, channels_in], into a row of the ring, edges and all.
template <Level level, typename A>
GGF_INLINE void expand_row(const Problem<A>& p, const A* row, int64_t strip, A* out) {
  constexpr int64_t step = lanes<A>;
  A* inner = out + p.left * step;
  if (p.expands) {
    const A* weight = p.expand + strip * p.channels_in * step;
    for_tiles<rows_in_registers<level>>(p.width, [&](auto size, int64_t first) GGF_INLINE_LAMBDA {
      Sums<Register<level, A>, size, strip_parts<level, A>> sums;
      sums.fill(p.expand_bias + strip * step);
      sums.add_products(row + first * p.channels_in, p.channels_in, weight, p.channels_in);
      store_relu6(sums, inner + first * step);
    });
  } else {
    const int64_t count = std::min(step, p.hidden - strip * step);
    for (int64_t pixel = 0; pixel < p.width; ++pixel)
      copy_strip(row + pixel * p.channels_in + strip * step, count, inner + pixel * step, step);
  }
  const auto edge = [&](A* to, const A* from) GGF_INLINE_LAMBDA {
    if (p.replicate)
      std::copy_n(from, step, to);
    else
      std::fill_n(to, step, A(0));
  };
  for (int64_t pixel = 0; pixel < p.left; ++pixel) edge(out + pixel * step, inner);
  for (int64_t pixel = 0; pixel < p.right; ++pixel) edge(inner + (p.width + pixel) * step, inner + (p.width - 1) * step);
}

// One strip of a row of the output. rows: those of the ring under the window. `constant`: the kernel's side if it is not 0.
template <Level level, int64_t constant, typename A>
GGF_INLINE void depthwise_row(const Problem<A>& p, const A* const* rows, int64_t strip, A* out) {
  constexpr int64_t step = lanes<A>;
  const int64_t kernel = constant ? constant : p.kernel, across = p.stride * step;
  const A* weight = p.depthwise + strip * kernel * kernel * step;
  for_tiles<rows_in_registers<level>>(p.out_width, [&](auto size, int64_t first) GGF_INLINE_LAMBDA {
    Sums<Register<level, A>, size, strip_parts<level, A>> sums;
    sums.fill(p.depthwise_bias + strip * step);
    for (int64_t y = 0; y < kernel; ++y)
      for (int64_t x = 0; x < kernel; ++x)
        sums.add_each(rows[y] + first * across + x * step, across, weight + (y * kernel + x) * step);
    store_relu6(sums, out + first * step);
  });
}

// What strips [first_strip, last_strip) add to `pixels` pixels of the output, for one strip of its channels.
template <Level level, typename A>
GGF_INLINE void project(const Problem<A>& p, const A* deep, int64_t deep_strip, int64_t first_strip, int64_t last_strip, const A* x,
                        A* y, int64_t pixels, int64_t strip) {
  constexpr int64_t step = lanes<A>;
  const int64_t channel = strip * step, count = std::min(step, p.channels_out - channel);
  const A *weight = p.project + strip * p.hidden * step, *bias = p.project_bias + channel;
  const bool begins = first_strip == 0;
  const auto tiles = [&]<typename R, int64_t parts>() GGF_INLINE_LAMBDA {
    for_tiles<rows_in_registers<level>>(pixels, [&](auto size, int64_t first) GGF_INLINE_LAMBDA {
      alignas(64) A values[size * step];
      for (int64_t r = 0; r < size; ++r) {
        const int64_t place = (first + r) * p.channels_out + channel;
        copy_strip(begins ? bias : y + place, count, values + r * step, step);
        if (begins && p.residual)
          for (int64_t c = 0; c < count; ++c) values[r * step + c] += x[place + c];
      }
      Sums<R, size, parts> sums;
      const auto at = [&](int64_t r, int64_t part) GGF_INLINE_LAMBDA { return values + r * step + part * sums.width; };
      sums.for_each([&](int64_t r, int64_t part, R& sum) GGF_INLINE_LAMBDA { std::memcpy(&sum, at(r, part), sizeof(R)); });
      for (int64_t s = first_strip; s < last_strip; ++s)
        sums.add_products(deep + (s - first_strip) * deep_strip + first * step, step, weight + s * step * step,
                          std::min(step, p.hidden - s * step));
      sums.for_each([&](int64_t r, int64_t part, const R& sum) GGF_INLINE_LAMBDA { std::memcpy(at(r, part), &sum, sizeof(R)); });
      for (int64_t r = 0; r < size; ++r) copy_strip<A>(values + r * step, count, y + (first + r) * p.channels_out + channel, count);
    });
  };
  constexpr int64_t half = std::min<int64_t>(32, register_bytes<level>);
  if (2 * count <= step)
    tiles.template operator()<typename RegisterOf<A, half>::type, 32 / half>();
  else
    tiles.template operator()<Register<level, A>, strip_parts<level, A>>();
}

// Rows [begin, end) of the output of one sample, for hidden strips [first_strip, last_strip).
template <Level level, typename A>
GGF_INLINE void strip_rows(const Problem<A>& p, const Scratch<A>& scratch, const A* x, A* y, int64_t begin, int64_t end,
                           int64_t first_strip, int64_t last_strip) {
  constexpr int64_t step = lanes<A>;
  const int64_t slots = p.slots(), row_size = p.padded_width() * step, ring_strip = slots * row_size;
  const int64_t deep_strip = p.rows_together * p.out_width * step;
  int64_t expanded = std::max<int64_t>(0, begin * p.stride - p.top);
  for (int64_t first = begin; first < end; first += p.rows_together) {
    const int64_t last = std::min(end, first + p.rows_together);
    const int64_t needed = std::min(p.height, (last - 1) * p.stride - p.top + p.kernel);
    for (int64_t strip = first_strip; strip < last_strip; ++strip) {
      A* ring = scratch.ring + (strip - first_strip) * ring_strip;
      for (int64_t row = expanded; row < needed; ++row)
        expand_row<level>(p, x + row * p.width * p.channels_in, strip, ring + row % slots * row_size);
      for (int64_t row = first; row < last; ++row) {
        const A* rows[largest_kernel];
        for (int64_t k = 0; k < p.kernel; ++k) {
          const int64_t source = row * p.stride - p.top + k, there = std::clamp<int64_t>(source, 0, p.height - 1);
          rows[k] = source == there || p.replicate ? ring + there % slots * row_size : scratch.zeros;
        }
        A* out = scratch.deep + (strip - first_strip) * deep_strip + (row - first) * p.out_width * step;
        if (p.kernel == 3)
          depthwise_row<level, 3>(p, rows, strip, out);
        else if (p.kernel == 5)
          depthwise_row<level, 5>(p, rows, strip, out);
        else
          depthwise_row<level, 0>(p, rows, strip, out);
      }
    }
    expanded = std::max(expanded, needed);
    const int64_t start = first * p.out_width * p.channels_out;
    for (int64_t strip = 0; strip < ceil_divide(p.channels_out, step); ++strip)
      project<level>(p, scratch.deep, deep_strip, first_strip, last_strip, x + start, y + start, (last - first) * p.out_width,
                     strip);
  }
}

// Rows [begin, end) of the outputs of all samples, one below the other.
template <Level level, typename A>
GGF_INLINE void block_rows(const Problem<A>& p, const Scratch<A>& scratch, int64_t begin, int64_t end) {
  std::fill_n(scratch.zeros, p.padded_width() * lanes<A>, A(0));
  while (begin < end) {
    const int64_t sample = begin / p.out_height, above = sample * p.out_height, last = std::min(end, above + p.out_height);
    for (int64_t strip = 0; strip < p.strips(); strip += p.strips_together)
      strip_rows<level>(p, scratch, p.x + sample * p.height * p.width * p.channels_in, p.y + above * p.out_width * p.channels_out,
                        begin - above, last - above, strip, std::min(p.strips(), strip + p.strips_together));
    begin = last;
  }
}

}  // namespace ggf::inverted_residual
