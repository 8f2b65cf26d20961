# SPDX-License-Identifier: Apache-2.0
"""Anti-aliased downsampling by an even stride s: reflect-pad s/2, separable tent filter, every s-th sample.

    taps = (1, 3, ..., 2s-1, 2s-1, ..., 3, 1) / (2 s^2),   y = taps (x) taps * reflect_pad(x, s/2), stride s

Linear in x. `bilinear_downsample_backward` is its adjoint, and the adjoint's derivative is the operator again, so that
derivatives of every order exist.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gangealing_fast.ops._common import check_tensor, check_whole, compute_dtype, output_format
from gangealing_fast.ops._dispatch import reference_wanted, run_reference
from gangealing_fast.ops._eager import eager, register_derivative

_ops = torch.ops.gangealing_fast


def tent_taps(stride: int) -> list[float]:
    """The 2 * stride taps (1, 3, ..., 3, 1), scaled to sum to 1."""
    rising = [2 * i + 1 for i in range(stride)]
    return [tap / (2 * stride * stride) for tap in rising + rising[::-1]]


def bilinear_downsample_reference(x: Tensor, stride: int) -> Tensor:
    """Plain torch: reflection padding and two strided convolutions, one plane at a time."""
    n, c, h, w = x.shape
    compute = compute_dtype(x.dtype)
    taps = torch.tensor(tent_taps(stride), dtype=compute, device=x.device)
    pad = stride // 2
    if n * c == 0:  # reflection padding refuses empty batches
        return x.new_empty(n, c, _output_size(h, stride), _output_size(w, stride)) + x.sum()
    z = F.pad(x.to(compute).reshape(n * c, 1, h, w), (pad, pad, pad, pad), mode="reflect")
    z = F.conv2d(z, taps.reshape(1, 1, -1, 1), stride=(stride, 1))
    z = F.conv2d(z, taps.reshape(1, 1, 1, -1), stride=(1, stride))
    return z.reshape(n, c, *z.shape[2:]).to(x.dtype).contiguous(memory_format=output_format(x))


def bilinear_downsample_backward_reference(grad: Tensor, height: int, width: int, stride: int) -> Tensor:
    """Plain torch adjoint: `[N, C, h, w]` to `[N, C, height, width]`, as the gradient of the reference."""
    x = torch.zeros((*grad.shape[:2], height, width), dtype=compute_dtype(grad.dtype), device=grad.device)
    (grad_x,) = torch.func.vjp(lambda x: bilinear_downsample_reference(x, stride), x)[1](grad.to(x.dtype))
    return grad_x.to(grad.dtype).contiguous(memory_format=output_format(grad))


def _output_size(size: int, stride: int) -> int:
    return (size + 2 * (stride // 2) - 2 * stride) // stride + 1


@torch.library.custom_op("gangealing_fast::bilinear_downsample", mutates_args=())
def _bilinear_downsample(x: Tensor, stride: int) -> Tensor:
    return bilinear_downsample_reference(x, stride)


@_bilinear_downsample.register_fake
def _(x: Tensor, stride: int) -> Tensor:
    shape = (*x.shape[:2], _output_size(x.shape[2], stride), _output_size(x.shape[3], stride))
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=output_format(x))


@torch.library.custom_op("gangealing_fast::bilinear_downsample_backward", mutates_args=())
def _bilinear_downsample_backward(grad: Tensor, height: int, width: int, stride: int) -> Tensor:
    return bilinear_downsample_backward_reference(grad, height, width, stride)


@_bilinear_downsample_backward.register_fake
def _(grad: Tensor, height: int, width: int, stride: int) -> Tensor:
    shape = (*grad.shape[:2], height, width)
    return torch.empty(shape, dtype=grad.dtype, device=grad.device, memory_format=output_format(grad))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, ctx.stride = inputs
    ctx.size = x.shape[2:]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return _ops.bilinear_downsample_backward(grad, ctx.size[0], ctx.size[1], ctx.stride), None


def _setup_backward_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.stride = inputs[3]


def _double_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return _ops.bilinear_downsample(grad, ctx.stride), None, None, None


register_derivative(_bilinear_downsample, _backward, _setup_context)
register_derivative(_bilinear_downsample_backward, _double_backward, _setup_backward_context)
_call = eager(_bilinear_downsample, _setup_context, _backward)


def bilinear_downsample(x: Tensor, stride: int) -> Tensor:
    """Downsample images by an even stride with a tent filter and reflected borders.

    Args:
        x: images `[N, C, H, W]`, any floating dtype, H and W larger than `stride`.
        stride: the factor, even, >= 2.

    Returns:
        `[N, C, H // stride, W // stride]` in the dtype and layout of `x`. Differentiable to any order.

    Raises:
        ValueError, TypeError: an argument does not fit; the message says which and how.
    """
    check_tensor("bilinear_downsample", "x", x, 4, "[N, C, H, W]")
    check_whole("bilinear_downsample", stride=stride)
    if stride < 2 or stride % 2:
        raise ValueError(f"bilinear_downsample: stride must be even and at least 2, not {stride}.")
    if min(x.shape[2:]) < stride:
        raise ValueError(f"bilinear_downsample: an image of {x.shape[2]} x {x.shape[3]} is too small for stride {stride}.")
    if reference_wanted():
        return run_reference(bilinear_downsample_reference, x, stride)
    return _call(x, stride)
