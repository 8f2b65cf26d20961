# SPDX-License-Identifier: Apache-2.0
"""Bias, noise, leaky ReLU and gain in one pass over the activations (Karras et al. 2020, arXiv 1912.04958).

    y = gain * lrelu(x + noise * noise_strength + b),   lrelu(v) = v where v > 0, else slope * v

Since slope >= 0 and gain > 0, the sign of y is the sign of its argument: the backward needs y alone, not x. It keeps to the sign
bit, which outlives the rounding of y to 0: a zero is negative unless it is what a positive argument became.
It is linear in the incoming gradient, so its own derivative is itself again (the second derivative in y is zero almost everywhere).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gangealing_fast.ops._common import check_device, check_tensor, compute_dtype, output_format, parameter
from gangealing_fast.ops._dispatch import reference_wanted, run_reference
from gangealing_fast.ops._eager import eager, register_derivative
from gangealing_fast.ops._triton import serve_cuda

_ops = torch.ops.gangealing_fast


def bias_act_reference(
    x: Tensor,
    b: Tensor | None,
    *,
    slope: float = 0.2,
    gain: float = 2**0.5,
    noise: Tensor | None = None,
    noise_strength: Tensor | None = None,
) -> Tensor:
    """Plain torch; arguments as for `bias_act`."""
    compute = compute_dtype(x.dtype)
    y = x.to(compute)
    if noise is not None and noise_strength is not None:
        y = y + noise.to(compute) * noise_strength.to(compute)
    if b is not None:
        y = y + b.to(compute).reshape(1, -1, *[1] * (x.dim() - 2))
    y = F.leaky_relu(y, slope) * gain
    return y.to(x.dtype).contiguous(memory_format=output_format(x))


def bias_act_with_sign(
    x: Tensor, b: Tensor | None, noise: Tensor | None, noise_strength: Tensor | None, slope: float, gain: float
) -> Tensor:
    """`bias_act_reference` with the sign bit that the backward goes by: clear where the activation's argument was positive."""
    y = bias_act_reference(x, b, slope=slope, gain=gain, noise=noise, noise_strength=noise_strength)
    wide = x.to(compute_dtype(x.dtype))
    argument = bias_act_reference(wide, b, slope=1.0, gain=1.0, noise=noise, noise_strength=noise_strength)
    return torch.where(argument > 0, y, y.abs().neg()).contiguous(memory_format=output_format(x))


def bias_act_backward_reference(
    grad: Tensor, y: Tensor, slope: float, gain: float, need_bias: bool, noise_batch: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Plain torch backward from the output `y`.

    Returns:
        The gradient of the activation's argument in the layout of `y`; its sum over all but the channels `[C]` (`[0]` unless
        `need_bias`); its sum over the channels `[noise_batch, 1, ...]` (`[0]` where `noise_batch` is -1). The sums are kept in
        the dtype computed in.
    """
    compute = compute_dtype(y.dtype)
    full = grad.to(compute) * gain
    full = torch.where(torch.signbit(y) | y.isnan(), full * slope, full)
    bias = full.sum([0, *range(2, y.dim())]) if need_bias else full.new_empty(0)
    plane = full.new_empty(0)
    if noise_batch >= 0:
        plane = full.sum(1, keepdim=True)
        plane = plane.sum(0, keepdim=True) if noise_batch == 1 else plane
    return full.to(y.dtype).contiguous(memory_format=output_format(y)), bias, plane


@torch.library.custom_op("gangealing_fast::bias_act", mutates_args=())
def _bias_act(
    x: Tensor, b: Tensor | None, noise: Tensor | None, noise_strength: Tensor | None, slope: float, gain: float
) -> Tensor:
    return bias_act_with_sign(x, b, noise, noise_strength, slope, gain)


@_bias_act.register_fake
def _(x: Tensor, b: Tensor | None, noise: Tensor | None, noise_strength: Tensor | None, slope: float, gain: float) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=output_format(x))


@torch.library.custom_op("gangealing_fast::bias_act_backward", mutates_args=())
def _bias_act_backward(
    grad: Tensor, y: Tensor, slope: float, gain: float, need_bias: bool, noise_batch: int
) -> tuple[Tensor, Tensor, Tensor]:
    return bias_act_backward_reference(grad, y, slope, gain, need_bias, noise_batch)


@_bias_act_backward.register_fake
def _(grad: Tensor, y: Tensor, slope: float, gain: float, need_bias: bool, noise_batch: int) -> tuple[Tensor, Tensor, Tensor]:
    compute = compute_dtype(y.dtype)
    plane = (noise_batch, 1, *y.shape[2:]) if noise_batch >= 0 else (0,)
    return (
        torch.empty(y.shape, dtype=y.dtype, device=y.device, memory_format=output_format(y)),
        torch.empty(y.shape[1] if need_bias else 0, dtype=compute, device=y.device),
        torch.empty(plane, dtype=compute, device=y.device),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, b, noise, noise_strength, slope, gain = inputs
    ctx.slope, ctx.gain, ctx.dtype = slope, gain, x.dtype
    ctx.has_noise = noise is not None
    ctx.save_for_backward(output, *((noise, noise_strength) if ctx.has_noise else ()))


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    y, *rest = ctx.saved_tensors
    need_x, need_b, need_noise, need_strength = ctx.needs_input_grad[:4]
    noise_batch = rest[0].shape[0] if need_noise or need_strength else -1
    grad_x, grad_b, plane = _ops.bias_act_backward(grad, y, ctx.slope, ctx.gain, need_b, noise_batch)
    grad_noise = plane * rest[1] if need_noise else None
    grad_strength = (plane * rest[0]).sum().reshape(rest[1].shape) if need_strength else None
    return grad_x if need_x else None, grad_b if need_b else None, grad_noise, grad_strength, None, None


def _setup_backward_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    _, y, ctx.slope, ctx.gain, ctx.need_bias, ctx.noise_batch = inputs
    ctx.save_for_backward(y)


def _double_backward(ctx: Any, grad_x: Tensor, grad_bias: Tensor, grad_plane: Tensor) -> tuple[Tensor | None, ...]:
    (y,) = ctx.saved_tensors
    total = grad_x
    if ctx.need_bias:
        total = total + grad_bias.to(y.dtype).reshape(1, -1, *[1] * (y.dim() - 2))
    if ctx.noise_batch >= 0:
        total = total + grad_plane.to(y.dtype)
    return _ops.bias_act_backward(total, y, ctx.slope, ctx.gain, False, -1)[0], *[None] * 5


register_derivative(_bias_act, _backward, _setup_context)
register_derivative(_bias_act_backward, _double_backward, _setup_backward_context)
serve_cuda("bias_act", _bias_act, _bias_act_backward)
_call = eager(_bias_act, _setup_context, _backward)


def bias_act(
    x: Tensor,
    b: Tensor | None,
    *,
    slope: float = 0.2,
    gain: float = 2**0.5,
    noise: Tensor | None = None,
    noise_strength: Tensor | None = None,
) -> Tensor:
    """Add a bias per channel and scaled noise, then a leaky ReLU times a gain.

    Args:
        x: activations `[N, C, ...]` of rank 2 to 5, any floating dtype.
        b: bias `[C]` or None; of the dtype of `x`, or float32 beside half precision.
        slope: slope of the negative side, >= 0. 1 makes the operator linear.
        gain: multiplies the result, > 0.
        noise: `[N or 1, 1, ...]` with the spatial sizes of `x`, the same for every channel; needs `noise_strength`.
        noise_strength: one number, `[]` or `[1]`.

    Returns:
        `[N, C, ...]` in the dtype and layout of `x`. Differentiable to any order in x, b, noise and noise_strength.

    Raises:
        ValueError, TypeError: an argument does not fit; the message says which and how.
    """
    check_tensor("bias_act", "x", x, (2, 3, 4, 5), "[N, C, ...]")
    check_device("bias_act", x, b=b, noise=noise, noise_strength=noise_strength)
    if not gain > 0 or not slope >= 0:
        raise ValueError(f"bias_act: gain must be positive and slope not negative, not gain={gain}, slope={slope}.")
    if b is not None:
        check_tensor("bias_act", "b", b, 1, "[C]")
        if b.shape[0] != x.shape[1]:
            raise ValueError(f"bias_act: b has {b.shape[0]} entries but x has {x.shape[1]} channels.")
        b = parameter("bias_act", "b", b, x)
    if (noise is None) != (noise_strength is None):
        raise ValueError("bias_act: noise and noise_strength belong together; give both or neither.")
    if noise is not None and noise_strength is not None:
        expected = [x.shape[0], 1, *x.shape[2:]]
        if list(noise.shape) not in (expected, [1, *expected[1:]]):
            raise ValueError(f"bias_act: noise has shape {list(noise.shape)}, expected {expected} or a batch of 1.")
        if noise_strength.numel() != 1:
            raise ValueError(f"bias_act: noise_strength must be one number, but has shape {list(noise_strength.shape)}.")
        noise = parameter("bias_act", "noise", noise, x)
        noise_strength = parameter("bias_act", "noise_strength", noise_strength, x)
    if reference_wanted():
        return run_reference(bias_act_reference, x, b, slope=slope, gain=gain, noise=noise, noise_strength=noise_strength)
    return _call(x, b, noise, noise_strength, float(slope), float(gain))
