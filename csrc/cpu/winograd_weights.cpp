// SPDX-License-Identifier: Apache-2.0
// The weights' side of winograd.h: their transform, and its cache.
#include "levels.h"
#include "vectors.h"
#include "winograd.h"

#include <algorithm>
#include <list>
#include <mutex>

namespace ggf::winograd {
namespace {

inline constexpr int64_t panel = 32;
inline constexpr int64_t block = 16;  // input channels transformed together
inline constexpr int64_t limit = int64_t(640) << 20;

struct View {
  const float* data;
  int64_t out, in, out_stride, in_stride, row_stride, column_stride;
};

std::shared_ptr<float[]> allocate(int64_t count) {
  constexpr auto alignment = std::align_val_t(64);
  float* data = static_cast<float*>(::operator new[](sizeof(float) * std::max<int64_t>(count, 1), alignment));
  return {data, [](float* p) { ::operator delete[](p, alignment); }};
}

// One dimension: the products of a filter with the points 0, 1, -1, 2, -2 and infinity.
template <typename V>
GGF_INLINE void along(const V (&k)[3], V (&out)[6]) {
  const V even = (k[0] + k[2]) * (1 / 6.0f), odd = k[1] * (1 / 6.0f);
  const V even2 = k[0] * (1 / 24.0f) + k[2] * (1 / 6.0f), odd2 = k[1] * (1 / 12.0f);
  out[0] = k[0] * 0.25f;
  out[1] = -even - odd;
  out[2] = odd - even;
  out[3] = even2 + odd2;
  out[4] = even2 - odd2;
  out[5] = k[2];
}

// Panels [begin, end) of 32 output channels.
template <Level level>
GGF_INLINE void transform_panels(const View& w, float* target, int64_t begin, int64_t end) {
  using V = Vector<float, level>;
  const int64_t plane = ceil_divide(w.out, panel) * w.in * panel;  // between two of the 36 points
  alignas(64) float taps[9][block][panel];
  for (int64_t p = begin; p < end; ++p) {
    const int64_t outs = std::min(panel, w.out - p * panel);
    if (outs < panel) std::fill_n(&taps[0][0][0], 9 * block * panel, 0.0f);
    for (int64_t first = 0; first < w.in; first += block) {
      const int64_t ins = std::min(block, w.in - first);
      for (int64_t tap = 0; tap < 9; ++tap) {
        const float* source =
            w.data + p * panel * w.out_stride + first * w.in_stride + tap / 3 * w.row_stride + tap % 3 * w.column_stride;
        if (w.out_stride == 1) {
          for (int64_t i = 0; i < ins; ++i) std::copy_n(source + i * w.in_stride, outs, taps[tap][i]);
        } else {
          for (int64_t o = 0; o < outs; ++o)
            for (int64_t i = 0; i < ins; ++i) taps[tap][i][o] = source[o * w.out_stride + i * w.in_stride];
        }
      }
      for (int64_t i = 0; i < ins; ++i)
        for (int64_t half = 0; half < panel; half += 16) {
          V columns[6][3];
          for (int64_t x = 0; x < 3; ++x) {
            const V k[3] = {load_vector<V>(&taps[x][i][half]), load_vector<V>(&taps[3 + x][i][half]),
                            load_vector<V>(&taps[6 + x][i][half])};
            V out[6];
            along(k, out);
            for (int64_t y = 0; y < 6; ++y) columns[y][x] = out[y];
          }
          float* to = target + (p * w.in + first + i) * panel + half;
          for (int64_t y = 0; y < 6; ++y) {
            V out[6];
            along(columns[y], out);
            for (int64_t x = 0; x < 6; ++x) store_vector(to + (y * 6 + x) * plane, out[x]);
          }
        }
    }
  }
}

std::shared_ptr<float[]> transformed(const View& w) {
  const int64_t panels = ceil_divide(w.out, panel);
  std::shared_ptr<float[]> target = allocate(36 * panels * w.in * panel);
  const auto range = [&](int64_t begin, int64_t end) {
    at_each_level<[]<Level level>(const auto&... all) GGF_INLINE_LAMBDA { transform_panels<level>(all...); }>(w, target.get(),
                                                                                                              begin, end);
  };
  parallel_for(0, panels, grain(36 * w.in * panel), range);
  return target;
}

// What is known of the weight at one place. A weight counts as frozen once it came three times with one fingerprint: a weight
// in training is not worth a copy. The copy decides, bit by bit, whether a transform still holds: no version counter sees
// every way to write to memory.
struct Entry {
  const float* place;
  std::vector<int64_t> layout;
  std::vector<float> fingerprint;
  int64_t seen = 0, bytes = 0;
  std::shared_ptr<float[]> copy;
  std::shared_ptr<const float[]> kept[2];
};

std::mutex mutex;
std::list<Entry> entries;  // the last used first
int64_t kept_bytes = 0;

void forget(Entry& entry) {
  kept_bytes -= entry.bytes;
  entry.bytes = 0;
  entry.copy.reset();
  for (auto& kept : entry.kept) kept.reset();
}

std::vector<float> fingerprint_of(const float* data, int64_t count) {
  std::vector<float> result;
  const int64_t step = std::max<int64_t>(count / 509, 1);
  for (int64_t i = 0; i < count; i += step) result.push_back(data[i]);
  return result;
}

bool same_bits(const float* a, const float* b, int64_t count) { return std::memcmp(a, b, sizeof(float) * count) == 0; }

}  // namespace

Weights transform(const Tensor& weight_, bool transposed) {
  STD_TORCH_CHECK(weight_.dim() == 4 && weight_.size(2) == 3 && weight_.size(3) == 3 && weight_.scalar_type() == ScalarType::Float,
                  "winograd: weight must be [Cout, Cin, 3, 3] of float32");
  const Tensor weight = is_channels_last(weight_) ? weight_ : torch::stable::contiguous(weight_);
  const int64_t out = weight.size(0), in = weight.size(1), count = weight.numel();
  const float* data = weight.const_data_ptr<float>();
  const int64_t row = weight.stride(2), column = weight.stride(3);
  const View view = transposed ? View{data + 2 * (row + column), in, out, weight.stride(1), weight.stride(0), -row, -column}
                               : View{data, out, in, weight.stride(0), weight.stride(1), row, column};
  Weights result{view.in, view.out, nullptr};
  const std::vector<int64_t> layout{out, in, weight.stride(0), weight.stride(1), row, column};
  std::vector<float> fingerprint = fingerprint_of(data, count);
  std::shared_ptr<const float[]> copy;
  {
    const std::lock_guard guard(mutex);
    auto entry =
        std::find_if(entries.begin(), entries.end(), [&](const Entry& e) { return e.place == data && e.layout == layout; });
    if (entry == entries.end()) entry = entries.insert(entries.begin(), Entry{data, layout, {}, 0, 0, nullptr, {}});
    entries.splice(entries.begin(), entries, entry);
    if (entry->fingerprint.size() != fingerprint.size() ||
        !same_bits(entry->fingerprint.data(), fingerprint.data(), static_cast<int64_t>(fingerprint.size()))) {
      forget(*entry);
      entry->fingerprint = std::move(fingerprint);
      entry->seen = 0;
    }
    ++entry->seen;
    if (entry->copy && !same_bits(entry->copy.get(), data, count)) {
      forget(*entry);
      entry->seen = 1;
    }
    if (entry->kept[transposed]) {
      result.data = entry->kept[transposed];
      return result;
    }
    while (entries.size() > 512) {
      forget(entries.back());
      entries.pop_back();
    }
    if (entry->seen >= 3) {
      if (!entry->copy) {
        entry->copy = allocate(count);
        std::copy_n(data, count, entry->copy.get());
        entry->bytes += count * 4;
        kept_bytes += count * 4;
      }
      copy = entry->copy;
    }
  }
  result.data = transformed(view);
  if (!copy) return result;
  const std::lock_guard guard(mutex);
  const auto entry = std::find_if(entries.begin(), entries.end(), [&](const Entry& e) { return e.copy == copy; });
  if (entry == entries.end() || entry->kept[transposed]) return result;
  const int64_t bytes = 36 * ceil_divide(view.out, panel) * view.in * panel * 4;
  entry->kept[transposed] = result.data;
  entry->bytes += bytes;
  kept_bytes += bytes;
  for (auto last = entries.rbegin(); kept_bytes > limit && last != entries.rend(); ++last)
    if (&*last != &*entry) forget(*last);
  return result;
}

}  // namespace ggf::winograd
