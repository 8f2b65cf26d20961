// SPDX-License-Identifier: Apache-2.0
// What goes on before and after the convolution of modulated_conv2d, pixel by pixel of channels-last tensors: scaling by style and
// demodulation, noise, bias and activation, and their transposes with all their sums. Sums are taken over fixed pieces of
// one sample and then in order, so that the result does not depend on the number of threads.
#pragma once

#include "activation.h"
#include "levels.h"

#include <algorithm>

namespace ggf::modulation {

inline constexpr int64_t piece = 512;  // pixels whose sums are taken together

struct Shape {
  int64_t batch, positions, channels;
  int64_t pieces() const { return ceil_divide(positions, piece); }  // of one sample
};

// out = x * scale[n, c]; in place too.
template <typename T>
GGF_INLINE void scale_pixels(const Shape& s, const T* x, const Compute<T>* scale, T* out, int64_t begin, int64_t end) {
  for (int64_t pixel = begin; pixel < end; ++pixel) {
    const Compute<T>* GGF_RESTRICT factors = scale + pixel / s.positions * s.channels;
    const T* source = x + pixel * s.channels;
    T* target = out + pixel * s.channels;
#pragma GCC ivdep
    for (int64_t c = 0; c < s.channels; ++c) target[c] = store<T>(load(source[c]) * factors[c]);
  }
}

template <typename T>
void scale(const Shape& s, const T* x, const Compute<T>* scale, T* out) {
  parallel_for(0, s.batch * s.positions, grain(s.channels),
               [&](int64_t begin, int64_t end) { at_level<scale_pixels<T>>(s, x, scale, out, begin, end); });
}

// out = x * scale[n, c] in place, and dots[n, c] = sum over positions of x * other.
template <typename T>
GGF_INLINE void scale_dot_pieces(const Shape& s, T* x, const Compute<T>* scale, const T* other, Compute<T>* partial, int64_t begin,
                                 int64_t end) {
  for (int64_t part = begin; part < end; ++part) {
    const int64_t sample = part / s.pieces(), first = part % s.pieces() * piece;
    const int64_t last = std::min(first + piece, s.positions);
    const Compute<T>* GGF_RESTRICT factors = scale + sample * s.channels;
    Compute<T>* GGF_RESTRICT sums = partial + part * s.channels;
    for (int64_t c = 0; c < s.channels; ++c) sums[c] = 0;
    for (int64_t pixel = sample * s.positions + first; pixel < sample * s.positions + last; ++pixel) {
      T* GGF_RESTRICT target = x + pixel * s.channels;
      const T* GGF_RESTRICT with = other + pixel * s.channels;
      for (int64_t c = 0; c < s.channels; ++c) {
        const Compute<T> value = load(target[c]);
        sums[c] += value * load(with[c]);
        target[c] = store<T>(value * factors[c]);
      }
    }
  }
}

// Adds the pieces of every sample: [batch * pieces, width] to [batch, width].
template <typename A>
void add_pieces(const Shape& s, const std::vector<A>& partial, int64_t width, A* out) {
  std::fill_n(out, s.batch * width, A(0));
  for (int64_t part = 0; part < s.batch * s.pieces(); ++part)
    for (int64_t c = 0; c < width; ++c) out[part / s.pieces() * width + c] += partial[part * width + c];
}

template <typename T>
void scale_dot(const Shape& s, T* x, const Compute<T>* scale, const T* other, Compute<T>* dots) {
  std::vector<Compute<T>> partial(s.batch * s.pieces() * s.channels);
  parallel_for(0, s.batch * s.pieces(), grain(piece * s.channels),
               [&](int64_t begin, int64_t end) { at_level<scale_dot_pieces<T>>(s, x, scale, other, partial.data(), begin, end); });
  add_pieces(s, partial, s.channels, dots);
}

template <typename A>
struct Activation {
  const A* demodulation;  // [N, C], or null
  const A* bias;          // [C], or null: no activation
  const A* noise;         // [N or 1, S], or null
  int64_t noise_stride;   // 0 where all samples share the noise
  A strength, slope, gain;
};

// y = gain * lrelu(y * demodulation + noise * strength + bias), in place.
template <typename T>
GGF_INLINE void finish_pixels(const Shape& s, const Activation<Compute<T>>& a, T* y, int64_t begin, int64_t end) {
  using A = Compute<T>;
  const A positive = a.gain, negative = a.gain * a.slope;
  for (int64_t pixel = begin; pixel < end; ++pixel) {
    const int64_t sample = pixel / s.positions;
    T* GGF_RESTRICT target = y + pixel * s.channels;
    const A* GGF_RESTRICT d = a.demodulation + sample * s.channels;
    const A* GGF_RESTRICT bias = a.bias;
    if (!a.bias) {
      for (int64_t c = 0; c < s.channels; ++c) target[c] = store<T>(load(target[c]) * d[c]);
      continue;
    }
    const A shift = a.noise ? a.noise[sample * a.noise_stride + pixel % s.positions] * a.strength : A(0);
    if (a.demodulation) {
      for (int64_t c = 0; c < s.channels; ++c) {
        const A value = load(target[c]) * d[c] + shift + bias[c];
        target[c] = store<T>(activate(value, positive, negative));
      }
    } else {
      for (int64_t c = 0; c < s.channels; ++c) {
        const A value = load(target[c]) + shift + bias[c];
        target[c] = store<T>(activate(value, positive, negative));
      }
    }
  }
}

template <typename T>
void finish(const Shape& s, const Activation<Compute<T>>& a, T* y) {
  if (!a.demodulation && !a.bias) return;
  parallel_for(0, s.batch * s.positions, grain(s.channels),
               [&](int64_t begin, int64_t end) { at_level<finish_pixels<T>>(s, a, y, begin, end); });
}

// The way back through `finish`, from its result y.
template <typename T>
struct Backward {
  using A = Compute<T>;
  const T* grad;
  const T* y;  // null where neither the activation nor dots are wanted
  T* result;   // the gradient of finish's argument
  A* dots;     // [pieces of all samples, C]: sums of the gradient of (argument * demodulation) times that; or null
  A* sums;     // the same without "times that": the gradient of the bias; or null
  A* plane;    // [N, S] sums over channels: the gradient of the noise; or null
};

template <typename T, Level level>
GGF_INLINE void backward_pieces(const Shape& s, const Activation<Compute<T>>& a, const Backward<T>& b, int64_t begin, int64_t end) {
  using A = Compute<T>;
  using V = Vector<A, level>;
  const int64_t C = s.channels;
  const A positive = a.bias ? a.gain : A(1), negative = a.bias ? a.gain * a.slope : A(1);
  const A undo_positive = 1 / positive, undo_negative = 1 / negative;
  for (int64_t part = begin; part < end; ++part) {
    const int64_t sample = part / s.pieces(), first = part % s.pieces() * piece;
    const int64_t last = std::min(first + piece, s.positions);
    const A* GGF_RESTRICT d = a.demodulation ? a.demodulation + sample * C : nullptr;
    const A* GGF_RESTRICT bias = a.bias;
    A* GGF_RESTRICT dots = b.dots ? b.dots + part * C : nullptr;
    A* GGF_RESTRICT sums = b.sums ? b.sums + part * C : nullptr;
    if (dots) std::fill_n(dots, C, A(0));
    if (sums) std::fill_n(sums, C, A(0));
    for (int64_t position = first; position < last; ++position) {
      const int64_t offset = (sample * s.positions + position) * C;
      const T* GGF_RESTRICT grad = b.grad + offset;
      const T* GGF_RESTRICT y = b.y ? b.y + offset : grad;
      T* GGF_RESTRICT result = b.result + offset;
      const auto slope = [&](int64_t c) GGF_INLINE_LAMBDA { return was_positive(load(y[c])) ? positive : negative; };
      if (dots) {
        const A shift = a.noise ? a.noise[sample * a.noise_stride + position] * a.strength : A(0);
        if (bias) {
          for (int64_t c = 0; c < C; ++c) {
            const A value = load(y[c]);
            const A argument = value * (was_positive(value) ? undo_positive : undo_negative) - shift - bias[c];
            dots[c] += load(grad[c]) * slope(c) * argument;
          }
        } else {
          for (int64_t c = 0; c < C; ++c) dots[c] += load(grad[c]) * load(y[c]);
        }
      }
      if (sums)
        for (int64_t c = 0; c < C; ++c) sums[c] += load(grad[c]) * slope(c);
      if (b.plane) {
        V total{};
        int64_t c = 0;
        for (; c + lanes<A> <= C; c += lanes<A>) {
          const V factor = choose_lanes<true>(load_vector<V>(y + c), positive, negative);
          total += load_vector<V>(grad + c) * factor;
        }
        A rest = 0;
        for (; c < C; ++c) rest += load(grad[c]) * slope(c);
        b.plane[sample * s.positions + position] = add_lanes<A>(total) + rest;
      }
      if (d) {
        for (int64_t c = 0; c < C; ++c) result[c] = store<T>(load(grad[c]) * slope(c) * d[c]);
      } else {
        for (int64_t c = 0; c < C; ++c) result[c] = store<T>(load(grad[c]) * slope(c));
      }
    }
  }
}

// ---- 1x1 convolutions to few channels: a weight per sample costs nothing, and one pass over x is all

inline constexpr int64_t few = 4;

// y [N, S, outs] from x [N, S, C] and weight [N, outs, C].
template <typename T, int outs, Level level>
GGF_INLINE void to_few_pixels(const Shape& s, const T* x, const Compute<T>* weight, T* y, int64_t begin, int64_t end) {
  using A = Compute<T>;
  using V = Vector<A, level>;
  const int64_t C = s.channels;
  for (int64_t pixel = begin; pixel < end; ++pixel) {
    const T* source = x + pixel * C;
    const A* w = weight + pixel / s.positions * outs * C;
    V sums[outs] = {};
    A rest[outs] = {};
    int64_t c = 0;
    for (; c + lanes<A> <= C; c += lanes<A>) {
      const V value = load_vector<V>(source + c);
#pragma GCC unroll 4
      for (int o = 0; o < outs; ++o) sums[o] += value * load_vector<V>(w + o * C + c);
    }
    for (; c < C; ++c)
      for (int o = 0; o < outs; ++o) rest[o] += load(source[c]) * w[o * C + c];
    for (int o = 0; o < outs; ++o) y[pixel * outs + o] = store<T>(add_lanes<A>(sums[o]) + rest[o]);
  }
}

// grad_x [N, S, C] from grad [N, S, outs], and products [pieces of all samples, outs, C] = sums of grad * x; either may be null.
template <typename T, int outs>
GGF_INLINE void from_few_pieces(const Shape& s, const T* grad, const T* x, const Compute<T>* weight, T* grad_x,
                                Compute<T>* products, int64_t begin, int64_t end) {
  using A = Compute<T>;
  const int64_t C = s.channels;
  for (int64_t part = begin; part < end; ++part) {
    const int64_t sample = part / s.pieces(), first = part % s.pieces() * piece;
    const int64_t last = std::min(first + piece, s.positions);
    const A* GGF_RESTRICT w = weight + sample * outs * C;
    A* GGF_RESTRICT sums = products ? products + part * outs * C : nullptr;
    if (sums) std::fill_n(sums, outs * C, A(0));
    for (int64_t pixel = sample * s.positions + first; pixel < sample * s.positions + last; ++pixel) {
      A g[outs];
      for (int o = 0; o < outs; ++o) g[o] = load(grad[pixel * outs + o]);
      if (grad_x) {
        T* GGF_RESTRICT target = grad_x + pixel * C;
        for (int64_t c = 0; c < C; ++c) {
          A value = 0;
          for (int o = 0; o < outs; ++o) value += g[o] * w[o * C + c];
          target[c] = store<T>(value);
        }
      }
      if (sums) {
        const T* GGF_RESTRICT source = x + pixel * C;
        for (int64_t c = 0; c < C; ++c) {
          const A value = load(source[c]);
          for (int o = 0; o < outs; ++o) sums[o * C + c] += g[o] * value;
        }
      }
    }
  }
}

}  // namespace ggf::modulation
