// SPDX-License-Identifier: Apache-2.0
// Products of matrices whose columns lie in strips of one vector: what is summed stays in registers.
#pragma once

#include "vectors.h"

#include <algorithm>
#include <new>
#include <utility>

namespace ggf {

// A matrix [columns, depth], row by row, in strips: [strips, depth, lanes], at least one strip, the last one filled up with zeros.
template <typename A>
GGF_INLINE void put_into_strips(const A* matrix, int64_t columns, int64_t depth, A* out) {
  constexpr int64_t step = lanes<A>;
  for (int64_t first = 0; first == 0 || first < columns; first += step) {
    const int64_t count = std::min(step, columns - first);
    A* strip = out + first * depth;
    for (int64_t k = 0; k < depth; ++k) {
      for (int64_t c = 0; c < count; ++c) strip[k * step + c] = matrix[(first + c) * depth + k];
      for (int64_t c = count; c < step; ++c) strip[k * step + c] = 0;
    }
  }
}

template <typename A>
int64_t strips_of(int64_t columns) {
  return std::max<int64_t>(1, ceil_divide(columns, lanes<A>));
}

// How many rows' sums of one strip stay in registers.
template <Level level>
inline constexpr int64_t rows_in_registers = level == Level::avx512 ? 12
                                             : level == Level::avx2 ? 6
                                                                    : 3;

// Calls body(size, first) for tiles of nearly the same size that cover `count` rows; the size is a constant, at most `most`.
template <int64_t most, typename Body>
GGF_INLINE void for_tiles(int64_t count, const Body& body) {
  const int64_t tiles = ceil_divide(count, most);
  const auto sized = [&]<int64_t size>(int64_t first) GGF_INLINE_LAMBDA { body(std::integral_constant<int64_t, size>{}, first); };
  int64_t first = 0;
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const int64_t size = (count - first) / (tiles - tile);
    const auto choose = [&]<int64_t... k>(std::integer_sequence<int64_t, k...>)
                            GGF_INLINE_LAMBDA { ((size == k + 1 ? sized.template operator()<k + 1>(first) : void()), ...); };
    choose(std::make_integer_sequence<int64_t, most>{});
    first += size;
  }
}

// A register of one level; `strip_parts` of them hold a strip.
template <Level level, typename A>
using Register = typename RegisterOf<A, register_bytes<level>>::type;
template <Level level, typename A>
inline constexpr int64_t strip_parts = 64 / register_bytes<level>;

// The sums of some rows. An array of registers, and not of strips, or GCC keeps some of them in memory.
template <typename R, int64_t rows, int64_t parts>
struct Sums {
  using A = std::remove_cvref_t<decltype(R{}[0])>;
  static constexpr int64_t width = sizeof(R) / sizeof(A);
  R value[rows][parts];

  GGF_INLINE void fill(const A* strip) {
    for_each([&](int64_t, int64_t part, R& sum) GGF_INLINE_LAMBDA { std::memcpy(&sum, strip + part * width, sizeof(R)); });
  }

  // Adds, for k from 0 to count, a[r * a_row + k] times the strip b[k].
  GGF_INLINE void add_products(const A* a, int64_t a_row, const A* b, int64_t count) {
#pragma GCC unroll 4
    for (int64_t k = 0; k < count; ++k) {
      R factor[parts];
#pragma GCC unroll 4
      for (int64_t part = 0; part < parts; ++part) std::memcpy(&factor[part], b + k * lanes<A> + part * width, sizeof(R));
#pragma GCC unroll 16
      for (int64_t r = 0; r < rows; ++r) {
        const A times = a[r * a_row + k];
#pragma GCC unroll 4
        for (int64_t part = 0; part < parts; ++part) value[r][part] += factor[part] * times;
      }
    }
  }

  // Adds the strips a[r * a_row] times the strip b.
  GGF_INLINE void add_each(const A* a, int64_t a_row, const A* b) {
#pragma GCC unroll 4
    for (int64_t part = 0; part < parts; ++part) {
      R factor;
      std::memcpy(&factor, b + part * width, sizeof(R));
#pragma GCC unroll 16
      for (int64_t r = 0; r < rows; ++r) {
        R times;
        std::memcpy(&times, a + r * a_row + part * width, sizeof(R));
        value[r][part] += factor * times;
      }
    }
  }

  // body(row, part, register)
  template <typename Body>
  GGF_INLINE void for_each(const Body& body) {
#pragma GCC unroll 16
    for (int64_t r = 0; r < rows; ++r)
#pragma GCC unroll 4
      for (int64_t part = 0; part < parts; ++part) body(r, part, value[r][part]);
  }
};

// Uninitialised numbers, at an address that suits every vector.
template <typename A>
class Room {
 public:
  explicit Room(int64_t count) : data_(static_cast<A*>(::operator new(count * sizeof(A) + 1, std::align_val_t(64)))) {}
  ~Room() { ::operator delete(data_, std::align_val_t(64)); }
  Room(const Room&) = delete;
  Room& operator=(const Room&) = delete;
  A* data() const { return data_; }

 private:
  A* data_;
};

}  // namespace ggf
