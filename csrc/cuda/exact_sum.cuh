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

// The sums of one call, as kernels see them. Those of a sample share a scale.
template <typename A>
struct Sums {
  Word* words;  // of sum i: words[i], and with two of them words[i + stride]
  int64_t stride;
  const Bits<A>* largest;  // [samples]: of each sample's contributions
  int32_t count_bits;

  GGF_INLINE SumScale<A> scale(int64_t sample) const { return sum_scale<A>(largest[sample], count_bits); }

  __device__ __forceinline__ void add(int64_t i, A value, const SumScale<A>& scale) const {
    const A scaled = value * scale.factor, whole = std::rint(scaled);
    atomicAdd(words + i, static_cast<Word>(static_cast<int64_t>(whole)));
    if constexpr (sum_words<A> == 2)
      atomicAdd(words + i + stride, static_cast<Word>(static_cast<int64_t>(std::rint((scaled - whole) * rest_scale<A>))));
  }

  GGF_INLINE A total(int64_t i, const SumScale<A>& scale) const {
    A total = static_cast<A>(static_cast<int64_t>(words[i]));
    if constexpr (sum_words<A> == 2) total += static_cast<A>(static_cast<int64_t>(words[i + stride])) / rest_scale<A>;
    return scale.finite ? total * scale.inverse : std::numeric_limits<A>::quiet_NaN();
  }
};

// The largest absolute value of each of `rows` rows of x, as bits; beyond the bits of infinity where there is a NaN. largest
// holds zeros before.
template <typename T>
__global__ void __launch_bounds__(block_threads)
    largest_of_rows(const T* x, Bits<Compute<T>>* largest, int64_t per_row, uint32_t per_item, uint32_t per_thread,
                    int64_t first_row, uint32_t threads) {
  using A = Compute<T>;
  const uint32_t thread = blockIdx.x * block_threads + threadIdx.x;
  const int64_t row = first_row + (thread < threads ? thread : threads - 1) / per_item;
  Bits<A> most = 0;
  const T* mine = x + row * per_row;
  if (thread < threads)
    for (uint32_t step = 0; step < per_thread; ++step) {
      const int64_t i = static_cast<int64_t>(step) * per_item + thread % per_item;
      if (i >= per_row) break;
      const Bits<A> bits = std::bit_cast<Bits<A>>(static_cast<A>(load(mine[i]))) & (~Bits<A>(0) >> 1);
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
  launch_items(operation, &largest_of_rows<T>, rows, per_item, stream, x, largest, per_row, per_item,
               ceil_divide(per_row, per_item));
}

// The first per_plane sums of every plane as numbers. result: [planes, per_plane]
template <typename T>
__global__ void __launch_bounds__(block_threads)
    round_sums(Sums<Compute<T>> sums, int64_t plane_stride, int32_t channels, T* result, uint32_t per_plane, int64_t first_sample,
               uint32_t first_channel, uint32_t threads) {
  const uint32_t thread = blockIdx.x * block_threads + threadIdx.x;
  if (thread >= threads) return;
  const auto [sample, channel, index] = in_plane(thread, per_plane, channels, first_sample, first_channel);
  const int64_t plane = sample * channels + channel;
  result[plane * per_plane + index] = store<T>(sums.total(plane * plane_stride + index, sums.scale(sample)));
}

// How many sums there are: `planes` for each of `samples`, in each of these `results` to be rounded, and behind them `more` that
// `scatter` alone uses.
struct SumShape {
  int64_t samples, planes, results, more;

  int64_t plane_stride() const { return results + more; }
};

// result [samples, planes, results], a tensor of T, becomes what `scatter`, called with Sums<Compute<T>>, adds up. In this order:
// the largest of each sample's `contributions` [samples, per_sample] sets the scale, `scatter` adds to cleared sums, they are
// rounded. One sum may get fewer than 2^count_bits values of up to the largest one.
template <typename T, typename Scatter>
void sum_exactly(const char* operation, const T* contributions, int64_t per_sample, int32_t count_bits, const SumShape& shape,
                 const Tensor& result, cudaStream_t stream, const Scatter& scatter) {
  using A = Compute<T>;
  const int64_t planes = shape.samples * shape.planes, count = planes * shape.plane_stride();
  const Tensor largest_ = empty_on(result, {shape.samples}, std::is_same_v<A, double> ? ScalarType::Long : ScalarType::Int);
  const Tensor words_ = empty_on(result, {sum_words<A> * count}, ScalarType::Long);
  clear(largest_, stream);
  clear(words_, stream);
  auto* largest = static_cast<Bits<A>*>(largest_.mutable_data_ptr());
  find_largest<T>(operation, contributions, largest, shape.samples, per_sample, stream);
  const Sums<A> sums{static_cast<Word*>(words_.mutable_data_ptr()), count, largest, count_bits};
  scatter(sums);
  launch_planes(operation, &round_sums<T>, shape.samples, shape.planes, shape.results, stream, sums, shape.plane_stride(),
                shape.planes, result.mutable_data_ptr<T>(), shape.results);
}

}  // namespace ggf
