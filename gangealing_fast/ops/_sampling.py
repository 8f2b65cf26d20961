# SPDX-License-Identifier: Apache-2.0
"""Registration of an operator that samples an image at a grid: the same for `grid_sample` and `mipmap_warp`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.library import CustomOpDef

from gangealing_fast.ops._eager import eager, register_derivative
from gangealing_fast.ops._reference import reference_vjp

# (x, grid, padding mode as a number, the operator's own option) -> samples
Sampler = Callable[[Tensor, Tensor, int, Any], Tensor]


def register_sampler(name: str, option: str, reference: Sampler) -> Sampler:
    """Register `gangealing_fast::<name>` and `<name>_backward` with fakes and derivatives, and return the way to call it.

    Args:
        name: of the operator.
        option: type and name of its last argument in the schema, as "float max_levels".
        reference: the operator in plain torch; it serves where there is no kernel, and for the second derivatives.
    """
    arguments = f"Tensor x, Tensor grid, int padding_mode, {option}"
    forward_op = _register_forward(name, arguments, reference)
    backward_op = _register_backward(name, arguments, reference)
    setup_context, backward = _first_derivative(backward_op)
    register_derivative(forward_op, backward, setup_context)
    setup_context_backward, double_backward = _second_derivative(reference)
    register_derivative(backward_op, double_backward, setup_context_backward)
    return eager(forward_op, setup_context, backward)


def _register_forward(name: str, arguments: str, reference: Sampler) -> CustomOpDef:
    """The operator itself, without a derivative."""

    @torch.library.custom_op(f"gangealing_fast::{name}", mutates_args=(), schema=f"({arguments}) -> Tensor")
    def forward_op(x: Tensor, grid: Tensor, padding_mode: int, option: Any) -> Tensor:
        return reference(x, grid, padding_mode, option)

    @forward_op.register_fake
    def _(x: Tensor, grid: Tensor, padding_mode: int, option: Any) -> Tensor:
        return x.new_empty(x.shape[0], x.shape[1], grid.shape[1], grid.shape[2])

    return forward_op


def _register_backward(name: str, arguments: str, reference: Sampler) -> CustomOpDef:
    """The operator that gives the gradients of image and grid, `[0]` if not needed, without a derivative."""

    @torch.library.custom_op(
        f"gangealing_fast::{name}_backward",
        mutates_args=(),
        schema=f"(Tensor grad, {arguments}, bool need_x, bool need_grid) -> (Tensor, Tensor)",
    )
    def backward_op(
        grad: Tensor, x: Tensor, grid: Tensor, padding_mode: int, option: Any, need_x: bool, need_grid: bool
    ) -> tuple[Tensor, Tensor]:
        grads = reference_vjp(lambda x, grid: reference(x, grid, padding_mode, option), (x, grid), grad)
        return grads[0] if need_x else x.new_empty(0), grads[1] if need_grid else grid.new_empty(0)

    @backward_op.register_fake
    def _(
        grad: Tensor, x: Tensor, grid: Tensor, padding_mode: int, option: Any, need_x: bool, need_grid: bool
    ) -> tuple[Tensor, Tensor]:
        return x.new_empty(x.shape if need_x else 0), grid.new_empty(grid.shape if need_grid else 0)

    return backward_op


def _first_derivative(backward_op: CustomOpDef) -> tuple[Callable[..., None], Callable[..., Any]]:
    """(what the operator's forward keeps, its gradients by the operator `backward_op`)."""
    backward_overload = backward_op._opoverload

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, grid, *ctx.options = inputs
        ctx.save_for_backward(x, grid)

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        need_x, need_grid, *_ = ctx.needs_input_grad
        grad_x, grad_grid = backward_overload(grad, *ctx.saved_tensors, *ctx.options, need_x, need_grid)
        return grad_x if need_x else None, grad_grid if need_grid else None, None, None

    return setup_context, backward


def _second_derivative(reference: Sampler) -> tuple[Callable[..., None], Callable[..., Any]]:
    """(what the backward operator keeps, its gradients by deriving `reference` twice)."""

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        grad, x, grid, *ctx.options, ctx.need_x, ctx.need_grid = inputs
        ctx.save_for_backward(grad, x, grid)

    def double_backward(ctx: Any, grad_grad_x: Tensor, grad_grad_grid: Tensor) -> tuple[Tensor | None, ...]:
        grad, x, grid = ctx.saved_tensors
        tangents = (
            grad_grad_x if ctx.need_x else torch.zeros_like(x),
            grad_grad_grid if ctx.need_grid else torch.zeros_like(grid),
        )

        def first_order(grad: Tensor, x: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
            return torch.func.vjp(lambda x, grid: reference(x, grid, *ctx.options), x, grid)[1](grad)

        return *torch.func.vjp(first_order, grad, x, grid)[1](tangents), None, None, None, None

    return setup_context, double_backward
