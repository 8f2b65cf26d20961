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
  return std::abs(value) * (value > 0 ? positive : -negative);
}

// store<T>(activate(value, positive, negative)).
template <typename T>
GGF_INLINE T store_activated(Compute<T> value, Compute<T> positive, Compute<T> negative) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    // Some NaN would be rounded to a number; this one stays what it is.
    const int32_t magnitude = std::bit_cast<int32_t>(std::abs(value));
    const float safe = std::bit_cast<float>(magnitude < 0x7fc00000 ? magnitude : 0x7fc00000);
    const uint32_t bits = std::bit_cast<uint32_t>(safe * (value > 0 ? positive : -negative));
    return BFloat16(static_cast<uint16_t>(round_to_upper_half(bits)), BFloat16::from_bits());
  } else {
    return store<T>(activate(value, positive, negative));
  }
}

// store<T>(value * factor) of a value that came from a T: if it is NaN, rounding leaves it so.
template <typename T>
GGF_INLINE T store_product(Compute<T> value, Compute<T> factor) {
  if constexpr (std::is_same_v<T, BFloat16>)
    return BFloat16(static_cast<uint16_t>(round_to_upper_half(std::bit_cast<uint32_t>(value * factor))), BFloat16::from_bits());
  else
    return store<T>(value * factor);
}

// Whether the argument of `activate` was positive, from its result. NaN was not.
template <typename A>
GGF_INLINE bool was_positive(A result) {
  return std::bit_cast<Bits<A>>(result) <= bits_of_infinity<A>;
}
GGF_INLINE bool was_positive(BFloat16 result) { return result.x <= 0x7f80; }
GGF_INLINE bool was_positive(Half result) { return result.x <= 0x7c00; }

// Of every lane `yes` where it is positive, else `no`. With `by_bits`: where it came from `activate` and was_positive.
template <bool by_bits, typename A, typename V>
GGF_INLINE V choose_lanes(const V& value, A yes, A no) {
  if constexpr (is_halves<V>) {
    return {choose_lanes<by_bits, A>(value.low, yes, no), choose_lanes<by_bits, A>(value.high, yes, no)};
  } else if constexpr (by_bits) {
    typename RegisterOf<Bits<A>, sizeof(V)>::type bits;
    std::memcpy(&bits, &value, sizeof(bits));
    return bits <= bits_of_infinity<A> ? broadcast<V>(yes) : broadcast<V>(no);
  } else {
    return value > 0 ? broadcast<V>(yes) : broadcast<V>(no);
  }
}

// `activate` of every lane.
template <typename A, typename V>
GGF_INLINE V activate_lanes(const V& value, A positive, A negative) {
  if constexpr (is_halves<V>) {
    return {activate_lanes<A>(value.low, positive, negative), activate_lanes<A>(value.high, positive, negative)};
  } else {
    using Words = typename RegisterOf<Bits<A>, sizeof(V)>::type;
    V result = value * choose_lanes<false>(value, positive, negative);
    Words bits;
    std::memcpy(&bits, &result, sizeof(bits));
    bits |= ~(Words)(value > 0) & (Bits<A>(1) << (8 * sizeof(A) - 1));
    std::memcpy(&result, &bits, sizeof(bits));
    return result;
  }
}

}  // namespace ggf
