# SPDX-License-Identifier: Apache-2.0
"""A shorter way into a registered operator where nothing but plain eager autograd is going on.

A `torch.library.custom_op` with a registered derivative spends 20 to 40 µs per call, forward and backward, in general
machinery: more than many kernels take. An `autograd.Function` that calls the operator below autograd computes the same in a
third of that. Wherever more than that is asked for (torch.compile, torch.func transforms, derivatives of the derivative)
the registered operator itself is called.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._C import _are_functorch_transforms_active, _AutoDispatchBelowAutograd


def eager(
    operator: torch.library.CustomOpDef,
    setup_context: Callable[[Any, tuple[Any, ...], Any], None],
    backward: Callable[..., Any],
) -> Callable[..., Any]:
    """`operator`, called with positional arguments only, by the shortest way that is right.

    Args:
        operator: a registered operator that changes none of its arguments.
        setup_context, backward: what is registered as its derivative. `backward` calls registered operators; where gradients
            of the gradients are wanted these are recorded by autograd.
    """
    overload = operator._opoverload

    class Call(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *arguments: Any) -> Any:
            with _AutoDispatchBelowAutograd():
                outputs = overload(*arguments)
            setup_context(ctx, arguments, outputs)
            return outputs

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            if torch.is_grad_enabled():
                return backward(ctx, *gradients)
            with _AutoDispatchBelowAutograd():
                return backward(ctx, *gradients)

    def call(*arguments: Any) -> Any:
        if torch.compiler.is_compiling() or _are_functorch_transforms_active():
            return operator(*arguments)
        if torch.is_grad_enabled():
            return Call.apply(*arguments)
        with _AutoDispatchBelowAutograd():
            return overload(*arguments)

    return call
