// SPDX-License-Identifier: Apache-2.0
// What all kernels share: types, conversion, layout, dispatch. LibTorch stable ABI only.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/MemoryFormat.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <bit>
#include <cstdint>
#include <optional>
#include <type_traits>
#include <vector>

// Small functions that both CPU kernels and CUDA kernels use.
#if defined(__CUDACC__)
#define GGF_HOST_DEVICE __host__ __device__
#else
#define GGF_HOST_DEVICE
#endif
#define GGF_INLINE GGF_HOST_DEVICE __attribute__((always_inline)) inline
#define GGF_INLINE_LAMBDA __attribute__((always_inline))
#define GGF_RESTRICT __restrict__
// A failed call of torch's C functions throws. The newer check says why the call failed; torch 2.10 and 2.11 lack it.
#if defined(STABLE_TORCH_ERROR_CODE_CHECK)
#define GGF_TORCH_CHECK STABLE_TORCH_ERROR_CODE_CHECK
#else
#define GGF_TORCH_CHECK TORCH_ERROR_CODE_CHECK
#endif

namespace ggf {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;
using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The type computed in: double for double, float for everything narrower.
template <typename T>
using Compute = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <typename T>
inline constexpr ScalarType compute_scalar_type = std::is_same_v<T, double> ? ScalarType::Double : ScalarType::Float;

// load and store convert by integer arithmetic and selects alone, so that loops over them vectorise at every level. A GPU has
// instructions for it.
GGF_INLINE float load(float value) { return value; }
GGF_INLINE double load(double value) { return value; }
GGF_INLINE float load(BFloat16 value) { return std::bit_cast<float>(static_cast<uint32_t>(value.x) << 16); }
GGF_INLINE float load(Half value) {
#ifdef __CUDA_ARCH__
  return value;
#else
  const uint32_t magnitude = value.x & 0x7fffu;
  const uint32_t sign = static_cast<uint32_t>(value.x & 0x8000u) << 16;
  // The product rebiases the exponent, and is exact for subnormal numbers too.
  const uint32_t finite = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude << 13) * 0x1p112f);
  const uint32_t special = (magnitude << 13) | 0x7f800000u;
  return std::bit_cast<float>((magnitude >= 0x7c00u ? special : finite) | sign);
#endif
}

template <typename T>
GGF_INLINE T store(Compute<T> value) {
  return value;
}
// The upper half of the bits of a float, rounded to nearest, ties to even.
GGF_INLINE uint32_t round_to_upper_half(uint32_t bits) { return (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16; }
template <>
GGF_INLINE BFloat16 store<BFloat16>(float value) {
#ifdef __CUDA_ARCH__
  return value;
#else
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
  return BFloat16(static_cast<uint16_t>(is_nan ? 0x7fc0u : round_to_upper_half(bits)), BFloat16::from_bits());
#endif
}
template <>
GGF_INLINE Half store<Half>(float value) {
#ifdef __CUDA_ARCH__
  return value;
#else
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  const uint32_t normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  // Adding 0.5 leaves the bits of a subnormal half, rounded, at the low end of the mantissa.
  const uint32_t subnormal = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
  uint32_t result = magnitude < 0x38800000u ? subnormal : normal;
  result = magnitude >= 0x477ff000u ? 0x7c00u : result;
  result = magnitude > 0x7f800000u ? 0x7e00u : result;
  return Half(static_cast<uint16_t>(result | sign), Half::from_bits());
#endif
}

// Calls body.operator()<T>() for the element type of a floating tensor. A build that only ever runs in float32 compiles no more.
template <typename Body>
decltype(auto) dispatch_floating(ScalarType type, const char* operation, const Body& body) {
  switch (type) {
    case ScalarType::Float:
      return body.template operator()<float>();
#ifndef GGF_FLOAT_ALONE
    case ScalarType::Double:
      return body.template operator()<double>();
    case ScalarType::BFloat16:
      return body.template operator()<BFloat16>();
    case ScalarType::Half:
      return body.template operator()<Half>();
#endif
    default:
      STD_TORCH_CHECK(false, operation, ": unsupported dtype ", torch::headeronly::toString(type));
  }
}

// Whether the output of an operator on `x` is channels-last: the rule of ops/_common.py.
inline bool is_channels_last(const Tensor& x) {
  if (x.dim() != 4 || x.is_contiguous()) return false;
  int64_t expected = 1;
  for (const int64_t axis : {1, 3, 2, 0}) {
    if (x.size(axis) == 1) continue;
    if (x.stride(axis) != expected) return false;
    expected *= x.size(axis);
  }
  return true;
}

// Every call of an ATen operator through the stable ABI costs about a microsecond, even where it has nothing to do: the
// next functions avoid it.

// `x` itself where it has the layout already, else a copy in it.
inline Tensor in_layout(const Tensor& x, bool channels_last) {
  if (!channels_last && x.is_contiguous()) return x;
  return torch::stable::contiguous(x, channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

// `x` itself where it is of the type already, else a copy in it.
inline Tensor in_type(const Tensor& x, ScalarType type) { return x.scalar_type() == type ? x : torch::stable::to(x, type); }

// `x` contiguous and of the type: itself, or a copy.
inline Tensor converted(const Tensor& x, ScalarType type) { return in_layout(in_type(x, type), false); }

inline Tensor empty(const std::vector<int64_t>& size, ScalarType type, bool channels_last = false) {
  std::vector<int64_t> stride(size.size());
  int64_t elements = 1;
  const auto take = [&](size_t axis) {
    stride[axis] = elements;
    elements *= size[axis] > 0 ? size[axis] : 1;
  };
  if (channels_last && size.size() == 4) {
    for (const size_t axis : {1, 3, 2, 0}) take(axis);
  } else {
    for (size_t axis = size.size(); axis-- > 0;) take(axis);
  }
  AtenTensorHandle handle = nullptr;
  GGF_TORCH_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(size.size()), size.data(), stride.data(),
                                           torch::stable::detail::to<int32_t>(torch::stable::detail::from(type)),
                                           aoti_torch_device_type_cpu(), 0, &handle));
  return Tensor(handle);
}

inline std::vector<int64_t> sizes_of(const Tensor& x) {
  std::vector<int64_t> sizes;
  for (int64_t axis = 0; axis < x.dim(); ++axis) sizes.push_back(x.size(axis));
  return sizes;
}

inline int64_t floor_divide(int64_t a, int64_t b) { return a / b - (a % b != 0 && (a < 0) != (b < 0)); }
inline int64_t ceil_divide(int64_t a, int64_t b) { return -floor_divide(-a, b); }

// How finely parallel_for may cut its range.
struct Grain {
  int64_t items;          // for one task at least, some ten thousand elements
  int64_t elements_each;  // of one item
};

inline Grain grain(int64_t elements_per_item) {
  const int64_t each = elements_per_item > 0 ? elements_per_item : 1;
  return {each >= 16384 ? 1 : 16384 / each, each};
}

// Below some 100 microseconds of work one thread does all: to wake another that sleeps takes as long, and if other programs
// compute on its core, far longer.
constexpr int64_t kElementsWorthAThread = 131072;

template <typename Body>
void parallel_for(int64_t begin, int64_t end, Grain grain, const Body& body) {
  if (end <= begin) return;
  if ((end - begin) * grain.elements_each < kElementsWorthAThread) return body(begin, end);
  torch::stable::parallel_for(begin, end, grain.items, body);
}

}  // namespace ggf
