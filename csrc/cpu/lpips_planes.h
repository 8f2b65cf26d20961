// SPDX-License-Identifier: Apache-2.0
// lpips_distance of contiguous maps, in short rows of pixels, channel after channel: vectors run along the pixels.
#pragma once

#include "lpips_units.h"

#include <algorithm>

namespace ggf::lpips_distance {

// Inverse norms of `n` pixels of a contiguous map whose channels lie `stride` apart.
template <typename T>
GGF_INLINE void norms_of_row(const T* x, int64_t channels, int64_t stride, int64_t n, Compute<T>* GGF_RESTRICT inverse) {
  Compute<T> squared[row] = {};
  for (int64_t c = 0; c < channels; ++c) {
    const T* GGF_RESTRICT values = x + c * stride;
    for (int64_t i = 0; i < n; ++i) squared[i] += load(values[i]) * load(values[i]);
  }
  for (int64_t i = 0; i < n; ++i) inverse[i] = inverse_norm(squared[i]);
}

template <typename A>
GGF_INLINE void factors_of_row(const A* inverse_a, const A* inverse_b, int64_t n, A* of_a, A* of_b, A* scale) {
  for (int64_t i = 0; i < n; ++i) {
    const Factors<A> f = factors(inverse_a[i], inverse_b[i]);
    of_a[i] = f.of_a;
    of_b[i] = f.of_b;
    scale[i] = f.scale;
  }
}

template <typename T>
GGF_INLINE void forward_planes(const Problem<T>& p, int64_t begin, int64_t end) {
  using A = Compute<T>;
  A ia[row], ib[row], of_a[row], of_b[row], scale[row], sums[row];
  for (int64_t part = begin; part < end; ++part) {
    const int64_t sample = part / p.pieces_each, first = part % p.pieces_each * piece;
    const int64_t last = std::min(first + piece, p.positions);
    A total = 0;
    for (int64_t start = first; start < last; start += row) {
      const int64_t n = std::min(row, last - start), offset = sample * p.channels * p.positions + start;
      norms_of_row<T>(p.a + offset, p.channels, p.positions, n, ia);
      norms_of_row<T>(p.b + offset, p.channels, p.positions, n, ib);
      factors_of_row(ia, ib, n, of_a, of_b, scale);
      for (int64_t i = 0; i < n; ++i) sums[i] = 0;
      for (int64_t c = 0; c < p.channels; ++c) {
        const T* GGF_RESTRICT a = p.a + offset + c * p.positions;
        const T* GGF_RESTRICT b = p.b + offset + c * p.positions;
        const A head = p.head[c];
        for (int64_t i = 0; i < n; ++i) {
          const A difference = load(a[i]) * of_a[i] - load(b[i]) * of_b[i];
          sums[i] += head * difference * difference;
        }
      }
      for (int64_t i = 0; i < n; ++i) total += sums[i] * scale[i] * scale[i];
    }
    p.distance[part] = total;
  }
}

template <typename T>
GGF_INLINE void backward_planes(const Problem<T>& p, int64_t begin, int64_t end) {
  using A = Compute<T>;
  A ia[row], ib[row], of_a[row], of_b[row], scale[row], qa[row], qb[row];
  for (int64_t part = begin; part < end; ++part) {
    const int64_t sample = part / p.pieces_each, first = part % p.pieces_each * piece;
    const int64_t last = std::min(first + piece, p.positions);
    const A grad = p.grad[sample];
    if (p.head_sums) std::fill_n(p.head_sums + part * p.channels, p.channels, A(0));
    for (int64_t start = first; start < last; start += row) {
      const int64_t n = std::min(row, last - start), offset = sample * p.channels * p.positions + start;
      norms_of_row<T>(p.a + offset, p.channels, p.positions, n, ia);
      norms_of_row<T>(p.b + offset, p.channels, p.positions, n, ib);
      factors_of_row(ia, ib, n, of_a, of_b, scale);
      for (int64_t i = 0; i < n; ++i) qa[i] = qb[i] = 0;
      for (int64_t c = 0; c < p.channels; ++c) {
        const T* GGF_RESTRICT a = p.a + offset + c * p.positions;
        const T* GGF_RESTRICT b = p.b + offset + c * p.positions;
        const A head = p.head[c];
        for (int64_t i = 0; i < n; ++i) {
          const A u = head * (load(a[i]) * of_a[i] - load(b[i]) * of_b[i]);
          qa[i] += u * load(a[i]);
          qb[i] += u * load(b[i]);
        }
      }
      for (int64_t i = 0; i < n; ++i) {
        qa[i] *= along(ia[i]);
        qb[i] *= along(ib[i]);
      }
      for (int64_t c = 0; c < p.channels; ++c) {
        const int64_t at = offset + c * p.positions;
        const T* GGF_RESTRICT a = p.a + at;
        const T* GGF_RESTRICT b = p.b + at;
        const A head = p.head[c];
        if (p.grad_a)
          for (int64_t i = 0; i < n; ++i) {
            const A u = head * (load(a[i]) * of_a[i] - load(b[i]) * of_b[i]);
            p.grad_a[at + i] = store<T>(grad * scale[i] * ia[i] * (u - load(a[i]) * qa[i]));
          }
        if (p.grad_b)
          for (int64_t i = 0; i < n; ++i) {
            const A u = head * (load(a[i]) * of_a[i] - load(b[i]) * of_b[i]);
            p.grad_b[at + i] = store<T>(-grad * scale[i] * ib[i] * (u - load(b[i]) * qb[i]));
          }
        if (p.head_sums) {
          A sum = 0;
          for (int64_t i = 0; i < n; ++i) {
            const A difference = load(a[i]) * of_a[i] - load(b[i]) * of_b[i];
            sum += difference * difference * scale[i] * scale[i];
          }
          p.head_sums[part * p.channels + c] += sum * (grad / 2);
        }
      }
    }
  }
}

}  // namespace ggf::lpips_distance
