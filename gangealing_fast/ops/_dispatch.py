# SPDX-License-Identifier: Apache-2.0
"""Kernels or references: which of the two the public operators run.

Every public operator ends in the same two steps, after its checks:

    if reference_wanted():
        return run_reference(<op>_reference, x, ...)
    return torch.ops.gangealing_fast.<op>(...)

so that a whole program can be run on the plain definitions alone, to compare results, speed or memory. Plain torch then
computes the derivatives too, to any order. `torch.compile` guards on the choice: another choice means another compilation.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal, TypeVar, get_args

import torch

Result = TypeVar("Result")
Kind = Literal["fused", "reference"]

_process: Kind = "fused"
_thread = threading.local()


def use(kind: Kind) -> None:
    """Let the operators of this process run on their kernels ("fused", the default) or on their references.

    Threads inside `reference()` or `fused()` keep to what that says. Raises ValueError for another word.
    """
    global _process
    if kind not in get_args(Kind):
        raise ValueError(f'ops.use: the kind must be "fused" or "reference", not {kind!r}.')
    _process = kind


def used() -> Kind:
    """What the operators run on in this thread: "fused" or "reference"."""
    return getattr(_thread, "kind", None) or _process


def reference_wanted() -> bool:
    """Whether a public operator called now is to run its reference."""
    return used() == "reference"


def without_autocast(device: torch.device) -> AbstractContextManager[None]:
    """`with without_autocast(x.device):` computes in the dtypes given; the meta device has no autocast to turn off."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def run_reference(reference: Callable[..., Result], x: torch.Tensor, *arguments: Any, **keywords: Any) -> Result:
    """`reference(x, ...)` in the dtypes it chooses itself, as a kernel would compute it: autocast is off inside."""
    with without_autocast(x.device):
        return reference(x, *arguments, **keywords)


@contextmanager
def _within(kind: Kind) -> Iterator[None]:
    before = getattr(_thread, "kind", None)
    _thread.kind = kind
    try:
        yield
    finally:
        _thread.kind = before


def reference() -> AbstractContextManager[None]:
    """`with ops.reference():` runs the operators called in this thread, inside the block, on their references.

    The backward of what was computed inside follows, wherever it is run. Other threads are not touched, and threads
    started inside do not inherit the choice: `use` is for whole processes.
    """
    return _within("reference")


def fused() -> AbstractContextManager[None]:
    """`with ops.fused():` runs the operators called in this thread, inside the block, on their kernels."""
    return _within("fused")
