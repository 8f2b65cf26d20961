// SPDX-License-Identifier: Apache-2.0
// Moving large tensors: one long run of elements written past the caches, and inputs asked for ahead of their use.
//
// An ordinary store first reads the line that it is about to overwrite, which for an output that no cache will keep is a third to
// a half of all traffic. So a large output goes from a small buffer, line by line, to memory with non-temporal stores.
#pragma once

#include "../common.h"

#include <cstring>

#ifdef __SSE2__
#include <emmintrin.h>
#endif

namespace ggf {

inline constexpr int64_t cache_line = 64, beyond_caches = 8 << 20;  // bytes; outputs from the latter on go past the caches

// Asks for as much as `count` elements at `position`, but some way behind them. The processor's own prefetching starts anew in
// every page, and where much is computed between two loads only few of them are under way at a time.
template <typename T>
GGF_INLINE void fetch_ahead(const T* position, int64_t count) {
#ifdef __GNUC__
  const auto* ahead = reinterpret_cast<const char*>(reinterpret_cast<uintptr_t>(position) + 4096);
  for (int64_t i = 0; i < count * static_cast<int64_t>(sizeof(T)); i += cache_line) __builtin_prefetch(ahead + i, 0, 2);
#endif
}

// The same for what is about to be overwritten by ordinary stores.
template <typename T>
GGF_INLINE void claim_ahead(T* position, int64_t count) {
#ifdef __GNUC__
  const auto* ahead = reinterpret_cast<const char*>(reinterpret_cast<uintptr_t>(position) + 4096);
  for (int64_t i = 0; i < count * static_cast<int64_t>(sizeof(T)); i += cache_line) __builtin_prefetch(ahead + i, 1, 2);
#endif
}

template <typename T>
class Writer {
 public:
  // The most elements between a call of `room` and the call of `advance` that follows it.
  static constexpr int64_t step = 512 / sizeof(T);

  // Elements from `out` on, of a tensor of `total` elements; past the caches if it has at least `limit` bytes.
  GGF_INLINE Writer(T* out, int64_t total, int64_t limit = beyond_caches) : next_(out) {
#ifdef __SSE2__
    past_caches_ = total * static_cast<int64_t>(sizeof(T)) >= limit;
    if (past_caches_) {
      filled_ = skip_ = static_cast<int64_t>(reinterpret_cast<uintptr_t>(out) % cache_line / sizeof(T));
      next_ = out - skip_;
    }
#endif
  }
  Writer(const Writer&) = delete;
  Writer& operator=(const Writer&) = delete;

  // Where the next elements go, one after the other.
  GGF_INLINE T* room() { return past_caches_ ? buffer_ + filled_ : next_; }

  GGF_INLINE void advance(int64_t count) {
    if (!past_caches_) {
      next_ += count;
    } else if ((filled_ += count) >= step) {
      flush();
    }
  }

  // To be called at the end; nothing may be written afterwards.
  GGF_INLINE void finish() {
#ifdef __SSE2__
    if (!past_caches_) return;
    flush();
    std::memcpy(next_ + skip_, buffer_ + skip_, (filled_ - skip_) * sizeof(T));
    _mm_sfence();
#endif
  }

 private:
  static constexpr int64_t per_line = cache_line / sizeof(T);

  GGF_INLINE void flush() {
#ifdef __SSE2__
    const T* source = buffer_;
    if (skip_ && filled_ >= per_line) {  // the first line belongs in part to somebody else
      std::memcpy(next_ + skip_, buffer_ + skip_, (per_line - skip_) * sizeof(T));
      source += per_line, next_ += per_line, filled_ -= per_line, skip_ = 0;
    }
    const int64_t whole = filled_ / per_line * per_line;
    const auto* from = reinterpret_cast<const __m128i*>(source);
    auto* to = reinterpret_cast<__m128i*>(next_);
    for (int64_t i = 0; i < whole / per_line * (cache_line / 16); ++i) _mm_stream_si128(to + i, _mm_load_si128(from + i));
    next_ += whole, filled_ -= whole;
    if (filled_) std::memmove(buffer_, source + whole, cache_line);
#endif
  }

  T* next_;
  bool past_caches_ = false;
  int64_t filled_ = 0, skip_ = 0;
  alignas(cache_line) T buffer_[2 * step + 2 * per_line];
};

}  // namespace ggf
