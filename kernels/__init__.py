# SPDX-License-Identifier: Apache-2.0
"""Triton kernels, imported as `gangealing_fast.kernels` when the first CUDA tensor reaches an operator that they serve.

One module per operator, with a function of the name and signature of each registered operator that it serves. The kernels
are plain `@triton.jit` functions; every launch goes through `_launch.launch`, so that the GPU report sees what really runs.
They work on CUDA tensors, and on CPU tensors where `TRITON_INTERPRET=1` was set before Triton was imported (tests/triton_kernels).
"""
