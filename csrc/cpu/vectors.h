// SPDX-License-Identifier: Apache-2.0
// Vectors of 64 bytes of the type computed in, by the compiler's portable extension: one register of the widest machines,
// several of any other. For sums that have to stay in registers, where the compiler's own choice of loop is a poor one.
#pragma once

#include "../common.h"

#include <cstring>

// Every function that takes or returns one is inlined, so that no calling convention matters.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wpsabi"
#endif

namespace ggf {

template <typename A>
struct VectorOf {
  typedef A type __attribute__((vector_size(64)));
};
template <typename A>
using Vector = typename VectorOf<A>::type;

template <typename A>
inline constexpr int64_t lanes = 64 / sizeof(A);

template <typename T>
GGF_INLINE Vector<Compute<T>> load_vector(const T* source) {
  using A = Compute<T>;
  Vector<A> result;
  if constexpr (std::is_same_v<T, A>) {
    std::memcpy(&result, source, sizeof(result));
  } else if constexpr (std::is_same_v<T, BFloat16>) {
    typedef uint16_t Narrow __attribute__((vector_size(32)));
    typedef uint32_t Wide __attribute__((vector_size(64)));
    Narrow bits;
    std::memcpy(&bits, source, sizeof(bits));
    const Wide wide = __builtin_convertvector(bits, Wide) << 16;
    std::memcpy(&result, &wide, sizeof(result));
  } else {
    A values[lanes<A>];
    for (int64_t lane = 0; lane < lanes<A>; ++lane) values[lane] = load(source[lane]);
    std::memcpy(&result, values, sizeof(result));
  }
  return result;
}

template <typename A>
GGF_INLINE void store_vector(A* target, Vector<A> value) {
  std::memcpy(target, &value, sizeof(value));
}

template <typename A>
GGF_INLINE Vector<A> broadcast(A value) {
  return value - Vector<A>{};
}

// The sum of the lanes, in a fixed order.
template <typename A>
GGF_INLINE A add_lanes(Vector<A> v) {
  if constexpr (lanes<A> == 16) {
    v += __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
    v += __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
    v += __builtin_shufflevector(v, v, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
  } else {
    v += __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3);
    v += __builtin_shufflevector(v, v, 2, 3, 0, 1, 6, 7, 4, 5);
  }
  return v[0] + v[1];
}

}  // namespace ggf
