# SPDX-License-Identifier: Apache-2.0
"""No registered operator loses a tangent: called directly in forward mode, it refuses by a sentence.

The public functions run their references there (`_dispatch.py`). Elsewhere they call `torch.ops.gangealing_fast.<op>`.
torch's own way into a custom operator drops tangents without a word if no gradient is wanted: the derivative would be zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch._library.autograd import make_autograd_impl
from torch._library.custom_ops import _maybe_get_opdef
from torch.autograd import forward_ad

NAMESPACE = "gangealing_fast"
KEYS = ("AutogradCPU", "AutogradCUDA")


def registered() -> list[str]:
    """The names of all operators, without namespace."""
    names = torch._C._dispatch_get_all_op_names()
    return sorted(name.removeprefix(f"{NAMESPACE}::") for name in names if name.startswith(f"{NAMESPACE}::"))


def _tensors(arguments: Sequence[Any]) -> Iterator[torch.Tensor]:
    for argument in arguments:
        if isinstance(argument, torch.Tensor):
            yield argument
        elif isinstance(argument, list | tuple):
            yield from _tensors(argument)


def _refusing(name: str, autograd: Callable[..., Any]) -> Callable[..., Any]:
    """The operator's own way through autograd, behind a look for tangents."""

    def call(keyset: Any, *arguments: Any, **keywords: Any) -> Any:
        if forward_ad._current_level >= 0:
            for tensor in _tensors((*arguments, *keywords.values())):
                if forward_ad.unpack_dual(tensor).tangent is not None:
                    raise NotImplementedError(
                        f"torch.ops.{NAMESPACE}.{name} has no derivative in forward mode (torch.func.jvp, jacfwd, dual numbers); "
                        "call the function of gangealing_fast.ops, which has one."
                    )
        return autograd(keyset, *arguments, **keywords)

    return call


def refuse_tangents() -> torch.library.Library:
    """Have every operator registered so far look for tangents; the registrations last as long as what is returned."""
    library = torch.library.Library(NAMESPACE, "IMPL")
    for name in registered():
        definition = _maybe_get_opdef(f"{NAMESPACE}::{name}")
        assert definition is not None, name
        call = _refusing(name, make_autograd_impl(definition._opoverload, definition))
        for key in KEYS:
            # Beside `Autograd`, which torch registered for all devices; a key of one device comes first.
            library.impl(name, call, key, with_keyset=True)
    return library
