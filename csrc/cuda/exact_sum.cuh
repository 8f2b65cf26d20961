// SPDX-License-Identifier: Apache-2.0
// Sums of many threads' contributions that do not depend on the threads' order, so that results are bit-identical between runs.
//
// Contributions are rounded to multiples of a power of two, chosen from the largest possible one and their number so that
// nothing overflows, and added as integers. With float contributions the rounding is far below their own: 2^47 steps below the
// largest for 16 384 of them. Doubles take a second integer for what the first one rounds off.
#pragma once

#include "launch.cuh"

#include <cmath>
#include <limits>

namespace ggf {

template <typename A>
inline constexpr int sum_words = std::is_same_v<A, double> ? 2 : 1;

template <typename A>
using Bits = std::conditional_t<std::is_same_v<A, double>, unsigned long long, unsigned int>;

// What contributions are multiplied by. Neither may leave the range of A's normal numbers.
template <typename A>
struct SumScale {
  A factor, inverse;
  bool finite;
};

template <typename A>
inline constexpr A rest_scale = A(1 << 30);  // of the second word

// `largest`: bits of the largest absolute value; count: of contributions to one sum, of at most that value each.
template <typename A>
GGF_INLINE SumScale<A> sum_scale(Bits<A> largest, int32_t count_bits) {
  constexpr int mantissa = std::is_same_v<A, double> ? 52 : 23, bias = std::is_same_v<A, double> ? 1023 : 127;
  const int exponent = static_cast<int>(largest >> mantissa) - bias + 1;  // largest < 2^exponent
  int shift = 61 - count_bits - exponent;
  shift = shift < bias - 1 ? shift : bias - 1;
  const auto power = [](int n) { return std::bit_cast<A>(static_cast<Bits<A>>(n + bias) << mantissa); };
  return {power(shift), power(-shift), exponent <= bias};
}

inline int32_t bits_of_count(int64_t count) { return std::bit_width(static_cast<uint64_t>(count)); }

#ifdef __CUDACC__
using Word = unsigned long long;
#else
using Word = uint64_t;
#endif

// `sum` has sum_words<A> words, `stride` apart.
template <typename A>
__device__ __forceinline__ void add_exactly(Word* sum, int64_t stride, A value, const SumScale<A>& scale) {
  const A scaled = value * scale.factor, whole = std::rint(scaled);
  atomicAdd(sum, static_cast<Word>(static_cast<int64_t>(whole)));
  if constexpr (sum_words<A> == 2)
    atomicAdd(sum + stride, static_cast<Word>(static_cast<int64_t>(std::rint((scaled - whole) * rest_scale<A>))));
}

template <typename A>
GGF_INLINE A exact_sum(const Word* sum, int64_t stride, const SumScale<A>& scale) {
  A total = static_cast<A>(static_cast<int64_t>(sum[0]));
  if constexpr (sum_words<A> == 2) total += static_cast<A>(static_cast<int64_t>(sum[stride])) / rest_scale<A>;
  return scale.finite ? total * scale.inverse : std::numeric_limits<A>::quiet_NaN();
}

// The largest absolute value of each of `rows` rows of x, as bits; beyond the bits of infinity where there is a NaN. largest
// holds zeros before.
template <typename T>
__global__ void __launch_bounds__(block_threads) largest_of_rows(const T* x, Bits<Compute<T>>* largest, int64_t per_row,
                                                                 uint32_t per_item, int64_t first_row, uint32_t threads) {
  using A = Compute<T>;
  const uint32_t thread = blockIdx.x * block_threads + threadIdx.x;
  const int64_t row = first_row + (thread < threads ? thread : threads - 1) / per_item;
  Bits<A> most = 0;
  if (thread < threads)
    for (int64_t i = thread % per_item; i < per_row; i += per_item) {
      const Bits<A> bits = std::bit_cast<Bits<A>>(static_cast<A>(load(x[row * per_row + i]))) & (~Bits<A>(0) >> 1);
      most = most > bits ? most : bits;
    }
  // Rows have a multiple of 32 threads: a warp sees one row.
  for (int step = 16; step > 0; step >>= 1) {
    const Bits<A> other = __shfl_xor_sync(0xffffffffu, most, step);
    most = most > other ? most : other;
  }
  if (threadIdx.x % 32 == 0 && thread < threads) atomicMax(largest + row, most);
}

template <typename T>
void find_largest(const char* operation, const T* x, Bits<Compute<T>>* largest, int64_t rows, int64_t per_row,
                  cudaStream_t stream) {
  const int64_t per_item = std::min<int64_t>(ceil_divide(ceil_divide(per_row, 4), 32), 1 << 11) * 32;
  launch_items(operation, &largest_of_rows<T>, rows, per_item, stream, x, largest, per_row, per_item);
}

// The first per_plane sums of every plane as numbers. result: [planes, per_plane]
template <typename T>
__global__ void __launch_bounds__(block_threads)
    round_sums(const Word* sums, int64_t word_stride, int64_t plane_stride, const Bits<Compute<T>>* largest, int32_t count_bits,
               int32_t channels, T* result, uint32_t per_plane, int64_t first_plane, uint32_t threads) {
  const uint32_t thread = blockIdx.x * block_threads + threadIdx.x;
  if (thread >= threads) return;
  const int64_t plane = first_plane + thread / per_plane;
  const uint32_t in_plane = thread % per_plane;
  const auto scale = sum_scale<Compute<T>>(largest[plane / channels], count_bits);
  result[plane * per_plane + in_plane] = store<T>(exact_sum(sums + plane * plane_stride + in_plane, word_stride, scale));
}

}  // namespace ggf
