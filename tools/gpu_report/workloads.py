# SPDX-License-Identifier: Apache-2.0
"""The form in which a kernel states its launch and its traffic at a shape of training."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CudaKernel:
    """One launch of a `__global__` function of csrc/cuda.

    Several rows may name one kernel (template instances, shapes); every `__global__` needs one at least.

    source: file name in csrc/cuda, "upfirdn2d.cu".
    kernel: name as written behind `__global__`.
    instance: regular expression found in the demangled name of the template instance meant, as "<float, 4"; "" for no template.
    shape: the workload in words, as "blur 4x4, [5, 128, 257, 257], float32".
    threads, blocks: of the launch. dynamic_shared: bytes of dynamic shared memory of a block.
    moved: bytes that the launch reads from and writes to device memory, every tile's overlap with its neighbour included.
    minimum: bytes that any kernel must move: every input read once, every output written once.
    """

    source: str
    kernel: str
    instance: str
    shape: str
    threads: int
    blocks: int
    dynamic_shared: int
    moved: int
    minimum: int
