// SPDX-License-Identifier: Apache-2.0
// What every CUDA kernel shares: allocation, stream, device, launching. LibTorch stable ABI only, so that a library built
// against any torch, with or without CUDA, serves all.
//
// Operators live in ggf::cuda::<operator>: the CPU kernels' namespaces, ggf::<operator>, are in the same library.
//
// tests/emulation compiles the same files for a CPU, where it supplies <cuda_runtime.h> and GGF_EMULATION.
#pragma once

#include "../common.h"

#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>

#include <algorithm>
#include <climits>
#include <initializer_list>

#ifdef GGF_EMULATION
#define GGF_CUDA_KERNELS(m) STABLE_TORCH_LIBRARY_IMPL(gangealing_fast_emulated, CPU, m)
#else
#include <dlfcn.h>
#define GGF_CUDA_KERNELS(m) STABLE_TORCH_LIBRARY_IMPL(gangealing_fast, CUDA, m)
// An array in shared memory: GGF_SHARED(float, tile, [16][17]).
#define GGF_SHARED(type, name, extents) __shared__ type name extents
// Threads of one launch; more work takes several.
#define GGF_MOST_THREADS (int64_t(1) << 31)
#endif

namespace ggf {

inline constexpr int block_threads = 256;

// Selects the device of `x` for its lifetime, and knows the stream that torch is on there.
class OnDevice {
 public:
#ifdef GGF_EMULATION
  explicit OnDevice(const Tensor&) {}
  cudaStream_t stream() const { return nullptr; }
#else
  explicit OnDevice(const Tensor& x) : index_(x.get_device_index()), guard_(index_) {}

  // torch 2.10's stable ABI has no stream handle, and linking to libtorch_cuda.so would exclude torch for CPU.
  cudaStream_t stream() const {
    using Function = int32_t (*)(int32_t, void**);
    static const Function function = [] {
      void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
      return library ? reinterpret_cast<Function>(dlsym(library, "aoti_torch_get_current_cuda_stream")) : nullptr;
    }();
    void* result = nullptr;
    STD_TORCH_CHECK(function && function(index_, &result) == 0, "torch does not tell the current CUDA stream");
    return static_cast<cudaStream_t>(result);
  }

 private:
  int32_t index_;
  torch::stable::accelerator::DeviceGuard guard_;
#endif
};

inline void check_cuda(cudaError_t error, const char* what) {
  STD_TORCH_CHECK(error == cudaSuccess, what, ": ", cudaGetErrorString(error));
}

// All on one device: a kernel must never see an address of another.
inline void check_devices(const char* operation, std::initializer_list<Tensor> tensors) {
  for (const Tensor& tensor : tensors)
    STD_TORCH_CHECK(tensor.device() == tensors.begin()->device(), operation, ": all tensors must be on one device");
}

inline Tensor empty_on(const Tensor& beside, const std::vector<int64_t>& size, ScalarType type, bool channels_last = false) {
  return torch::stable::empty(size, type, std::nullopt, beside.device(), std::nullopt,
                              channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

inline void clear(const Tensor& x, cudaStream_t stream) {
  if (x.numel() == 0) return;
  check_cuda(cudaMemsetAsync(x.mutable_data_ptr(), 0, x.numel() * x.element_size(), stream), "clearing memory");
}

template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, cudaStream_t stream, const Arguments&... arguments) {
#ifdef GGF_EMULATION
  emulation::launch(grid, block, [&] { kernel(static_cast<Parameters>(arguments)...); });
#else
  kernel<<<grid, block, 0, stream>>>(static_cast<Parameters>(arguments)...);
#endif
  check_cuda(cudaGetLastError(), "kernel launch");
}

// A thread for each of `per_item` things of `items` items (planes, samples, ...), as few launches as hold them: the kernel is
// called with (arguments..., first item, threads), and its thread `i` handles thing i % per_item of item first + i / per_item.
// So in-item indices fit 32 bits, whatever the tensor's size.
template <typename... Parameters, typename... Arguments>
void launch_items(const char* operation, void (*kernel)(Parameters...), int64_t items, int64_t per_item, cudaStream_t stream,
                  const Arguments&... arguments) {
  if (items <= 0 || per_item <= 0) return;
  STD_TORCH_CHECK(per_item < (int64_t(1) << 31), operation, ": one image must take fewer than 2^31 threads, not ", per_item);
  const int64_t most = std::max<int64_t>(1, GGF_MOST_THREADS / per_item);
  for (int64_t first = 0; first < items; first += most) {
    const uint32_t threads = static_cast<uint32_t>(std::min(most, items - first) * per_item);
    launch(kernel, dim3((threads - 1) / block_threads + 1), dim3(block_threads), stream, arguments..., first, threads);
  }
}

// One element of one plane of a tensor [samples, channels, per_plane].
struct InPlane {
  int64_t sample;
  uint32_t channel, index;
};

// The element of `thread` in a launch by `launch_planes`. All divisions are of 32 bits: those of 64 take a GPU a hundred
// instructions.
GGF_INLINE InPlane in_plane(uint32_t thread, uint32_t per_plane, uint32_t channels, int64_t first_sample, uint32_t first_channel) {
  const uint32_t plane = first_channel + thread / per_plane;
  return {first_sample + plane / channels, plane % channels, thread % per_plane};
}

// As `launch_items`, a thread for each element of all planes. The kernel is called with (arguments..., first sample, first
// channel, threads).
template <typename... Parameters, typename... Arguments>
void launch_planes(const char* operation, void (*kernel)(Parameters...), int64_t samples, int64_t channels, int64_t per_plane,
                   cudaStream_t stream, const Arguments&... arguments) {
  const int64_t planes = samples * channels;
  if (planes <= 0 || per_plane <= 0) return;
  STD_TORCH_CHECK(per_plane < (int64_t(1) << 31) && channels < (int64_t(1) << 31), operation,
                  ": one plane must take fewer than 2^31 threads, not ", per_plane);
  const int64_t most = std::max<int64_t>(1, GGF_MOST_THREADS / per_plane);
  for (int64_t first = 0; first < planes; first += most) {
    const uint32_t threads = static_cast<uint32_t>(std::min(most, planes - first) * per_plane);
    launch(kernel, dim3((threads - 1) / block_threads + 1), dim3(block_threads), stream, arguments..., first / channels,
           first % channels, threads);
  }
}

}  // namespace ggf
