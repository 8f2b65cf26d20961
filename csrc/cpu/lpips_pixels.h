// SPDX-License-Identifier: Apache-2.0
// lpips_distance of channels-last maps, pixel by pixel: its channels stay in the first cache between the sums and what needs them.
#pragma once

#include "lpips_units.h"
#include "vectors.h"
#include "writer.h"

#include <algorithm>

namespace ggf::lpips_distance {

// Calls body(values of a, values of b, values of head, index) for vectors of channels, then for the channels left one by one.
template <Level level, typename T, typename Body>
GGF_INLINE void for_channels(const T* a, const T* b, const Compute<T>* head, int64_t channels, const Body& body) {
  using A = Compute<T>;
  using V = Vector<A, level>;
  int64_t c = 0;
  for (; c + lanes<A> <= channels; c += lanes<A>) body(load_vector<V>(a + c), load_vector<V>(b + c), load_vector<V>(head + c), c);
  for (; c < channels; ++c) body(load(a[c]), load(b[c]), head[c], c);
}

// A sum of vectors and of single numbers.
template <typename A, Level level>
struct Sum {
  Vector<A, level> vectors{};
  A rest = 0;
  GGF_INLINE void add(const Vector<A, level>& value) { vectors += value; }
  GGF_INLINE void add(A value) { rest += value; }
  GGF_INLINE A total() const { return add_lanes<A>(vectors) + rest; }
};

// What all channels of a pixel share, for a group of pixels: their roots and quotients are taken in one vector.
inline constexpr int64_t group = 8;

template <typename T, Level level, bool slopes>
struct Group {
  using A = Compute<T>;
  const T *a, *b;
  int64_t size;
  A ia[group], ib[group], of_a[group], of_b[group], scale[group];
  // With `slopes` the products of the gradient with respect to either unit vector, but for factors, and the features.
  A along_a[group], along_b[group];

  GGF_INLINE Group(const Problem<T>& p, int64_t pixel, int64_t count)
      : a(p.a + pixel * p.channels), b(p.b + pixel * p.channels), size(count) {
    A haa[group] = {}, hab[group] = {}, hbb[group] = {};
    for (int64_t k = 0; k < group; ++k) ia[k] = ib[k] = 0;
    for (int64_t k = 0; k < size; ++k) {
      fetch_ahead(a + k * p.channels, p.channels);
      fetch_ahead(b + k * p.channels, p.channels);
      Sum<A, level> aa, bb, weighted_aa, weighted_ab, weighted_bb;
      for_channels<level>(a + k * p.channels, b + k * p.channels, p.head, p.channels,
                          [&](const auto& x, const auto& y, const auto& h, int64_t) GGF_INLINE_LAMBDA {
                            aa.add(x * x);
                            bb.add(y * y);
                            if constexpr (slopes) {
                              weighted_aa.add(h * x * x);
                              weighted_ab.add(h * x * y);
                              weighted_bb.add(h * y * y);
                            }
                          });
      ia[k] = aa.total();
      ib[k] = bb.total();
      if constexpr (slopes) {
        haa[k] = weighted_aa.total();
        hab[k] = weighted_ab.total();
        hbb[k] = weighted_bb.total();
      }
    }
    for (int64_t k = 0; k < group; ++k) {
      ia[k] = inverse_norm(ia[k]);
      ib[k] = inverse_norm(ib[k]);
      const Factors<A> f = factors(ia[k], ib[k]);
      of_a[k] = f.of_a;
      of_b[k] = f.of_b;
      scale[k] = f.scale;
      along_a[k] = f.of_a * haa[k] - f.of_b * hab[k];
      along_b[k] = f.of_a * hab[k] - f.of_b * hbb[k];
    }
  }
};

template <typename T, Level level>
GGF_INLINE void forward_pixels(const Problem<T>& p, int64_t begin, int64_t end) {
  using A = Compute<T>;
  const int64_t C = p.channels;
  for (int64_t part = begin; part < end; ++part) {
    const int64_t sample = part / p.pieces_each, first = part % p.pieces_each * piece;
    const int64_t last = std::min(first + piece, p.positions);
    A total = 0;
    for (int64_t i = first; i < last; i += group) {
      const Group<T, level, false> g(p, sample * p.positions + i, std::min(group, last - i));
      for (int64_t k = 0; k < g.size; ++k) {
        const A of_a = g.of_a[k], of_b = g.of_b[k];
        Sum<A, level> sum;
        for_channels<level>(g.a + k * C, g.b + k * C, p.head, C,
                            [&](const auto& x, const auto& y, const auto& head, int64_t) GGF_INLINE_LAMBDA {
                              const auto difference = x * of_a - y * of_b;
                              sum.add(head * difference * difference);
                            });
        total += sum.total() * g.scale[k] * g.scale[k];
      }
    }
    p.distance[part] = total;
  }
}

template <typename T, Level level>
GGF_INLINE void backward_pixels(const Problem<T>& p, int64_t begin, int64_t end) {
  using A = Compute<T>;
  const int64_t C = p.channels;
  const A* GGF_RESTRICT head = p.head;
  // Pieces follow one another without a gap.
  const int64_t from = (begin / p.pieces_each * p.positions + begin % p.pieces_each * piece) * C;
  Writer<T> writer_a(p.grad_a ? p.grad_a + from : nullptr, p.elements), writer_b(p.grad_b ? p.grad_b + from : nullptr, p.elements);
  for (int64_t part = begin; part < end; ++part) {
    const int64_t sample = part / p.pieces_each, first = part % p.pieces_each * piece;
    const int64_t last = std::min(first + piece, p.positions);
    A* GGF_RESTRICT sums = p.head_sums ? p.head_sums + part * C : nullptr;
    if (sums)
      for (int64_t c = 0; c < C; ++c) sums[c] = 0;
    for (int64_t i = first; i < last; i += group) {
      const int64_t pixel = sample * p.positions + i;
      const Group<T, level, true> g(p, pixel, std::min(group, last - i));
      A qa[group], qb[group], ka[group], kb[group];
      for (int64_t k = 0; k < group; ++k) {
        qa[k] = g.along_a[k] * along(g.ia[k]);
        qb[k] = g.along_b[k] * along(g.ib[k]);
        ka[k] = p.grad[sample] * g.scale[k] * g.ia[k];
        kb[k] = -p.grad[sample] * g.scale[k] * g.ib[k];
      }
      for (int64_t k = 0; k < g.size; ++k) {
        const A of_a = g.of_a[k], of_b = g.of_b[k], along_a = qa[k], along_b = qb[k], of_grad_a = ka[k], of_grad_b = kb[k];
        const T* GGF_RESTRICT a = g.a + k * C;
        const T* GGF_RESTRICT b = g.b + k * C;
        for (int64_t c = 0; c < C; c += Writer<T>::step) {
          const int64_t count = std::min(C - c, Writer<T>::step);
          const auto slope = [&](int64_t i)
                                 GGF_INLINE_LAMBDA { return head[c + i] * (load(a[c + i]) * of_a - load(b[c + i]) * of_b); };
          T* GGF_RESTRICT grad_a = writer_a.room();
          T* GGF_RESTRICT grad_b = writer_b.room();
          if (p.grad_a && p.grad_b) {
            for (int64_t i = 0; i < count; ++i) {
              const A u = slope(i);
              grad_a[i] = store<T>(of_grad_a * (u - load(a[c + i]) * along_a));
              grad_b[i] = store<T>(of_grad_b * (u - load(b[c + i]) * along_b));
            }
          } else if (p.grad_a) {
            for (int64_t i = 0; i < count; ++i) grad_a[i] = store<T>(of_grad_a * (slope(i) - load(a[c + i]) * along_a));
          } else if (p.grad_b) {
            for (int64_t i = 0; i < count; ++i) grad_b[i] = store<T>(of_grad_b * (slope(i) - load(b[c + i]) * along_b));
          }
          if (p.grad_a) writer_a.advance(count);
          if (p.grad_b) writer_b.advance(count);
        }
        if (sums) {
          const A weight = p.grad[sample] / 2 * g.scale[k] * g.scale[k];
          for (int64_t c = 0; c < C; ++c) {
            const A difference = load(a[c]) * of_a - load(b[c]) * of_b;
            sums[c] += weight * difference * difference;
          }
        }
      }
    }
  }
  if (p.grad_a) writer_a.finish();
  if (p.grad_b) writer_b.finish();
}

}  // namespace ggf::lpips_distance
