# SPDX-License-Identifier: Apache-2.0
"""Huber total variation and identity term of a flow, per sample, in one pass.

With h(a) = a²/2 for |a| <= 1 and |a| - 1/2 beyond,

    tv[n]       = mean of h(flow[n, y, x + 1] - flow[n, y, x]) + mean of h(flow[n, y + 1, x] - flow[n, y, x])
    identity[n] = mean of flow[n]²

over all elements of sample n; the mean over an axis of length 1, which has no differences, is 0. The means of the
returned vectors are GANgealing's total variation and flow identity losses (arXiv 2112.05143).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gangealing_fast.ops._common import check_tensor, compute_dtype, magnitude
from gangealing_fast.ops._dispatch import reference_wanted, run_reference
from gangealing_fast.ops._eager import eager, register_derivative
from gangealing_fast.ops._reference import reference_vjp
from gangealing_fast.ops._triton import serve_cuda


def _huber(difference: Tensor) -> Tensor:
    size = magnitude(difference)
    return torch.where(size <= 1, difference.square() / 2, size - 0.5)


def flow_regularizer_reference(flow: Tensor) -> tuple[Tensor, Tensor]:
    """Plain torch version of `flow_regularizer`, differentiable to any order."""
    flow = flow.to(compute_dtype(flow.dtype))
    variation = flow.new_zeros(flow.shape[0])
    for axis in (1, 2):
        differences = flow.diff(dim=axis)
        variation = variation + _huber(differences).sum((1, 2, 3)) / max(differences.shape[1:].numel(), 1)
    return variation, flow.square().mean((1, 2, 3))


@torch.library.custom_op("gangealing_fast::flow_regularizer", mutates_args=())
def _flow_regularizer(flow: Tensor) -> tuple[Tensor, Tensor]:
    return flow_regularizer_reference(flow)


@_flow_regularizer.register_fake
def _(flow: Tensor) -> tuple[Tensor, Tensor]:
    dtype = compute_dtype(flow.dtype)
    return flow.new_empty(flow.shape[0], dtype=dtype), flow.new_empty(flow.shape[0], dtype=dtype)


def _vjp(grad_tv: Tensor, grad_identity: Tensor, flow: Tensor) -> Tensor:
    return torch.func.vjp(flow_regularizer_reference, flow)[1]((grad_tv, grad_identity))[0]


@torch.library.custom_op("gangealing_fast::flow_regularizer_backward", mutates_args=())
def _flow_regularizer_backward(grad_tv: Tensor, grad_identity: Tensor, flow: Tensor) -> Tensor:
    return reference_vjp(flow_regularizer_reference, (flow,), (grad_tv, grad_identity))[0]


@_flow_regularizer_backward.register_fake
def _(grad_tv: Tensor, grad_identity: Tensor, flow: Tensor) -> Tensor:
    return flow.new_empty(flow.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor | tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad_tv: Tensor, grad_identity: Tensor) -> Tensor:
    return _flow_regularizer_backward(grad_tv, grad_identity, *ctx.saved_tensors)


def _double_backward(ctx: Any, grad_grad_flow: Tensor) -> tuple[Tensor | None, ...]:
    return torch.func.vjp(_vjp, *ctx.saved_tensors)[1](grad_grad_flow)


register_derivative(_flow_regularizer, _backward, _setup_context)
register_derivative(_flow_regularizer_backward, _double_backward, _setup_context)
serve_cuda("flow_regularizer", _flow_regularizer, _flow_regularizer_backward)
_call = eager(_flow_regularizer, _setup_context, _backward)


def flow_regularizer(flow: Tensor) -> tuple[Tensor, Tensor]:
    """Huber total variation and mean square of a flow, per sample.

    flow: `[N, H, W, 2]`, float64, float32, bfloat16 or float16, any strides, H and W at least 1; usually the residual
    flow in normalised units.
    Returns (tv `[N]`, identity `[N]`), float64 for a float64 flow and float32 otherwise. Differentiable to any order;
    the second and higher orders run through the plain reference. Results are bit-identical between runs on a CPU.
    Raises TypeError or ValueError for a tensor that is no flow.
    """
    check_tensor("flow_regularizer", "flow", flow, 4, "[N, H, W, 2]")
    if flow.shape[3] != 2:
        raise ValueError(f"flow_regularizer: the last axis of flow must be 2 (x, y), but its shape is {list(flow.shape)}.")
    if flow.shape[1] == 0 or flow.shape[2] == 0:
        raise ValueError(f"flow_regularizer: flow has no points; its shape is {list(flow.shape)}.")
    if reference_wanted():
        return run_reference(flow_regularizer_reference, flow)
    return _call(flow)
