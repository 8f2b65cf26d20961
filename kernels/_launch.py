# SPDX-License-Identifier: Apache-2.0
"""What every launcher shares: the one gate to the device, block sizes, layouts."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

# tl.dot knows no bfloat16 in the interpreter, where kernels therefore cast its operands.
INTERPRETED: bool = triton.knobs.runtime.interpret
# The interpreter takes its time per program, not per element.
ENLARGED: int = 32 if INTERPRETED else 1


@dataclass(frozen=True)
class Launch:
    """One launch as it was asked for: `arguments` in the kernel's order, constants included."""

    kernel: Any
    blocks: int
    arguments: dict[str, Any]
    warps: int
    stages: int
    registers: int | None

    @property
    def options(self) -> dict[str, int]:
        """As Triton names them."""
        limit = {} if self.registers is None else {"maxnreg": self.registers}
        return {"num_warps": self.warps, "num_stages": self.stages, **limit}


class _Recording(threading.local):
    """Where this thread's launches go instead of to the device; None if they are executed."""

    to: Callable[[Launch], None] | None = None


_recording = _Recording()


@contextlib.contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Collect launches instead of executing them; with tensors on the meta device nothing is allocated either."""
    launches: list[Launch] = []
    previous, _recording.to = _recording.to, launches.append
    try:
        yield launches
    finally:
        _recording.to = previous


@contextlib.contextmanager
def _one_parses_at_a_time() -> Iterator[None]:
    """CPython 3.11 counts the depth of the syntax tree that it makes for all threads together: two that make one at the same time
    may end in a SystemError, as a run of the tests did."""
    function, lock = triton.runtime.jit.JITFunction, threading.Lock()
    parse = function.parse

    def alone(kernel: Any) -> Any:
        with lock:
            return parse(kernel)

    function.parse = alone
    try:
        yield
    finally:
        function.parse = parse


def compile_ahead(launches: Iterable[Launch]) -> None:
    """Compile what `launches` need on the current CUDA device, several at once. What does not compile fails when it is launched."""
    workers = min(8, os.cpu_count() or 1)
    with _one_parses_at_a_time(), ThreadPoolExecutor(workers) as pool, triton.AsyncCompileMode(pool, ignore_errors=True):
        for one in launches:
            with contextlib.suppress(Exception):
                one.kernel.warmup(*one.arguments.values(), grid=(one.blocks,), **one.options)


def launch(
    kernel: Any,
    blocks: int,
    *arguments: Any,
    warps: int = 4,
    stages: int = 3,
    registers: int | None = None,
    **constants: Any,
) -> None:
    """Run `blocks` programs of `kernel` on the device and current stream of the first argument, a tensor.

    registers: most that a thread may have; None leaves it to the compiler.
    """
    if blocks == 0:
        return
    if blocks >= 2**31:
        raise ValueError(f"{kernel.fn.__name__}: {blocks} blocks are more than one launch can have; split the batch.")
    named = dict(zip(kernel.arg_names, arguments, strict=False)) | constants
    asked = Launch(kernel, blocks, {name: named[name] for name in kernel.arg_names}, warps, stages, registers)
    if _recording.to is not None:
        _recording.to(asked)
        return
    device = arguments[0].device
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        kernel[(blocks,)](*asked.arguments.values(), **asked.options)


def compute_type(dtype: torch.dtype) -> tl.dtype:
    """What a kernel computes in: float64 for float64, float32 for everything narrower."""
    return tl.float64 if dtype == torch.float64 else tl.float32


def elements(count: int) -> int:
    """How many elements a tile meant to have `count` gets: more in the interpreter."""
    return count * ENLARGED


def power_of_two(value: int, most: int) -> int:
    """The smallest power of two that is at least `value`, but no more than `most` (itself a power of two) and at least 1."""
    return min(triton.next_power_of_2(max(value, 1)), most)


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


def check_sample(operator: str, x: Tensor) -> None:
    """Raise where one sample of `x` has more elements than the 32-bit offsets within a sample reach."""
    if x.numel() >= 2**31 and x[0].numel() >= 2**31:
        raise ValueError(f"{operator}: one sample of shape {list(x.shape[1:])} has 2^31 elements or more, too many for one launch.")


def contiguous(x: Tensor | None) -> Tensor | None:
    """`x` without gaps, None as None."""
    return None if x is None else x.contiguous()
