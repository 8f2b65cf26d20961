# SPDX-License-Identifier: Apache-2.0
"""Adaptive instance normalisation: every channel of every sample to a given mean and spread (arXiv 1703.06868).

With the mean and the variance of x over the positions of one sample and channel, of which there are S,

    r = 1 / sqrt(variance + eps),   n = (x - mean) r,   y = scale n + shift

    dL/dscale = sum of g n,   dL/dshift = sum of g,   dL/dx = scale r (g - mean of g - n * mean of g n)

for the gradient g of y. Between forward and backward x, scale, the mean and r are kept, the last two `[N, C]`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gangealing_fast.ops._common import check_device, check_tensor, compute_dtype, output_format, parameter
from gangealing_fast.ops._dispatch import reference_wanted, run_reference
from gangealing_fast.ops._eager import eager, register_derivative
from gangealing_fast.ops._triton import serve_cuda


def _statistics(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    axes = tuple(range(2, x.dim()))
    mean = x.mean(axes, keepdim=True)
    variance = (x - mean).square().mean(axes, keepdim=True)
    return mean, (variance + eps).rsqrt()


def _spread(vector: Tensor, x: Tensor) -> Tensor:
    """`[N, C]` with as many axes of length 1 as x has positional ones."""
    return vector.to(compute_dtype(x.dtype)).reshape(*x.shape[:2], *[1] * (x.dim() - 2))


def adain_reference(x: Tensor, scale: Tensor, shift: Tensor, eps: float = 1e-5) -> Tensor:
    """Plain torch version of `adain`, differentiable to any order."""
    wide = x.to(compute_dtype(x.dtype))
    mean, rstd = _statistics(wide, eps)
    y = (wide - mean) * rstd * _spread(scale, x) + _spread(shift, x)
    return y.to(x.dtype).contiguous(memory_format=output_format(x))


def adain_backward_reference(grad: Tensor, x: Tensor, scale: Tensor, mean: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Plain torch gradients of x, scale and shift from the statistics `[N, C]` of the forward."""
    compute = compute_dtype(x.dtype)
    axes = tuple(range(2, x.dim()))
    grad, mean, rstd = grad.to(compute), _spread(mean, x), _spread(rstd, x)
    normalised = (x.to(compute) - mean) * rstd
    product = grad * normalised
    inner = grad - grad.mean(axes, keepdim=True) - normalised * product.mean(axes, keepdim=True)
    grad_x = _spread(scale, x) * rstd * inner
    return grad_x.to(x.dtype).contiguous(memory_format=output_format(x)), product.sum(axes), grad.sum(axes)


@torch.library.custom_op("gangealing_fast::adain", mutates_args=())
def _adain(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    mean, rstd = _statistics(x.to(compute_dtype(x.dtype)), eps)
    shape = x.shape[:2]
    return adain_reference(x, scale, shift, eps), mean.reshape(shape).contiguous(), rstd.reshape(shape).contiguous()


@_adain.register_fake
def _(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    statistic = x.new_empty(x.shape[:2], dtype=compute_dtype(x.dtype))
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=output_format(x))
    return y, statistic, torch.empty_like(statistic)


@torch.library.custom_op("gangealing_fast::adain_backward", mutates_args=())
def _adain_backward(
    grad: Tensor, x: Tensor, scale: Tensor, mean: Tensor, rstd: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    return adain_backward_reference(grad, x, scale, mean, rstd)


@_adain_backward.register_fake
def _(grad: Tensor, x: Tensor, scale: Tensor, mean: Tensor, rstd: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    grad_x = torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=output_format(x))
    return grad_x, torch.empty_like(scale), torch.empty_like(scale)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, scale, _, ctx.eps = inputs
    _, mean, rstd = output
    ctx.mark_non_differentiable(mean, rstd)
    ctx.save_for_backward(x, scale, mean, rstd)


def _backward(ctx: Any, grad: Tensor, grad_mean: Tensor, grad_rstd: Tensor) -> tuple[Tensor | None, ...]:
    return *_adain_backward(grad, *ctx.saved_tensors, ctx.eps), None


def _setup_context_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    grad, x, scale, _, _, ctx.eps = inputs
    ctx.save_for_backward(grad, x, scale)


def _double_backward(ctx: Any, *tangents: Tensor) -> tuple[Tensor | None, ...]:
    """The statistics are functions of x, and derived as such."""

    def first_order(grad: Tensor, x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, rstd = _statistics(x.to(compute_dtype(x.dtype)), ctx.eps)
        return adain_backward_reference(grad, x, scale, mean, rstd)

    gradients = torch.func.vjp(first_order, *ctx.saved_tensors)[1](tangents)
    return *gradients, None, None, None


register_derivative(_adain, _backward, _setup_context)
register_derivative(_adain_backward, _double_backward, _setup_context_backward)
serve_cuda("adain", _adain, _adain_backward)
_call = eager(_adain, _setup_context, _backward)


def adain(x: Tensor, scale: Tensor, shift: Tensor, eps: float = 1e-5) -> Tensor:
    """Normalise every channel of every sample over its positions, then scale and shift it.

    x: `[N, C, ...]` of rank 3 to 5 with at least one position, float64, float32, bfloat16 or float16, any strides.
    scale, shift: `[N, C]`, of x's dtype or the one computed in (float32; float64 for a float64 x).
    eps: added to the variance (the biased one: divided by the number of positions), positive.
    Returns x's shape, dtype and layout. Differentiable to any order; the second and higher orders run through the plain
    reference. Bit-identical between runs on a CPU. A channel that holds a NaN or infinite value becomes NaN, others do not.
    Raises TypeError or ValueError for arguments that do not fit together.
    """
    check_tensor("adain", "x", x, (3, 4, 5), "[N, C, ...] with one to three positional axes")
    check_device("adain", x, scale=scale, shift=shift)
    for name, vector in (("scale", scale), ("shift", shift)):
        check_tensor("adain", name, vector, 2, "[N, C]")
        if vector.shape != x.shape[:2]:
            raise ValueError(f"adain: {name} has shape {list(vector.shape)}, but x needs {list(x.shape[:2])}.")
    if 0 in x.shape[2:]:
        raise ValueError(f"adain: x has no positions to normalise over; its shape is {list(x.shape)}.")
    if not eps > 0:
        raise ValueError(f"adain: eps must be positive, not {eps!r}.")
    if reference_wanted():
        return run_reference(adain_reference, x, scale, shift, eps)
    return _call(x, parameter("adain", "scale", scale, x), parameter("adain", "shift", shift, x), float(eps))[0]
