// SPDX-License-Identifier: Apache-2.0
// The leaky ReLU of bias_act and modulated_conv2d, and the way back from its result alone.
//
// A sign outlives what rounding makes of a number: a result of 0 is positive zero if a positive argument underflowed, and negative
// zero if the argument was not positive.
#pragma once

#include "vectors.h"

#include <cmath>

namespace ggf {

template <typename A>
using Bits = std::conditional_t<std::is_same_v<A, double>, uint64_t, uint32_t>;
template <typename A>
inline constexpr Bits<A> bits_of_infinity = std::bit_cast<Bits<A>>(static_cast<A>(INFINITY));

// value * (positive or negative), both factors at least 0.
template <typename A>
GGF_INLINE A activate(A value, A positive, A negative) {
  const A result = value * (value > 0 ? positive : negative);
  return value > 0 ? result : -std::abs(result);
}

// Whether the argument of `activate` was positive, from its result. NaN was not.
template <typename A>
GGF_INLINE bool was_positive(A result) {
  return std::bit_cast<Bits<A>>(result) <= bits_of_infinity<A>;
}

// The same of every lane.
template <typename A>
struct LanesOf {
  typedef Bits<A> type __attribute__((vector_size(64)));
};

template <typename A>
GGF_INLINE Vector<A> activate_lanes(Vector<A> value, A positive, A negative) {
  using Lanes = typename LanesOf<A>::type;
  Vector<A> result = value * (value > 0 ? broadcast(positive) : broadcast(negative));
  Lanes bits;
  std::memcpy(&bits, &result, sizeof(bits));
  bits |= ~(Lanes)(value > 0) & (Bits<A>(1) << (8 * sizeof(A) - 1));
  std::memcpy(&result, &bits, sizeof(bits));
  return result;
}

template <typename A>
GGF_INLINE auto were_positive(Vector<A> result) {
  typename LanesOf<A>::type bits;
  std::memcpy(&bits, &result, sizeof(bits));
  return bits <= bits_of_infinity<A>;
}

}  // namespace ggf
