// SPDX-License-Identifier: Apache-2.0
// Upsample, filter, downsample without ever forming the zero-stuffed signal. Maths: gangealing_fast/ops/upfirdn2d.py.
//
// Of the fh taps that meet one output row, only those that hit samples and not inserted zeros count: at most ceil(fh / up). An output
// row is made in two steps on rows of width * channels numbers: a vertical pass that adds the input rows (plain vectors
// in either layout; a contiguous plane is an image of one channel), and a horizontal pass within a zero-padded buffer.
// A separable filter, found by its rank, takes one vertical and one horizontal pass; any other takes a horizontal pass per row.
#include "rows.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace ggf::upfirdn2d {

template <typename A>
struct Plan {
  int64_t channels, height, width, out_height, out_width;
  int64_t fh, fw, up, down, px0, py0;
  bool separable;
  std::vector<A> vertical;    // [fh], separable only
  std::vector<A> horizontal;  // [fw], or [fh, fw] where not separable; correlated, not convolved, and times the gain
  int64_t tile;               // output columns made together, so that the buffers stay in the cache
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

// Output columns [begin, end) from `v`, whose first column is input column `origin`.
template <typename T, bool accumulate, typename Out>
GGF_INLINE void filter_row(const Plan<Compute<T>>& p, const Compute<T>* taps, const Compute<T>* GGF_RESTRICT v,
                           int64_t origin, int64_t begin, int64_t end, Out* GGF_RESTRICT out) {
  using A = Compute<T>;
  const int64_t C = p.channels;
  auto put = [&](int64_t i, A value) GGF_INLINE_LAMBDA {
    if constexpr (accumulate) value += static_cast<A>(out[i]);
    out[i] = store<Out>(value);
  };
  if (p.up == 1 && p.fw == 4 && (p.down == 1 || C == 1)) {
    const A* GGF_RESTRICT w = v + (begin * p.down - p.px0 - origin) * C;
    const A t0 = taps[0], t1 = taps[1], t2 = taps[2], t3 = taps[3];
    const int64_t n = (end - begin) * C;
    if (p.down == 1) {
      for (int64_t i = 0; i < n; ++i)
        put(i, (t0 * w[i] + t1 * w[i + C]) + (t2 * w[i + 2 * C] + t3 * w[i + 3 * C]));
      return;
    }
    if (p.down == 2) {
      for (int64_t i = 0; i < n; ++i)
        put(i, (t0 * w[2 * i] + t1 * w[2 * i + 1]) + (t2 * w[2 * i + 2] + t3 * w[2 * i + 3]));
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
  for (int64_t x = begin; x < end; ++x) {
    const Meeting at = meet(x, p.up, p.down, p.px0);
    const A* GGF_RESTRICT w = v + (at.first - origin) * C;
    const int64_t count = at.phase < p.fw ? (p.fw - at.phase + p.up - 1) / p.up : 0;
    const A* t = taps + at.phase;
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
      for (int64_t c = 0; c < C; ++c)
        put_at(c, (t0 * w[c] + t1 * w[c + C]) + (t2 * w[c + 2 * C] + t3 * w[c + 3 * C]));
    } else {
      for (int64_t c = 0; c < C; ++c) {
        A sum = 0;
        for (int64_t k = 0; k < count; ++k) sum += t[k * p.up] * w[c + k * C];
        put_at(c, sum);
      }
    }
  }
}

// Output rows [begin, end), counted over all images.
template <typename T>
GGF_MULTIVERSION void filter_rows(const Plan<Compute<T>>& p, const T* x, T* y, int64_t begin, int64_t end) {
  using A = Compute<T>;
  const int64_t C = p.channels, span = ceil_divide((p.tile - 1) * p.down + p.fw, p.up) + 2;
  std::vector<A> buffer(span * C), sums(p.separable ? 0 : p.tile * C), weights(std::max<int64_t>(p.fh, 4));
  std::vector<const T*> rows(std::max<int64_t>(p.fh, 4), x);
  std::vector<int64_t> tap_rows(p.fh);
  for (int64_t row = begin; row < end; ++row) {
    const T* image = x + row / p.out_height * p.height * p.width * C;
    const Meeting at = meet(row % p.out_height, p.up, p.down, p.py0);
    int64_t count = 0;
    for (int64_t k = at.phase, i = at.first; k < p.fh; k += p.up, ++i) {
      if (i < 0 || i >= p.height) continue;
      rows[count] = image + i * p.width * C;
      tap_rows[count] = k;
      weights[count++] = p.separable ? p.vertical[k] : A(1);
    }
    for (int64_t left = 0; left < p.out_width; left += p.tile) {
      const int64_t right = std::min(p.out_width, left + p.tile);
      const int64_t origin = meet(left, p.up, p.down, p.px0).first;
      const int64_t stop = origin + ceil_divide((right - 1 - left) * p.down + p.fw, p.up) + 2;  // beyond the last sample
      const int64_t inner_first = std::clamp<int64_t>(0, origin, stop), inner_stop = std::clamp(p.width, inner_first, stop);
      A* v = buffer.data();
      std::fill(v, v + (inner_first - origin) * C, A(0));
      std::fill(v + (inner_stop - origin) * C, v + (stop - origin) * C, A(0));
      A* inner = v + (inner_first - origin) * C;
      const int64_t n = (inner_stop - inner_first) * C;
      T* out = y + (row * p.out_width + left) * C;
      if (p.separable) {
        add_rows<T>(rows.data(), weights.data(), count, inner_first * C, n, inner);
        filter_row<T, false, T>(p, p.horizontal.data(), v, origin, left, right, out);
      } else {
        A* GGF_RESTRICT total = sums.data();
        const int64_t size = (right - left) * C;
        for (int64_t i = 0; i < size; ++i) total[i] = 0;
        for (int64_t k = 0; k < count; ++k) {
          const T* GGF_RESTRICT source = rows[k] + inner_first * C;
          for (int64_t i = 0; i < n; ++i) inner[i] = load(source[i]);
          filter_row<T, true, A>(p, p.horizontal.data() + tap_rows[k] * p.fw, v, origin, left, right, total);
        }
        for (int64_t i = 0; i < size; ++i) out[i] = store<T>(total[i]);
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

Tensor forward(const Tensor& x_, const Tensor& f_, int64_t up, int64_t down, int64_t px0, int64_t px1, int64_t py0,
               int64_t py1, double gain, bool mirrored) {
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
    const int64_t tile = std::clamp<int64_t>(8192 / channels * up / down, 16, std::max<int64_t>(out_width, 16));
    Plan<A> p{channels, height, width, out_height, out_width, fh, fw, up, down, px0, py0, false, {}, {}, tile};
    split<A>(f.const_data_ptr<A>(), mirrored, static_cast<A>(gain), p);
    const T* source = x.const_data_ptr<T>();
    T* target = y.mutable_data_ptr<T>();
    const int64_t images = channels_last ? x.size(0) : x.size(0) * x.size(1);
    parallel_for(0, images * out_height, grain(out_width * channels),
                 [&](int64_t begin, int64_t end) { filter_rows<T>(p, source, target, begin, end); });
  });
  return y;
}

}  // namespace ggf::upfirdn2d

STABLE_TORCH_LIBRARY_IMPL(gangealing_fast, CPU, m) { m.impl("upfirdn2d", TORCH_BOX(&ggf::upfirdn2d::forward)); }
