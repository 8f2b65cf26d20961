# SPDX-License-Identifier: Apache-2.0
"""Kernels or references: which of the two the public operators run, for a process or within a block of a thread."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Literal, get_args

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
