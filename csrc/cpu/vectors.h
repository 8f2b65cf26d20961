// SPDX-License-Identifier: Apache-2.0
// Vectors of 64 bytes of the type computed in, by the compiler's portable extension: one register of the widest machines,
// several of any other. For sums that have to stay in registers, where the compiler's own choice of loop is a poor one.
//
// A vector is made of registers of the level that it is compiled for: one that is wider the compiler keeps in memory, and moves
// in pieces of another size than it reads, which costs ten times what is computed with it.
#pragma once

#include "levels.h"

#include <cstring>

// Every function that takes or returns one is inlined, so that no calling convention matters.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wpsabi"
#endif

namespace ggf {

template <Level level>
inline constexpr int64_t register_bytes = level == Level::avx512 ? 64
                                          : level == Level::avx2 ? 32
                                                                 : 16;

template <typename A, int64_t bytes>
struct RegisterOf {
  typedef A type __attribute__((vector_size(bytes)));
};

// What is wider than a register: two halves. Results are those of one register of the full width, bit by bit.
template <typename A, int64_t bytes, int64_t width>
struct Halves;

template <typename A, int64_t bytes, int64_t width>
using Lanes =
    typename std::conditional_t<(width > bytes), std::type_identity<Halves<A, bytes, width / 2>>, RegisterOf<A, bytes>>::type;

template <typename A, Level level>
using Vector = Lanes<A, register_bytes<level>, 64>;

template <typename A>
inline constexpr int64_t lanes = 64 / sizeof(A);

template <typename A, int64_t bytes, int64_t width>
struct Halves {
  using Half = Lanes<A, bytes, width>;
  Half low, high;

  GGF_INLINE friend Halves operator+(const Halves& a, const Halves& b) { return {a.low + b.low, a.high + b.high}; }
  GGF_INLINE friend Halves operator-(const Halves& a, const Halves& b) { return {a.low - b.low, a.high - b.high}; }
  GGF_INLINE friend Halves operator*(const Halves& a, const Halves& b) { return {a.low * b.low, a.high * b.high}; }
  GGF_INLINE friend Halves operator+(const Halves& a, A b) { return {a.low + b, a.high + b}; }
  GGF_INLINE friend Halves operator*(const Halves& a, A b) { return {a.low * b, a.high * b}; }
  GGF_INLINE Halves operator-() const { return {-low, -high}; }
  GGF_INLINE Halves& operator+=(const Halves& b) { return *this = *this + b; }
};

template <typename V>
inline constexpr bool is_halves = false;
template <typename A, int64_t bytes, int64_t width>
inline constexpr bool is_halves<Halves<A, bytes, width>> = true;

template <typename V, typename T>
GGF_INLINE V load_vector(const T* source) {
  using A = Compute<T>;
  if constexpr (is_halves<V>) {
    using Half = typename V::Half;
    return {load_vector<Half>(source), load_vector<Half>(source + sizeof(Half) / sizeof(A))};
  } else {
    V result;
    if constexpr (std::is_same_v<T, A>) {
      std::memcpy(&result, source, sizeof(result));
    } else if constexpr (std::is_same_v<T, BFloat16>) {
      using Wide = typename RegisterOf<uint32_t, sizeof(V)>::type;
      typename RegisterOf<uint16_t, sizeof(V) / 2>::type bits;
      std::memcpy(&bits, source, sizeof(bits));
      const Wide wide = __builtin_convertvector(bits, Wide) << 16;
      std::memcpy(&result, &wide, sizeof(result));
    } else {
      A values[sizeof(V) / sizeof(A)];
      for (size_t lane = 0; lane < sizeof(V) / sizeof(A); ++lane) values[lane] = load(source[lane]);
      std::memcpy(&result, values, sizeof(result));
    }
    return result;
  }
}

template <typename A, typename V>
GGF_INLINE void store_vector(A* target, const V& value) {
  if constexpr (is_halves<V>) {
    store_vector(target, value.low);
    store_vector(target + sizeof(value.low) / sizeof(A), value.high);
  } else {
    std::memcpy(target, &value, sizeof(value));
  }
}

template <typename V, typename A>
GGF_INLINE V broadcast(A value) {
  if constexpr (is_halves<V>)
    return {broadcast<typename V::Half>(value), broadcast<typename V::Half>(value)};
  else
    return value - V{};
}

// The sum of the lanes, in a fixed order.
template <typename A, typename V>
GGF_INLINE A add_lanes(const V& vector) {
  if constexpr (is_halves<V>) {
    return add_lanes<A>(vector.low + vector.high);
  } else {
    V v = vector;
    constexpr size_t count = sizeof(V) / sizeof(A);
    if constexpr (count == 16) v += __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
    if constexpr (count == 16) v += __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
    if constexpr (count == 16) v += __builtin_shufflevector(v, v, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
    if constexpr (count == 8) v += __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3);
    if constexpr (count == 8) v += __builtin_shufflevector(v, v, 2, 3, 0, 1, 6, 7, 4, 5);
    if constexpr (count == 4) v += __builtin_shufflevector(v, v, 2, 3, 0, 1);
    return v[0] + v[1];
  }
}

}  // namespace ggf
