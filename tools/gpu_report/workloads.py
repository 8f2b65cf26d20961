# SPDX-License-Identifier: Apache-2.0
"""The form in which a kernel states its launch and its traffic at a shape of training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


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


@dataclass(frozen=True)
class TritonWorkload:
    """One call of a function of gangealing_fast.kernels, on tensors of the meta device.

    operator: what to call it in the report. shape: in words. call: makes the tensors, calls the function, and returns
    (inputs, outputs). What it launches is recorded from the launcher itself. moved: bytes, where the launches' tensors do
    not show them; flops: multiplications and additions, where arithmetic rather than memory may set the pace.
    """

    operator: str
    shape: str
    call: Callable[[], tuple[list[Any], list[Any]]]
    moved: int | None = None
    flops: int = 0
