# SPDX-License-Identifier: Apache-2.0
"""Launches of the CUDA C++ kernels at training's shapes (256² pictures, flow 128, batch 5), for the report.

    CudaKernel("upfirdn2d.cu", "upfirdn2d_tile", "<float", "blur 4x4, [5, 128, 257, 257], float32",
               threads=256, blocks=5 * 128 * 81, dynamic_shared=0, moved=..., minimum=...)
"""

from __future__ import annotations

from tools.gpu_report.workloads import CudaKernel

CUDA_KERNELS: tuple[CudaKernel, ...] = ()
