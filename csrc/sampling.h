// SPDX-License-Identifier: Apache-2.0
// From a normalised grid coordinate to the texels it reads: shared by grid_sample and mipmap_warp.
// Maths: gangealing_fast/ops/grid_sample.py.
#pragma once

#include "common.h"

#include <cmath>

namespace ggf {

enum Padding : int64_t { zeros = 0, border = 1, reflection = 2 };  // the order of PADDING_MODES in ops/grid_sample.py

// One axis of one grid point: the texels `low` and `low + 1` are read with the weights 1 - part and part; the
// derivative of the position by the normalised coordinate is `slope`; `finite` is 1 or 0. `low` lies in [-2, size + 1]
// for any input at all. Everything is of one type, and chosen by single comparisons, so that loops over points
// vectorise.
template <typename A>
struct Position {
  A low, part, slope, finite;
};

template <Padding padding, typename A>
GGF_INLINE Position<A> locate(A coordinate, A size, A offset, A scale, A start, A span) {
  const A last = size - 1;
  A position = (coordinate + 1) * scale - offset;
  A slope = scale;
  const A finite = position - position == 0 ? A(1) : A(0);
  position = finite > 0 ? position : A(0);
  if constexpr (padding == zeros) {
    // Any position beyond one texel outside reads zeros only; moving it there keeps the index arithmetic bounded.
    position = position > -2 ? position : A(-2);
    position = position < size + 1 ? position : A(-2);
  } else {
    if constexpr (padding == reflection) {
      A folded = position - start;
      slope = folded < 0 ? -slope : slope;
      folded = folded < 0 ? -folded : folded;
      folded = folded - 2 * span * std::floor(folded / (2 * span));
      slope = folded > span ? -slope : slope;
      folded = folded > span ? 2 * span - folded : folded;
      position = folded + start;
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

// What `locate` needs to know of an axis of `size` texels.
template <typename A>
struct Axis {
  A size, offset, scale, start, span;
};

template <typename A>
GGF_INLINE Axis<A> axis_of(int64_t texels, bool align_corners) {
  const A size = static_cast<A>(texels);
  // Reflection on an axis of one texel has no period with align_corners; any will do, its position is clamped to 0.
  return align_corners ? Axis<A>{size, A(0), (size - 1) / 2, A(0), texels > 1 ? size - 1 : A(1)}
                       : Axis<A>{size, A(0.5), size / 2, A(-0.5), size};
}

template <Padding padding, typename A>
GGF_INLINE Position<A> locate(A coordinate, const Axis<A>& axis) {
  return locate<padding>(coordinate, axis.size, axis.offset, axis.scale, axis.start, axis.span);
}

inline ScalarType widest(const Tensor& a, const Tensor& b) {
  return a.scalar_type() == ScalarType::Double || b.scalar_type() == ScalarType::Double ? ScalarType::Double
                                                                                       : ScalarType::Float;
}

}  // namespace ggf
