// SPDX-License-Identifier: Apache-2.0
// An exponential that loops vectorise over.
#pragma once

#include "../common.h"

#include <cmath>

namespace ggf {

// The least argument of `exponential`, which is given it: to be read once, before a loop. A number that the compiler knows it takes
// for a choice by a mask, four operations at AVX2, where one of a variable is a maximum.
template <typename A>
inline const volatile A least_argument = A(-87);

// exp for arguments x <= 0, with a relative error below (1 + |x| / 5) 2^-24 where there are fused multiply-adds (three times
// that where not); below -87 it stays at exp(-87). NaN stays NaN.
GGF_INLINE float exponential(float value, float least) {
  const float x = value < least ? least : value;
  // Adding and subtracting 1.5 * 2^23 rounds to the nearest integer, and leaves it in the low bits.
  const float shifted = x * 1.44269504f + 12582912.0f;
  const float whole = shifted - 12582912.0f;
  const float r = x * 1.44269504f - whole;
  // 2^r on [-1/2, 1/2]: the polynomial of degree 6 of the smallest relative error, 2e-9.
  float p = 1.53458124e-4f;
  p = p * r + 1.33999309e-3f;
  p = p * r + 9.61848907e-3f;
  p = p * r + 5.55032864e-2f;
  p = p * r + 0.240226462f;
  p = p * r + 0.693147182f;
  p = p * r + 1.0f;
  return p * std::bit_cast<float>((std::bit_cast<uint32_t>(shifted) << 23) + 0x3f800000u);
}
GGF_INLINE double exponential(double value, double) { return std::exp(value); }

}  // namespace ggf
