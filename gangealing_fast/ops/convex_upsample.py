# SPDX-License-Identifier: Apache-2.0
"""Learned convex upsampling of a flow (RAFT, arXiv 2003.12039, section 3.3).

The mask `[N, 9 f f, h, w]` is viewed as (9, f, f, h, w) and softmaxed over the 9; the fine vector at (f y + i, f x + j)
is

    sum over k of softmax(mask)[k, i, j, y, x] * f * flow[y + k // 3 - 1, x + k % 3 - 1]

with zeros outside the coarse flow: a convex combination of the 3x3 coarse neighbours, in units of the fine grid.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gangealing_fast.ops._common import check_device, check_tensor
from gangealing_fast.ops._dispatch import reference_wanted, run_reference
from gangealing_fast.ops._eager import eager, register_derivative
from gangealing_fast.ops._reference import reference_vjp
from gangealing_fast.ops._triton import serve_cuda
from gangealing_fast.ops.grid_sample import widest_dtype


def convex_upsample_reference(flow: Tensor, mask: Tensor, factor: int = 8) -> Tensor:
    """Plain torch version of `convex_upsample`, differentiable to any order."""
    dtype = widest_dtype(flow, mask)
    batch, height, width, _ = flow.shape
    padded = F.pad(factor * flow.to(dtype), (0, 0, 1, 1, 1, 1))
    weights = mask.to(dtype).view(batch, 9, factor, factor, height, width).softmax(1)
    result = weights.new_zeros(())
    for k in range(9):
        row, column = divmod(k, 3)
        neighbour = padded[:, row : row + height, column : column + width]
        result = result + weights[:, k, ..., None] * neighbour[:, None, None]
    # [N, i, j, h, w, 2] -> [N, h, i, w, j, 2]
    return result.permute(0, 3, 1, 4, 2, 5).reshape(batch, height * factor, width * factor, 2).to(flow.dtype)


@torch.library.custom_op("gangealing_fast::convex_upsample", mutates_args=())
def _convex_upsample(flow: Tensor, mask: Tensor, factor: int) -> Tensor:
    return convex_upsample_reference(flow, mask.contiguous(), factor).contiguous()


@_convex_upsample.register_fake
def _(flow: Tensor, mask: Tensor, factor: int) -> Tensor:
    return flow.new_empty(flow.shape[0], flow.shape[1] * factor, flow.shape[2] * factor, 2)


def _vjp(grad: Tensor, flow: Tensor, mask: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    def forward(flow: Tensor, mask: Tensor) -> Tensor:
        return convex_upsample_reference(flow, mask, factor)

    return torch.func.vjp(forward, flow, mask.contiguous())[1](grad)


@torch.library.custom_op("gangealing_fast::convex_upsample_backward", mutates_args=())
def _convex_upsample_backward(grad: Tensor, flow: Tensor, mask: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    def forward(flow: Tensor, mask: Tensor) -> Tensor:
        return convex_upsample_reference(flow, mask, factor)

    grad_flow, grad_mask = reference_vjp(forward, (flow, mask.contiguous()), grad)
    return grad_flow, grad_mask


@_convex_upsample_backward.register_fake
def _(grad: Tensor, flow: Tensor, mask: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    return flow.new_empty(flow.shape), mask.new_empty(mask.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor | tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.factor = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *_convex_upsample_backward(grad, *ctx.saved_tensors, ctx.factor), None


def _double_backward(ctx: Any, grad_grad_flow: Tensor, grad_grad_mask: Tensor) -> tuple[Tensor | None, ...]:
    def first_order(grad: Tensor, flow: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return _vjp(grad, flow, mask, ctx.factor)

    return *torch.func.vjp(first_order, *ctx.saved_tensors)[1]((grad_grad_flow, grad_grad_mask)), None


register_derivative(_convex_upsample, _backward, _setup_context)
register_derivative(_convex_upsample_backward, _double_backward, _setup_context)
serve_cuda("convex_upsample", _convex_upsample, _convex_upsample_backward)
_call = eager(_convex_upsample, _setup_context, _backward)


def convex_upsample(flow: Tensor, mask: Tensor, factor: int = 8) -> Tensor:
    """Enlarge `flow` by `factor`, every fine vector a convex combination of its 3x3 coarse neighbours.

    flow: `[N, h, w, 2]` in units of the coarse grid; mask: `[N, 9 * factor * factor, h, w]`, logits; both float64,
    float32, bfloat16 or float16 (they may differ), any strides. factor: 1 to 64.
    Returns `[N, h * factor, w * factor, 2]` in flow's dtype, contiguous. Differentiable to any order; the second and
    higher orders run through the plain reference. Results are bit-identical between runs on a CPU.
    Raises TypeError or ValueError for inputs that do not fit together.
    """
    check_tensor("convex_upsample", "flow", flow, 4, "[N, h, w, 2]")
    check_tensor("convex_upsample", "mask", mask, 4, "[N, 9 * factor * factor, h, w]")
    check_device("convex_upsample", flow, mask=mask)
    if isinstance(factor, bool) or not isinstance(factor, int) or not 1 <= factor <= 64:
        raise ValueError(f"convex_upsample: factor must be a whole number from 1 to 64, not {factor!r}.")
    if flow.shape[3] != 2:
        raise ValueError(f"convex_upsample: the last axis of flow must be 2 (x, y), but its shape is {list(flow.shape)}.")
    expected = (flow.shape[0], 9 * factor * factor, flow.shape[1], flow.shape[2])
    if tuple(mask.shape) != expected:
        raise ValueError(
            f"convex_upsample: for a flow of shape {list(flow.shape)} and factor {factor} mask must be of shape "
            f"{list(expected)}, but it is {list(mask.shape)}."
        )
    if reference_wanted():
        return run_reference(convex_upsample_reference, flow, mask, factor)
    return _call(flow, mask, factor)
