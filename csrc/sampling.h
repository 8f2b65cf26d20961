// SPDX-License-Identifier: Apache-2.0
// From a normalised grid coordinate to the texels it reads: shared by grid_sample and mipmap_warp.
// Maths: gangealing_fast/ops/grid_sample.py.
#pragma once

#include "common.h"

#include <cmath>

namespace ggf {

enum Padding : int64_t { zeros = 0, border = 1, reflection = 2 };  // the order of PADDING_MODES in ops/grid_sample.py

// One axis of one grid point: the texels `low` and `low + 1` are read with the weights 1 - part and part; the
// derivative of the position by the normalised coordinate is `slope`; `finite` is 1 or 0. `low` lies in [-1, size] for
// any input at all, NaN included. Everything is of one type, and chosen by single comparisons, so that loops over points
// vectorise.
template <typename A>
struct Position {
  A low, part, slope, finite;
};

// What `locate` needs to know of an axis of `size` texels; `inverse` is 1 / (2 span).
template <typename A>
struct Axis {
  A size, offset, scale, start, span, inverse;
};

template <typename A>
GGF_INLINE Axis<A> axis_of(int64_t texels, bool align_corners) {
  const A size = static_cast<A>(texels);
  if (!align_corners) return {size, A(0.5), size / 2, A(-0.5), size, 1 / (2 * size)};
  // Reflection on an axis of one texel has no period with align_corners; any will do, its position is clamped to 0.
  const A span = texels > 1 ? size - 1 : A(1);
  return {size, A(0), (size - 1) / 2, A(0), span, 1 / (2 * span)};
}

template <Padding padding, typename A>
GGF_INLINE Position<A> locate(A coordinate, const Axis<A>& axis) {
  const A last = axis.size - 1;
  A position = (coordinate + 1) * axis.scale - axis.offset;
  A slope = axis.scale;
  const A finite = position - position == 0 ? A(1) : A(0);
  if constexpr (padding == zeros) {
    // Beyond one texel outside only zeros are read; moving the position to there keeps the index arithmetic bounded.
    slope = position >= -1 ? slope : A(0);
    slope = position < axis.size ? slope : A(0);
    position = position > -1 ? position : A(-1);
    position = position < axis.size ? position : axis.size;
  } else {
    if constexpr (padding == reflection) {
      A folded = position - axis.start;
      slope = folded < 0 ? -slope : slope;
      folded = folded < 0 ? -folded : folded;
      folded = folded - 2 * axis.span * std::floor(folded * axis.inverse);
      slope = folded > axis.span ? -slope : slope;
      folded = folded > axis.span ? 2 * axis.span - folded : folded;
      position = folded + axis.start;
    }
    // On the border itself the derivative is 0, as in torch.nn.functional.grid_sample.
    slope = position > 0 ? slope : A(0);
    slope = position < last ? slope : A(0);
    position = position > 0 ? position : A(0);
    position = position < last ? position : last;
  }
  const A low = std::floor(position);
  return {low, position - low, slope, finite};
}

inline ScalarType widest(const Tensor& a, const Tensor& b) {
  return a.scalar_type() == ScalarType::Double || b.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

}  // namespace ggf
