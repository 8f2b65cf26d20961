// SPDX-License-Identifier: Apache-2.0
// An exponential that loops vectorise over.
#pragma once

#include "../common.h"

#include <cmath>

namespace ggf {

// exp for arguments <= 0, to about 1 unit in the last place; below -87 it stays at exp(-87). NaN stays NaN.
GGF_INLINE float exponential(float value) {
  const float x = value < -87.0f ? -87.0f : value;
  // Adding and subtracting 1.5 * 2^23 rounds to the nearest integer, and leaves it in the low bits.
  const float shifted = x * 1.44269504f + 12582912.0f;
  const float whole = shifted - 12582912.0f;
  const float r = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;  // ln 2 in two parts
  float p = 1.0f / 5040;
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r * r + r + 1.0f;
  return p * std::bit_cast<float>((std::bit_cast<uint32_t>(shifted) << 23) + 0x3f800000u);
}
GGF_INLINE double exponential(double value) { return std::exp(value); }

}  // namespace ggf
