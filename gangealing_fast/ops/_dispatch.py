# SPDX-License-Identifier: Apache-2.0
"""Kernels or references: which of the two the public operators run.

Every public operator ends in the same two steps, after its checks:

    if reference_wanted():
        return run_reference(<op>_reference, x, ...)
    return torch.ops.gangealing_fast.<op>(...)

so that a whole program can be run on the plain definitions alone, to compare results, speed or memory. Plain torch then
computes the derivatives too, to any order. `torch.compile` guards on the choice: another choice means another compilation.

The reference also runs wherever derivatives are taken in another way than by plain reverse mode: under the transforms of
`torch.func` (`jvp`, `grad`, `vmap`, `jacrev`, `hessian`, ...) and inside `torch.autograd.forward_ad.dual_level()`. A kernel sees
the values there, but neither tangents nor batches.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from torch._C import _are_functorch_transforms_active
from torch.autograd import forward_ad

from gangealing_fast.runtime.implementation import used

Result = TypeVar("Result")


def transformed() -> bool:
    """Whether tensors may carry tangents or batches that a kernel does not see."""
    return _are_functorch_transforms_active() or forward_ad._current_level >= 0


def reference_wanted() -> bool:
    """Whether a public operator called now is to run its reference."""
    return used() == "reference" or transformed()


def without_autocast(device: torch.device) -> AbstractContextManager[None]:
    """`with without_autocast(x.device):` computes in the dtypes given; the meta device has no autocast to turn off."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def run_reference(reference: Callable[..., Result], x: torch.Tensor, *arguments: Any, **keywords: Any) -> Result:
    """`reference(x, ...)` in the dtypes it chooses itself, as a kernel would compute it: autocast is off inside."""
    with without_autocast(x.device):
        return reference(x, *arguments, **keywords)
