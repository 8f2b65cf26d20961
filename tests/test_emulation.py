# SPDX-License-Identifier: Apache-2.0
"""The emulation of CUDA itself: it computes what a GPU would, and finds the mistakes that it is there to find."""

from __future__ import annotations

import subprocess

import emulation
import pytest

KERNELS = """
#include <cuda_runtime.h>
#include <cmath>
#include <cstdio>
#include <string>

__global__ void reverse(float* out) {
  GGF_SHARED(float, buffer, [64]);
  buffer[threadIdx.x] = threadIdx.x;
  __syncthreads();
  out[blockIdx.x * 64 + threadIdx.x] = buffer[63 - threadIdx.x];
}
__global__ void race(float* out) {
  GGF_SHARED(float, buffer, [64]);
  buffer[threadIdx.x] = threadIdx.x + 1;
  out[threadIdx.x] = buffer[(threadIdx.x + 1) % 64];
}
__global__ void uninitialised(float* out) {
  GGF_SHARED(float, buffer, [64]);
  if (threadIdx.x > 0) buffer[threadIdx.x] = 1;
  __syncthreads();
  out[threadIdx.x] = buffer[threadIdx.x];
}
__global__ void divergent(float* out) {
  if (threadIdx.x < 10) __syncthreads();
  else __syncwarp(0xfffffc00u);
  if (threadIdx.x >= 10) __syncwarp(0xffffffffu);
  out[threadIdx.x] = 1;
}
__global__ void warps(float* out, unsigned* votes, int* count) {
  float sum = threadIdx.x;
  for (int bits = 16; bits > 0; bits >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, bits);
  const double third = __shfl_sync(0xffffffffu, double(threadIdx.x), 3);
  const unsigned odd = __ballot_sync(0xffffffffu, threadIdx.x & 1);
  out[threadIdx.x] = sum + float(third) * 1000;
  if (threadIdx.x % 32 == 0) votes[threadIdx.x / 32] = odd;
  atomicAdd(count, 1);
  const int thirds = __syncthreads_count(threadIdx.x % 3 == 0);
  if (threadIdx.x == 0) atomicMax(count, 100 + thirds);
}
__global__ void nothing() {}

template <typename Kernel, typename... Arguments>
std::string run(Kernel kernel, dim3 grid, dim3 block, Arguments... arguments) {
  emulation::launch(grid, block, [=] { kernel(arguments...); });
  return cudaGetLastError() == cudaSuccess ? "" : cudaGetErrorString(1);
}

int main(int, char** arguments) {
  const std::string name = arguments[1];
  float out[128] = {};
  unsigned votes[2] = {};
  int count = 0;
  std::string error;
  if (name == "reverse") error = run(reverse, 2, 64, out);
  if (name == "race") error = run(race, 1, 64, out);
  if (name == "uninitialised") error = run(uninitialised, 1, 64, out);
  if (name == "divergent") error = run(divergent, 1, 32, out);
  if (name == "warps") error = run(warps, 1, 64, out, votes, &count);
  if (name == "no blocks") error = run(nothing, 0, 32);
  if (name == "too many threads") error = run(nothing, 1, 2048);
  if (name == "too many rows") error = run(nothing, dim3(1, 65536), 32);
  if (!error.empty()) return std::puts(error.c_str()), 0;
  for (const float value : out) std::printf("%g ", value);
  std::printf("| %x %x %d", votes[0], votes[1], count);
}
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kernels")
    source, program = folder / "kernels.cu", folder / "kernels"
    source.write_text(KERNELS)
    command = [emulation.compiler(), *emulation.FLAGS, f"-I{emulation.HERE}", "-x", "c++", str(source), "-o", str(program)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr

    def run(kernel: str, order: str = "forward") -> str:
        return subprocess.run([str(program), kernel], capture_output=True, text=True, env={"EMULATION_ORDER": order}).stdout

    return run


@pytest.mark.parametrize("order", ["forward", "reverse", "random:5"])
def test_barriers_and_blocks(program, order):
    values = [float(value) for value in program("reverse", order).split("|")[0].split()]
    assert values == [63 - i % 64 for i in range(128)]


@pytest.mark.parametrize("order", ["forward", "reverse", "random:5"])
def test_warps_and_atomics(program, order):
    values, rest = program("warps", order).split("|")
    assert [float(value) for value in values.split()[:64]] == [496 + 3000] * 32 + [496 + 1024 + 35000] * 32
    assert rest.split() == ["aaaaaaaa", "aaaaaaaa", "122"]


def test_a_missing_barrier_shows_in_some_order(program):
    correct = [(i + 1) % 64 + 1 for i in range(64)]
    orders = ("forward", "reverse", "random:5")
    assert any([float(v) for v in program("race", order).split()[:64]] != correct for order in orders)


def test_shared_memory_is_nan_before_it_is_written(program):
    values = program("uninitialised").split()
    assert "nan" in values[0] and values[1:64] == ["1"] * 63


def test_a_barrier_that_not_all_threads_reach(program):
    assert "threads reach a barrier" in program("divergent")


@pytest.mark.parametrize("kernel", ["no blocks", "too many threads", "too many rows"])
def test_illegal_launches(program, kernel):
    assert "an illegal launch configuration" in program(kernel)
