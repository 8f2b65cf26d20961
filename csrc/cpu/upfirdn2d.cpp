// SPDX-License-Identifier: Apache-2.0
// Upsample, filter, downsample without ever forming the zero-stuffed signal. Maths: gangealing_fast/ops/upfirdn2d.py.
//
// Of the fh taps that meet one output row, only those that hit samples and not inserted zeros count: at most ceil(fh / up). An
// output row is made in two steps on rows of width * channels numbers: a vertical pass that adds the input rows (plain vectors in
// either layout; a contiguous plane is an image of one channel), and a horizontal pass within a zero-padded buffer.
// A separable filter, found by its rank, takes one vertical and one horizontal pass; any other takes a horizontal pass per row.
#include "levels.h"
#include "rows.h"
#include "writer.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace ggf::upfirdn2d {

template <typename A>
struct Plan {
  int64_t channels, height, width, out_height, out_width;
  int64_t fh, fw, up, down, px0, py0;
  bool separable;
  std::vector<A> vertical;      // [fh], separable only
  std::vector<A> horizontal;    // [fw], or [fh, fw] where not separable; correlated, not convolved, and times the gain
  int64_t elements;             // of the output
  int64_t tile;                 // output columns made together, so that the buffers stay in the cache
  std::vector<int64_t> counts;  // [up], how many taps meet samples at each phase
};

struct Meeting {
  int64_t first;  // the first sample that a tap meets
  int64_t phase;  // that tap
};

// Taps phase, phase + up, ... meet samples first, first + 1, ...
GGF_INLINE Meeting meet(int64_t output, int64_t up, int64_t down, int64_t pad) {
  const int64_t start = output * down - pad;
  int64_t first = start / up;
  if (first * up < start) ++first;  // rounds up for either sign
  return {first, first * up - start};
}

// Output columns [begin, end) from `v`, whose first column is input column `origin`. `fixed` channels, or any number where 0.
template <typename T, bool accumulate, int64_t fixed, typename Out>
GGF_INLINE void filter_row(const Plan<Compute<T>>& p, const Compute<T>* taps, const Compute<T>* GGF_RESTRICT v, int64_t origin,
                           int64_t begin, int64_t end, Out* GGF_RESTRICT out) {
  using A = Compute<T>;
  const int64_t C = fixed ? fixed : p.channels;
  auto put = [&](int64_t i, A value) GGF_INLINE_LAMBDA {
    if constexpr (accumulate) value += static_cast<A>(out[i]);
    out[i] = store<Out>(value);
  };
  if (p.up == 1 && p.fw == 4 && (p.down == 1 || C == 1)) {
    const A* GGF_RESTRICT w = v + (begin * p.down - p.px0 - origin) * C;
    const A t0 = taps[0], t1 = taps[1], t2 = taps[2], t3 = taps[3];
    const int64_t n = (end - begin) * C;
    if (p.down == 1) {
      for (int64_t i = 0; i < n; ++i) put(i, (t0 * w[i] + t1 * w[i + C]) + (t2 * w[i + 2 * C] + t3 * w[i + 3 * C]));
      return;
    }
    if (p.down == 2) {
      for (int64_t i = 0; i < n; ++i) put(i, (t0 * w[2 * i] + t1 * w[2 * i + 1]) + (t2 * w[2 * i + 2] + t3 * w[2 * i + 3]));
      return;
    }
  }
  if (p.up == 2 && p.down == 1 && p.fw == 4 && C == 1) {
    int64_t x = begin;
    const auto single = [&](int64_t column) GGF_INLINE_LAMBDA {
      const Meeting at = meet(column, 2, 1, p.px0);
      const A* w = v + (at.first - origin);
      put(column - begin, taps[at.phase] * w[0] + taps[at.phase + 2] * w[1]);
    };
    if (x < end && meet(x, 2, 1, p.px0).phase == 1) single(x++);
    // From here on an even and an odd output share their samples.
    const A* GGF_RESTRICT w = v + (meet(x, 2, 1, p.px0).first - origin);
    const A t0 = taps[0], t1 = taps[1], t2 = taps[2], t3 = taps[3];
    const int64_t pairs = (end - x) / 2, base = x - begin;
    for (int64_t i = 0; i < pairs; ++i) {
      put(base + 2 * i, t0 * w[i] + t2 * w[i + 1]);
      put(base + 2 * i + 1, t1 * w[i + 1] + t3 * w[i + 2]);
    }
    if (x + 2 * pairs < end) single(end - 1);
    return;
  }
  Meeting at = meet(begin, p.up, p.down, p.px0);
  for (int64_t x = begin; x < end; ++x) {
    const A* GGF_RESTRICT w = v + (at.first - origin) * C;
    const int64_t count = p.counts[at.phase];
    const A* GGF_RESTRICT t = taps + at.phase;
    Out* GGF_RESTRICT o = out + (x - begin) * C;
    const auto put_at = [&](int64_t c, A value) GGF_INLINE_LAMBDA {
      if constexpr (accumulate) value += static_cast<A>(o[c]);
      o[c] = store<Out>(value);
    };
    if (count == 2) {
      const A t0 = t[0], t1 = t[p.up];
      for (int64_t c = 0; c < C; ++c) put_at(c, t0 * w[c] + t1 * w[c + C]);
    } else if (count == 4) {
      const A t0 = t[0], t1 = t[p.up], t2 = t[2 * p.up], t3 = t[3 * p.up];
      for (int64_t c = 0; c < C; ++c) put_at(c, (t0 * w[c] + t1 * w[c + C]) + (t2 * w[c + 2 * C] + t3 * w[c + 3 * C]));
    } else {
      for (int64_t c = 0; c < C; ++c) {
        A sum = 0;
        for (int64_t k = 0; k < count; ++k) sum += t[k * p.up] * w[c + k * C];
        put_at(c, sum);
      }
    }
    // What meet(x + 1) would find, without its division.
    for (at.phase -= p.down; at.phase < 0; at.phase += p.up) ++at.first;
  }
}

// The horizontal pass over columns [begin, end), of which some taps lie outside the image.
template <typename T>
GGF_INLINE void blur_edge(const Plan<Compute<T>>& p, const T* source, int64_t begin, int64_t end, Compute<T>* out) {
  for (int64_t x = begin; x < end; ++x) {
    const T* columns[4] = {source, source, source, source};
    Compute<T> taps[4] = {};
    int64_t count = 0;
    for (int64_t k = 0; k < 4; ++k) {
      const int64_t i = x - p.px0 + k;
      if (i < 0 || i >= p.width) continue;
      columns[count] = source + i * p.channels;
      taps[count++] = p.horizontal[k];
    }
    add_rows<T>(columns, taps, count, 0, p.channels, out + x * p.channels);
  }
}

// The horizontal pass over elements [begin, end) of a row, of which all taps lie inside. `fixed` is their number, or 0.
template <int64_t fixed, typename T>
GGF_INLINE void blur_inner(const Plan<Compute<T>>& p, const T* source, int64_t begin, int64_t end, Compute<T>* row) {
  using A = Compute<T>;
  const int64_t count = fixed ? fixed : end - begin;
  const int64_t C = p.channels;
  const T* GGF_RESTRICT w = source + (begin - p.px0 * C);
  A* GGF_RESTRICT out = row + begin;
  const A t0 = p.horizontal[0], t1 = p.horizontal[1], t2 = p.horizontal[2], t3 = p.horizontal[3];
  fetch_ahead(w, count);
  for (int64_t j = 0; j < count; ++j)
    out[j] = (t0 * load(w[j]) + t1 * load(w[j + C])) + (t2 * load(w[j + 2 * C]) + t3 * load(w[j + 3 * C]));
}

// The vertical pass over `count` elements (`fixed`, unless that is 0) of one output row, or of two.
template <bool pair, int64_t fixed, typename T, typename A = Compute<T>>
GGF_INLINE void blur_vertical(const A* taps, const A* GGF_RESTRICT a, const A* GGF_RESTRICT b, const A* GGF_RESTRICT c,
                              const A* GGF_RESTRICT d, const A* GGF_RESTRICT e, int64_t count, T* GGF_RESTRICT upper,
                              T* GGF_RESTRICT lower) {
  const A t0 = taps[0], t1 = taps[1], t2 = taps[2], t3 = taps[3];
  if (fixed) count = fixed;
  for (int64_t j = 0; j < count; ++j) {
    upper[j] = store<T>((t0 * a[j] + t1 * b[j]) + (t2 * c[j] + t3 * d[j]));
    if constexpr (pair) lower[j] = store<T>((t0 * b[j] + t1 * c[j]) + (t2 * d[j] + t3 * e[j]));
  }
}

// Output rows [begin, end), counted over all images, of a blur: no up- or downsampling, a separable filter of 4 x 4. The horizontal
// pass comes first: every input row is read once, and its result waits for the vertical passes that need it. Two output rows are
// made at a time, which read five of those results instead of eight.
template <typename T>
GGF_INLINE void blur_rows(const Plan<Compute<T>>& p, const T* x, T* y, int64_t begin, int64_t end) {
  using A = Compute<T>;
  const int64_t C = p.channels, n = p.out_width * C;
  // Columns [left, right) have all their taps inside.
  const int64_t left = std::clamp<int64_t>(p.px0, 0, p.out_width);
  const int64_t right = std::clamp<int64_t>(p.width + p.px0 - 3, left, p.out_width);
  // Narrow types are bound by their conversion, and writing past the caches makes that no shorter.
  const int64_t elements = sizeof(T) < sizeof(float) ? 0 : p.elements;
  std::vector<A> buffer(5 * n);
  A* rows[5];
  for (int64_t k = 0; k < 5; ++k) rows[k] = buffer.data() + k * n;
  // Row i of the image, or nothing where it lies outside; its horizontal pass begins with what blur_inner leaves out.
  const auto open = [&](const T* image, int64_t i, A* row) GGF_INLINE_LAMBDA -> const T* {
    if (i < 0 || i >= p.height) {
      std::fill_n(row, n, A(0));
      return nullptr;
    }
    const T* source = image + i * p.width * C;
    blur_edge<T>(p, source, 0, left, row);
    blur_edge<T>(p, source, right, p.out_width, row);
    return source;
  };
  for (int64_t at = begin; at < end;) {
    const T* image = x + at / p.out_height * p.height * p.width * C;
    const int64_t first = at % p.out_height - p.py0;
    const bool pair = at + 1 < end && at % p.out_height + 1 < p.out_height;
    if (at == begin || at % p.out_height == 0)
      for (int64_t k = 0; k < 3; ++k)
        if (const T* source = open(image, first + k, rows[k])) blur_inner<0>(p, source, left * C, right * C, rows[k]);
    const T* fourth = open(image, first + 3, rows[3]);
    const T* fifth = pair ? open(image, first + 4, rows[4]) : nullptr;
    Writer<T> upper(y + at * n, elements), lower(y + (at + pair) * n, elements);
    for (int64_t from = 0; from < n; from += Writer<T>::step) {
      const int64_t count = std::min(n - from, Writer<T>::step);
      const int64_t inner = std::max(from, left * C), inner_end = std::min(from + count, right * C);
      constexpr int64_t step = Writer<T>::step;
      if (inner_end - inner == step) {  // with a number of elements that the compiler knows
        if (fourth) blur_inner<step>(p, fourth, inner, inner_end, rows[3]);
        if (fifth) blur_inner<step>(p, fifth, inner, inner_end, rows[4]);
      } else if (inner < inner_end) {
        if (fourth) blur_inner<0>(p, fourth, inner, inner_end, rows[3]);
        if (fifth) blur_inner<0>(p, fifth, inner, inner_end, rows[4]);
      }
      const A *a = rows[0] + from, *b = rows[1] + from, *c = rows[2] + from, *d = rows[3] + from, *e = rows[4] + from;
      const A* taps = p.vertical.data();
      if (pair && count == step)
        blur_vertical<true, step, T>(taps, a, b, c, d, e, count, upper.room(), lower.room());
      else if (pair)
        blur_vertical<true, 0, T>(taps, a, b, c, d, e, count, upper.room(), lower.room());
      else
        blur_vertical<false, 0, T>(taps, a, b, c, d, e, count, upper.room(), upper.room());
      if (pair) lower.advance(count);
      upper.advance(count);
    }
    upper.finish();
    if (pair) lower.finish();
    std::rotate(rows, rows + 1 + pair, rows + 5);
    at += 1 + pair;
  }
}

// Rows whose vertical passes run before the first one's horizontal pass, which would otherwise wait for stores still under way.
inline constexpr int64_t batch = 4;

// Output rows [begin, end), counted over all images.
template <typename T>
GGF_INLINE void filter_rows(const Plan<Compute<T>>& p, const T* x, T* y, int64_t begin, int64_t end) {
  using A = Compute<T>;
  const int64_t C = p.channels, span = ceil_divide((p.tile - 1) * p.down + p.fw, p.up) + 2;
  const int64_t most = std::max<int64_t>(ceil_divide(p.fh, p.up), 4);
  std::vector<A> buffer(batch * span * C), sums(p.separable ? 0 : p.tile * C), weights(batch * most);
  std::vector<const T*> rows(batch * most, x);
  std::vector<int64_t> taps(batch * most);
  int64_t counts[batch];
  for (int64_t top = begin; top < end; top += batch) {
    const int64_t size = std::min(batch, end - top);
    for (int64_t r = 0; r < size; ++r) {
      const T* image = x + (top + r) / p.out_height * p.height * p.width * C;
      const Meeting at = meet((top + r) % p.out_height, p.up, p.down, p.py0);
      int64_t count = r * most;
      for (int64_t k = at.phase, i = at.first; k < p.fh; k += p.up, ++i) {
        if (i < 0 || i >= p.height) continue;
        rows[count] = image + i * p.width * C;
        weights[count] = p.separable ? p.vertical[k] : A(1);
        taps[count++] = k;
      }
      counts[r] = count - r * most;
    }
    for (int64_t left = 0; left < p.out_width; left += p.tile) {
      const int64_t right = std::min(p.out_width, left + p.tile);
      const int64_t origin = meet(left, p.up, p.down, p.px0).first;
      const int64_t stop = origin + ceil_divide((right - 1 - left) * p.down + p.fw, p.up) + 2;  // beyond the last sample
      const int64_t inner = std::clamp<int64_t>(0, origin, stop), inner_stop = std::clamp(p.width, inner, stop);
      const int64_t n = (inner_stop - inner) * C;
      for (int64_t r = 0; r < size; ++r) {
        A* v = buffer.data() + r * span * C;
        std::fill(v, v + (inner - origin) * C, A(0));
        std::fill(v + (inner_stop - origin) * C, v + (stop - origin) * C, A(0));
        if (p.separable) add_rows<T>(&rows[r * most], &weights[r * most], counts[r], inner * C, n, v + (inner - origin) * C);
      }
      for (int64_t r = 0; r < size; ++r) {
        A* v = buffer.data() + r * span * C;
        T* GGF_RESTRICT out = y + ((top + r) * p.out_width + left) * C;
        if (p.separable) {
          if (C == 3)  // colour images
            filter_row<T, false, 3, T>(p, p.horizontal.data(), v, origin, left, right, out);
          else
            filter_row<T, false, 0, T>(p, p.horizontal.data(), v, origin, left, right, out);
          continue;
        }
        A* GGF_RESTRICT total = sums.data();
        A* GGF_RESTRICT samples = v + (inner - origin) * C;
        for (int64_t i = 0; i < (right - left) * C; ++i) total[i] = 0;
        for (int64_t k = r * most; k < r * most + counts[r]; ++k) {
          const T* GGF_RESTRICT source = rows[k] + inner * C;
          for (int64_t i = 0; i < n; ++i) samples[i] = load(source[i]);
          filter_row<T, true, 0, A>(p, p.horizontal.data() + taps[k] * p.fw, v, origin, left, right, total);
        }
        for (int64_t i = 0; i < (right - left) * C; ++i) out[i] = store<T>(total[i]);
      }
    }
  }
}

// Splits the filter, as correlated, into column times row where it has rank one.
template <typename A>
void split(const A* f, bool mirrored, A gain, Plan<A>& p) {
  std::vector<A> taps(p.fh * p.fw);
  for (int64_t i = 0; i < p.fh * p.fw; ++i) taps[i] = mirrored ? f[i] : f[p.fh * p.fw - 1 - i];
  int64_t pivot = 0;
  for (int64_t i = 0; i < p.fh * p.fw; ++i)
    if (std::abs(taps[i]) > std::abs(taps[pivot])) pivot = i;
  const int64_t row = pivot / p.fw, column = pivot % p.fw;
  p.vertical.assign(p.fh, A(0));
  p.horizontal.assign(taps.begin() + row * p.fw, taps.begin() + (row + 1) * p.fw);
  if (taps[pivot] != 0)
    for (int64_t k = 0; k < p.fh; ++k) p.vertical[k] = taps[k * p.fw + column] / taps[pivot];
  // Products of rounded taps are off by an unit in the last place or two.
  const A tolerance = std::abs(taps[pivot]) * 4 * std::numeric_limits<A>::epsilon();
  p.separable = true;
  for (int64_t i = 0; i < p.fh * p.fw; ++i)
    if (!(std::abs(p.vertical[i / p.fw] * p.horizontal[i % p.fw] - taps[i]) <= tolerance)) p.separable = false;
  if (!p.separable) p.horizontal = taps;
  for (A& tap : p.horizontal) tap *= gain;
}

Tensor forward(const Tensor& x_, const Tensor& f_, int64_t up, int64_t down, int64_t px0, int64_t px1, int64_t py0, int64_t py1,
               double gain, bool mirrored) {
  STD_TORCH_CHECK(x_.dim() == 4 && f_.dim() == 2 && f_.numel() > 0, "upfirdn2d: x must be [N, C, H, W], f [fh, fw]");
  STD_TORCH_CHECK(up >= 1 && down >= 1, "upfirdn2d: up and down must be at least 1");
  const bool channels_last = is_channels_last(x_);
  const Tensor x = in_layout(x_, channels_last), f = torch::stable::contiguous(f_);
  const int64_t height = x.size(2), width = x.size(3), fh = f.size(0), fw = f.size(1);
  const int64_t out_height = floor_divide(height * up + py0 + py1 - fh, down) + 1;
  const int64_t out_width = floor_divide(width * up + px0 + px1 - fw, down) + 1;
  STD_TORCH_CHECK(out_height >= 1 && out_width >= 1, "upfirdn2d: the output would be empty");
  const Tensor y = empty({x.size(0), x.size(1), out_height, out_width}, x.scalar_type(), channels_last);
  if (y.numel() == 0) return y;
  dispatch_floating(x.scalar_type(), "upfirdn2d", [&]<typename T>() {
    using A = Compute<T>;
    const int64_t channels = channels_last ? x.size(1) : 1;
    const int64_t tile = std::clamp<int64_t>(4096 / channels * up / down, 16, std::max<int64_t>(out_width, 16));
    Plan<A> p{channels, height, width, out_height, out_width, fh, fw, up, down, px0, py0, false, {}, {}, y.numel(), tile, {}};
    for (int64_t phase = 0; phase < up; ++phase) p.counts.push_back(phase < fw ? ceil_divide(fw - phase, up) : 0);
    split<A>(f.const_data_ptr<A>(), mirrored, static_cast<A>(gain), p);
    const T* source = x.const_data_ptr<T>();
    T* target = y.mutable_data_ptr<T>();
    const int64_t images = channels_last ? x.size(0) : x.size(0) * x.size(1);
    const bool long_rows = out_width * channels >= 4096;  // worth the beginning and the end of each
    if (p.separable && up == 1 && down == 1 && fh == 4 && fw == 4 && long_rows)
      parallel_for(0, images * out_height, grain(out_width * channels),
                   [&](int64_t begin, int64_t end) { at_level<blur_rows<T>>(p, source, target, begin, end); });
    else
      parallel_for(0, images * out_height, grain(out_width * channels),
                   [&](int64_t begin, int64_t end) { at_level<filter_rows<T>>(p, source, target, begin, end); });
  });
  return y;
}

}  // namespace ggf::upfirdn2d

STABLE_TORCH_LIBRARY_IMPL(gangealing_fast, CPU, m) { m.impl("upfirdn2d", TORCH_BOX(&ggf::upfirdn2d::forward)); }
