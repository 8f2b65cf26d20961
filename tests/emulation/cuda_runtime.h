// SPDX-License-Identifier: Apache-2.0
// CUDA's device language on a CPU, for csrc/cuda/*.cu compiled by a C++ compiler with this folder first on the include path.
//
// Every thread of every block runs; blocks one after the other, the threads of a block in the order that EMULATION_ORDER asks
// for (forward, reverse, random:SEED), each until it waits at a barrier or for its warp. A result that depends on the order
// lacks a barrier or depends on a race. Shared memory holds NaN before it is written (GGF_SHARED). Barriers that not all
// threads reach and launches that hardware refuses are errors. Out-of-bounds accesses: compile with -fsanitize=address.
//
// Not here: tensor cores, asynchronous copies, textures, cooperative groups, dynamic parallelism, memory ordering.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "fibers.h"

#define GGF_EMULATION
#define GGF_SHARED(type, name, extents) \
  static type name extents;             \
  ::emulation::poison_once(&name, sizeof(name))
// Few threads a launch, so that small tests split their work as large ones do.
#define GGF_MOST_THREADS 3000

#define __global__
#define __device__
#define __host__
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)

typedef int cudaError_t;
typedef void* cudaStream_t;
enum { cudaSuccess = 0 };

#define threadIdx (::emulation::block().thread().index)
#define blockIdx (::emulation::block().index)
#define blockDim (::emulation::block().size)
#define gridDim (::emulation::block().grid)

inline cudaError_t cudaGetLastError() { return ::emulation::take_error(); }
inline const char* cudaGetErrorString(cudaError_t) { return ::emulation::error_text().c_str(); }

inline cudaError_t cudaMemsetAsync(void* data, int value, size_t bytes, cudaStream_t) {
  std::memset(data, value, bytes);
  return cudaSuccess;
}

inline void __syncthreads() { ::emulation::block().wait_for_block(0); }
inline int __syncthreads_or(int predicate) { return ::emulation::block().wait_for_block(predicate) > 0; }
inline int __syncthreads_count(int predicate) { return ::emulation::block().wait_for_block(predicate); }
inline void __syncwarp(unsigned mask = 0xffffffffu) { ::emulation::block().wait_for_warp(mask); }

// The value that lane `lane` of the warp brought; the own one where that lane takes no part.
template <typename T>
T exchange_in_warp(unsigned mask, T value, int lane) {
  static_assert(sizeof(T) <= 8);
  auto& block = ::emulation::block();
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  block.thread().offered = bits;
  block.wait_for_warp(mask);
  if (lane >= 0 && lane < 32 && (mask >> lane & 1u)) {
    bits = block.taken(lane);
    std::memcpy(&value, &bits, sizeof(T));
  }
  return value;
}

template <typename T>
T __shfl_sync(unsigned mask, T value, int lane) {
  return exchange_in_warp(mask, value, lane & 31);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int bits) {
  return exchange_in_warp(mask, value, ::emulation::block().lane() ^ bits);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned steps) {
  return exchange_in_warp(mask, value, ::emulation::block().lane() + static_cast<int>(steps));
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  auto& block = ::emulation::block();
  block.thread().offered = predicate != 0;
  block.wait_for_warp(mask);
  unsigned result = 0;
  for (int lane = 0; lane < 32; ++lane)
    if ((mask >> lane & 1u) && block.has_lane(lane) && block.taken(lane)) result |= 1u << lane;
  return result;
}

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __dadd_rn(double a, double b) { return a + b; }

// One thread of the host runs everything, so these need not be atomic.
template <typename T>
T atomicAdd(T* target, T value) {
  const T before = *target;
  *target = before + value;
  return before;
}
template <typename T>
T atomicMax(T* target, T value) {
  const T before = *target;
  *target = before < value ? value : before;
  return before;
}
template <typename T>
T atomicMin(T* target, T value) {
  const T before = *target;
  *target = value < before ? value : before;
  return before;
}
