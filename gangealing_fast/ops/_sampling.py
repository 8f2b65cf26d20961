# SPDX-License-Identifier: Apache-2.0
"""Registration of an operator that samples an image at a grid: the same for `grid_sample` and `mipmap_warp`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.library import CustomOpDef

from gangealing_fast.ops._eager import eager, register_derivative
from gangealing_fast.ops._reference import reference_vjp

# (x, grid, padding mode as a number, the operator's own option) -> samples
Sampler = Callable[[Tensor, Tensor, int, Any], Tensor]
# (x, the operator's own option) -> sizes of what the CUDA kernel makes of the image and its backward needs again
Kept = Callable[[Tensor, Any], Sequence[int]]


def register_sampler(name: str, option: str, reference: Sampler, kept: Kept | None = None) -> Sampler:
    """Register `gangealing_fast::<name>` and `<name>_backward` with fakes and derivatives, and return the way to call it.

    Args:
        name: of the operator.
        option: type and name of its last argument in the schema, as "float max_levels".
        reference: the operator in plain torch; it serves where there is no kernel, and for the second derivatives.
        kept: if it is given, the operator has a second output without a derivative, which its backward gets: a tensor of these
            sizes from the CUDA kernel, an empty one from whatever else serves.
    """
    arguments = f"Tensor x, Tensor grid, int padding_mode, {option}"
    forward_op = _register_forward(name, arguments, reference, kept)
    backward_op = _register_backward(name, arguments, reference, kept is not None)
    setup_context, backward = _first_derivative(backward_op)
    register_derivative(forward_op, backward, setup_context)
    setup_context_backward, double_backward = _second_derivative(reference)
    register_derivative(backward_op, double_backward, setup_context_backward)
    call = eager(forward_op, setup_context, backward)
    return call if kept is None else lambda *arguments: call(*arguments)[0]


def _register_forward(name: str, arguments: str, reference: Sampler, kept: Kept | None) -> CustomOpDef:
    """The operator itself, without a derivative."""
    full_name = f"gangealing_fast::{name}"
    outputs = "Tensor" if kept is None else "(Tensor, Tensor)"

    @torch.library.custom_op(full_name, mutates_args=(), schema=f"({arguments}) -> {outputs}")
    def forward_op(x: Tensor, grid: Tensor, padding_mode: int, option: Any) -> Any:
        y = reference(x, grid, padding_mode, option)
        return y if kept is None else (y, y.new_empty(0))

    @forward_op.register_fake
    def _(x: Tensor, grid: Tensor, padding_mode: int, option: Any) -> Any:
        y = x.new_empty(x.shape[0], x.shape[1], grid.shape[1], grid.shape[2])
        if kept is None:
            return y
        if x.device.type != "cuda" or not torch._C._dispatch_has_kernel_for_dispatch_key(full_name, "CUDA"):
            return y, y.new_empty(0)
        wide = torch.promote_types(torch.promote_types(x.dtype, grid.dtype), torch.float32)
        return y, x.new_empty(kept(x, option), dtype=wide)

    return forward_op


def _register_backward(name: str, arguments: str, reference: Sampler, kept: bool) -> CustomOpDef:
    """The operator that gives the gradients of image and grid, `[0]` if not needed, without a derivative."""
    arguments += ", Tensor kept" if kept else ""

    @torch.library.custom_op(
        f"gangealing_fast::{name}_backward",
        mutates_args=(),
        schema=f"(Tensor grad, {arguments}, bool need_x, bool need_grid) -> (Tensor, Tensor)",
    )
    def backward_op(grad: Tensor, x: Tensor, grid: Tensor, padding_mode: int, option: Any, *others: Any) -> tuple[Tensor, Tensor]:
        *_, need_x, need_grid = others
        grads = reference_vjp(lambda x, grid: reference(x, grid, padding_mode, option), (x, grid), grad)
        return grads[0] if need_x else x.new_empty(0), grads[1] if need_grid else grid.new_empty(0)

    @backward_op.register_fake
    def _(grad: Tensor, x: Tensor, grid: Tensor, padding_mode: int, option: Any, *others: Any) -> tuple[Tensor, Tensor]:
        *_, need_x, need_grid = others
        return x.new_empty(x.shape if need_x else 0), grid.new_empty(grid.shape if need_grid else 0)

    return backward_op


def _first_derivative(backward_op: CustomOpDef) -> tuple[Callable[..., None], Callable[..., Any]]:
    """(what the operator's forward keeps, its gradients by the operator `backward_op`)."""
    backward_overload = backward_op._opoverload

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor | tuple[Tensor, Tensor]) -> None:
        x, grid, *ctx.options = inputs
        kept = () if isinstance(output, Tensor) else output[1:]
        ctx.mark_non_differentiable(*kept)
        ctx.set_materialize_grads(False)
        # The gradient of the grid alone reads it.
        ctx.save_for_backward(x, grid, *(k if ctx.needs_input_grad[1] else k.new_empty(0) for k in kept))

    def backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        need_x, need_grid, *_others = ctx.needs_input_grad
        if grad is None:
            return None, None, None, None
        x, grid, *kept = ctx.saved_tensors
        grad_x, grad_grid = backward_overload(grad, x, grid, *ctx.options, *kept, need_x, need_grid)
        return grad_x if need_x else None, grad_grid if need_grid else None, None, None

    return setup_context, backward


def _second_derivative(reference: Sampler) -> tuple[Callable[..., None], Callable[..., Any]]:
    """(what the backward operator keeps, its gradients by deriving `reference` twice)."""

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        grad, x, grid, padding_mode, option, *kept, ctx.need_x, ctx.need_grid = inputs
        ctx.options, ctx.others = (padding_mode, option), len(inputs) - 3
        ctx.save_for_backward(grad, x, grid)

    def double_backward(ctx: Any, grad_grad_x: Tensor, grad_grad_grid: Tensor) -> tuple[Tensor | None, ...]:
        grad, x, grid = ctx.saved_tensors
        tangents = (
            grad_grad_x if ctx.need_x else torch.zeros_like(x),
            grad_grad_grid if ctx.need_grid else torch.zeros_like(grid),
        )

        def first_order(grad: Tensor, x: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
            return torch.func.vjp(lambda x, grid: reference(x, grid, *ctx.options), x, grid)[1](grad)

        return *torch.func.vjp(first_order, grad, x, grid)[1](tangents), *[None] * ctx.others

    return setup_context, double_backward
