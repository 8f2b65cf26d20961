// SPDX-License-Identifier: Apache-2.0
// Which texels of a mip-map level one grid point reads, with which weights. Maths: gangealing_fast/ops/mipmap_warp.py.
#pragma once

#include "sampling.h"

namespace ggf::mipmap_warp {

// log2 of numbers >= 1, to about 1 unit in the last place.
GGF_INLINE float binary_log(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value) - 0x3f3504f3u;  // the mantissa is taken from sqrt(1/2) on
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

// One axis of one level: the full-size texel X lies at (X + shift + 1/2) * scale - 1/2 in the level, whose last texel is
// `last`.
template <typename A>
struct LevelAxis {
  A shift, scale, last;
};

// Three neighbouring texels of a level, from `base` on (those beyond the last are the last), with their weights and the
// derivatives of these by the normalised coordinate. In level 0 the third has weight 0.
template <typename A>
struct LevelTaps {
  A base, weight0, weight1, weight2, slope0, slope1, slope2;
};

template <typename A>
GGF_INLINE A clamp(A value, A last) {
  const A lifted = value > 0 ? value : A(0);
  return lifted < last ? lifted : last;
}

// A bilinear sample between two full-size texels, each of which is a blend of two neighbouring texels of the level: at
// most three in all. `low`, `part` and `slope` are those of Position, `last` is the last full-size texel.
template <typename A>
GGF_INLINE LevelTaps<A> level_taps(A low, A part, A slope, A last, const LevelAxis<A>& axis) {
  const A left = clamp(low, last), right = clamp(low + 1, last);
  const A in_left = left == low ? A(1) : A(0), in_right = right == low + 1 ? A(1) : A(0);
  const A weight_left = in_left * (1 - part), weight_right = in_right * part;
  const A slope_left = -in_left * slope, slope_right = in_right * slope;
  // Where both full-size texels lie in the level, as torch.nn.functional.interpolate has it.
  A near = (left + axis.shift + A(0.5)) * axis.scale - A(0.5);
  A far = (right + axis.shift + A(0.5)) * axis.scale - A(0.5);
  near = near > 0 ? near : A(0);
  far = far > 0 ? far : A(0);
  const A base = std::floor(near), other = std::floor(far);
  const A blend = near - base, other_blend = far - other;
  const A same = other > base ? A(0) : A(1), next = 1 - same;
  const A share0 = same * (1 - other_blend), share1 = same * other_blend + next * (1 - other_blend);
  const A share2 = next * other_blend;
  return {base,
          weight_left * (1 - blend) + weight_right * share0,
          weight_left * blend + weight_right * share1,
          weight_right * share2,
          slope_left * (1 - blend) + slope_right * share0,
          slope_left * blend + slope_right * share1,
          slope_right * share2};
}

}  // namespace ggf::mipmap_warp
