# SPDX-License-Identifier: Apache-2.0
"""A shorter way into a registered operator where nothing but plain eager autograd is going on.

A `torch.library.custom_op` with a registered derivative spends 20 to 40 µs per call, forward and backward, in general
machinery: more than many kernels take. An `autograd.Function` that calls the operator below autograd computes the same in a
third of that. Wherever more than that is asked for (torch.compile, derivatives of the derivative) the registered operator
itself is called. Under the transforms of torch.func and in forward mode no operator is called at all (`_dispatch.py`).

A gradient may still carry a tangent: that of a graph that was made before the dual level began. `with_tangents` serves it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._C import _are_functorch_transforms_active, _AutoDispatchBelowAutograd
from torch.autograd import forward_ad

Backward = Callable[..., Any]


def with_tangents(backward: Backward) -> Backward:
    """`backward(ctx, *gradients)`, a linear function of the gradients, also for gradients that have tangents in forward mode.

    What `ctx` holds has none: in forward mode the operators run on their references, so nothing was saved then.
    Raises NotImplementedError where a transform of torch.func differentiates a backward that belongs to no transform.
    """

    def call(ctx: Any, *gradients: Any) -> Any:
        if forward_ad._current_level < 0:
            if _are_functorch_transforms_active() and torch.is_grad_enabled():
                raise NotImplementedError(
                    "a transform of torch.func cannot differentiate the backward of a graph that was made outside of it; "
                    "call the operator inside the transformed function."
                )
            return backward(ctx, *gradients)
        parts = [(None, None) if g is None else forward_ad.unpack_dual(g) for g in gradients]
        primals = backward(ctx, *(primal for primal, _ in parts))
        if all(tangent is None for _, tangent in parts):
            return primals
        moved = backward(ctx, *(torch.zeros_like(p) if t is None and p is not None else t for p, t in parts))
        if isinstance(primals, torch.Tensor):
            return forward_ad.make_dual(primals, moved)
        return tuple(None if p is None else forward_ad.make_dual(p, t) for p, t in zip(primals, moved, strict=True))

    return call


def register_derivative(operator: torch.library.CustomOpDef, backward: Backward, setup_context: Callable[..., None] | None) -> None:
    """Register the derivative of `operator` for reverse mode, `backward` being linear in the gradients it is given."""
    operator.register_autograd(with_tangents(backward), setup_context=setup_context)


def eager(
    operator: torch.library.CustomOpDef,
    setup_context: Callable[[Any, tuple[Any, ...], Any], None],
    backward: Backward,
) -> Callable[..., Any]:
    """`operator`, called with positional arguments only, by the shortest way that is right.

    Args:
        operator: a registered operator that changes none of its arguments.
        setup_context, backward: what is registered as its derivative. `backward` calls registered operators; where gradients
            of the gradients are wanted these are recorded by autograd.
    """
    overload = operator._opoverload
    along = with_tangents(backward)

    class Call(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *arguments: Any) -> Any:
            with _AutoDispatchBelowAutograd():
                outputs = overload(*arguments)
            setup_context(ctx, arguments, outputs)
            return outputs

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            if torch.is_grad_enabled() or forward_ad._current_level >= 0:
                return along(ctx, *gradients)
            with _AutoDispatchBelowAutograd():
                return backward(ctx, *gradients)

    def call(*arguments: Any) -> Any:
        if torch.compiler.is_compiling():
            return operator(*arguments)
        if torch.is_grad_enabled():
            return Call.apply(*arguments)
        with _AutoDispatchBelowAutograd():
            return overload(*arguments)

    return call
