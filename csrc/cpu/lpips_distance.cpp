// SPDX-License-Identifier: Apache-2.0
// Normalise, difference, head and spatial mean in one pass over two feature maps. Maths: gangealing_fast/ops/lpips_distance.py.
//
// Channels-last maps are taken pixel by pixel: its channels stay in the first cache between the sums and what needs them.
// Contiguous maps are taken in short rows of pixels, channel after channel, and vectors run along the pixels. Nothing but the
// gradients is written; the backward finds the norms anew. Sums are taken over fixed pieces of one sample and then in
// order, so that the result does not depend on the number of threads.
#include "levels.h"
#include "vectors.h"
#include "writer.h"

#include <algorithm>
#include <cmath>
#include <tuple>

namespace ggf::lpips_distance {

inline constexpr double epsilon = 1e-10;
inline constexpr int64_t piece = 256;  // pixels whose sums are taken together
inline constexpr int64_t row = 64;     // pixels of a contiguous map that are handled together; divides piece

template <typename T>
struct Problem {
  using A = Compute<T>;
  const T* a;
  const T* b;
  const A* head;
  const A* grad;  // [N], times 2 / positions; null in the forward
  T* grad_a;      // null where not wanted
  T* grad_b;
  A* head_sums;                              // [pieces, C], or null
  A* distance;                               // [pieces], forward only
  int64_t channels, positions, pieces_each;  // pieces_each: pieces of one sample
  int64_t elements;                          // of a map
};

// The difference of the two unit vectors is (a * of_a - b * of_b) * scale: exactly 0 for equal features, however the compiler
// contracts it, as one of the factors is 1 then.
template <typename A>
struct Factors {
  A of_a, of_b, scale;
};

template <typename A>
GGF_INLINE Factors<A> factors(A inverse_a, A inverse_b) {
  return inverse_a > 0 ? Factors<A>{1, inverse_b / inverse_a, inverse_a} : Factors<A>{0, 1, inverse_b};
}

template <typename A>
GGF_INLINE A inverse_norm(A squared) {
  return squared > 0 ? 1 / (std::sqrt(squared) + A(epsilon)) : A(0);
}

// 1 / (norm * (norm + epsilon)), the curvature of the sphere, from the inverse norm; 0 for a dead pixel.
template <typename A>
GGF_INLINE A along(A inverse) {
  return inverse > 0 ? inverse / (1 / inverse - A(epsilon)) : A(0);
}

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

// (Whether channels-last, both maps in the layout of the first, the head in the type computed in).
std::tuple<bool, Tensor, Tensor, Tensor> arguments(const Tensor& a, const Tensor& b, const Tensor& head) {
  STD_TORCH_CHECK(a.dim() == 4 && sizes_of(a) == sizes_of(b) && a.scalar_type() == b.scalar_type() && head.numel() == a.size(1),
                  "lpips_distance: a and b must agree in shape and dtype, head must have one entry per channel");
  const ScalarType compute = a.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  const bool channels_last = is_channels_last(a);
  return {channels_last, in_layout(a, channels_last), in_layout(b, channels_last),
          torch::stable::contiguous(torch::stable::to(head, compute))};
}

Tensor forward(const Tensor& a_, const Tensor& b_, const Tensor& head_) {
  const auto [channels_last, a, b, head] = arguments(a_, b_, head_);
  const int64_t batch = a.size(0), channels = a.size(1), positions = a.size(2) * a.size(3);
  const Tensor result = empty({batch}, head.scalar_type());
  const int64_t each = ceil_divide(positions, piece);
  dispatch_floating(a.scalar_type(), "lpips_distance", [&]<typename T>() {
    using A = Compute<T>;
    std::vector<A> distance(batch * each);
    const Problem<T> p{a.const_data_ptr<T>(),
                       b.const_data_ptr<T>(),
                       head.const_data_ptr<A>(),
                       nullptr,
                       nullptr,
                       nullptr,
                       nullptr,
                       distance.data(),
                       channels,
                       positions,
                       each,
                       a.numel()};
    parallel_for(0, batch * each, grain(piece * channels), [&](int64_t begin, int64_t end) {
      if (!channels_last) return at_level<forward_planes<T>>(p, begin, end);
      at_each_level<[]<Level level>(const auto&... all) GGF_INLINE_LAMBDA { forward_pixels<T, level>(all...); }>(p, begin, end);
    });
    A* out = result.mutable_data_ptr<A>();
    for (int64_t n = 0; n < batch; ++n) {
      A total = 0;
      for (int64_t i = 0; i < each; ++i) total += distance[n * each + i];
      out[n] = total / static_cast<A>(positions);
    }
  });
  return result;
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad_, const Tensor& a_, const Tensor& b_, const Tensor& head_,
                                            bool need_a, bool need_b, bool need_head) {
  const auto [channels_last, a, b, head] = arguments(a_, b_, head_);
  const int64_t batch = a.size(0), channels = a.size(1), positions = a.size(2) * a.size(3);
  STD_TORCH_CHECK(grad_.numel() == batch, "lpips_distance_backward: grad must have one entry per sample");
  const Tensor grad = torch::stable::contiguous(torch::stable::to(grad_, head.scalar_type()));
  const std::vector<int64_t> nothing{0};
  const Tensor grad_a = empty(need_a ? sizes_of(a) : nothing, a.scalar_type(), channels_last && need_a);
  const Tensor grad_b = empty(need_b ? sizes_of(b) : nothing, b.scalar_type(), channels_last && need_b);
  const Tensor grad_head = empty({need_head ? channels : 0}, head.scalar_type());
  const int64_t each = ceil_divide(positions, piece), pieces = batch * each;
  dispatch_floating(a.scalar_type(), "lpips_distance_backward", [&]<typename T>() {
    using A = Compute<T>;
    std::vector<A> scales(batch), sums(need_head ? pieces * channels : 0);
    for (int64_t n = 0; n < batch; ++n) scales[n] = 2 * grad.const_data_ptr<A>()[n] / static_cast<A>(positions);
    const Problem<T> p{a.const_data_ptr<T>(),
                       b.const_data_ptr<T>(),
                       head.const_data_ptr<A>(),
                       scales.data(),
                       need_a ? grad_a.mutable_data_ptr<T>() : nullptr,
                       need_b ? grad_b.mutable_data_ptr<T>() : nullptr,
                       need_head ? sums.data() : nullptr,
                       nullptr,
                       channels,
                       positions,
                       each,
                       a.numel()};
    parallel_for(0, pieces, grain(piece * channels), [&](int64_t begin, int64_t end) {
      if (!channels_last) return at_level<backward_planes<T>>(p, begin, end);
      at_each_level<[]<Level level>(const auto&... all) GGF_INLINE_LAMBDA { backward_pixels<T, level>(all...); }>(p, begin, end);
    });
    if (!need_head) return;
    A* out = grad_head.mutable_data_ptr<A>();
    std::fill_n(out, channels, A(0));
    for (int64_t part = 0; part < pieces; ++part)
      for (int64_t c = 0; c < channels; ++c) out[c] += sums[part * channels + c];
  });
  return {grad_a, grad_b, torch::stable::to(grad_head, head_.scalar_type())};
}

}  // namespace ggf::lpips_distance

STABLE_TORCH_LIBRARY_IMPL(gangealing_fast, CPU, m) {
  m.impl("lpips_distance", TORCH_BOX(&ggf::lpips_distance::forward));
  m.impl("lpips_distance_backward", TORCH_BOX(&ggf::lpips_distance::backward));
}
