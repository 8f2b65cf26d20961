# SPDX-License-Identifier: Apache-2.0
"""Splatting: every point paints a Gaussian of its values onto an image (GANgealing, arXiv 2112.05143).

A point at c = (x, y) with `0 <= x < W` and `0 <= y < H` reaches the pixels q in `[floor(c - 2 sigma), ceil(c + 2 sigma)]`,
clipped to the image, with the weight `a = exp(-|c - q|² / (2 sigma²))`. With the sums over all points

    S = background + sum of a * value,   A = sum of a,   D = A + 1e-8   (soft: max(A, 1) + 1e-8),   result = S / D

Points outside the image, points that are not finite and points whose sigma is not positive paint nothing. So without
`soft` a pixel that no point reaches holds 1e8 times its background: give a background of zeros, or `soft`.

For a gradient g of the result, S receives s = g / D and A receives t = -sum over channels of g * result / D (soft: only
where A >= 1); the weight of a point at a pixel receives w = s · value + t, and from it

    value: sum of a s,   c: sum of a w (q - c) / sigma²,   sigma: sum of a w |q - c|² / sigma³

over the pixels it reaches. That the reach depends on c and sigma is no part of the derivative.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import get_unwrapped, is_functorch_wrapped_tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from gangealing_fast.ops._common import check_tensor, compute_dtype, output_format, parameter
from gangealing_fast.ops._dispatch import reference_wanted, run_reference, transformed
from gangealing_fast.ops._eager import eager, register_derivative
from gangealing_fast.ops._reference import reference_vjp

_EPSILON = 1e-8


def _largest(lengths: Tensor, bound: int) -> int:
    """The largest of all `lengths`, those of the other samples of a `torch.func.vmap` included; `bound` where a tracer hides it."""
    compiling = torch.compiler.is_compiling()
    if transformed() if compiling else get_proxy_mode() is not None:
        return bound
    while not compiling and is_functorch_wrapped_tensor(lengths):
        lengths = get_unwrapped(lengths)
    return int(lengths.max())


def _sums(background: Tensor, xy: Tensor, values: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """S `[N, C, H, W]` and A `[N, 1, H, W]`, by scatter-add over the window of every point."""
    batch, channels, height, width = background.shape
    size = torch.tensor((width, height), dtype=xy.dtype, device=xy.device)
    inside = ((xy >= 0) & (xy < size)).all(-1) & (sigma > 0)  # [N, P]
    xy, sigma = torch.where(inside.unsqueeze(-1), xy, 0.0).unsqueeze(-1), torch.where(inside, sigma, 1.0)[..., None, None]
    first = (xy - 2 * sigma).floor().clamp(min=0).detach()  # [N, P, 2, 1]
    last = torch.minimum((xy + 2 * sigma).ceil(), size.unsqueeze(-1) - 1).detach()
    window = _largest(last - first, max(height, width) - 1) + 1 if first.numel() else 0
    pixel = first + torch.arange(window, dtype=xy.dtype, device=xy.device)  # [N, P, 2, K]
    reached = (pixel <= last) & inside[..., None, None]
    reached = reached[:, :, 1, :, None] & reached[:, :, 0, None, :]  # [N, P, K, K], rows first
    squared = ((pixel - xy) / sigma).square()
    weight = torch.where(reached, torch.exp(-(squared[:, :, 1, :, None] + squared[:, :, 0, None, :]) / 2), 0.0)
    index = torch.where(reached, pixel[:, :, 1, :, None] * width + pixel[:, :, 0, None, :], 0).long().flatten(1)
    total = weight.new_zeros(batch, height * width).scatter_add(1, index, weight.flatten(1))
    painted = torch.where(reached.unsqueeze(1), weight.unsqueeze(1) * values.mT[..., None, None], 0.0)  # [N, C, P, K, K]
    sums = background.flatten(2).scatter_add(2, index.unsqueeze(1).expand(-1, channels, -1), painted.flatten(2))
    return sums.view(background.shape), total.view(batch, 1, height, width)


def _normalise(sums: Tensor, total: Tensor, soft: bool) -> Tensor:
    return sums / ((total.clamp(min=1) if soft else total) + _EPSILON)


def splat2d_reference(background: Tensor, xy: Tensor, values: Tensor, sigma: Tensor, *, soft: bool = False) -> Tensor:
    """Plain torch version of `splat2d`, differentiable to any order; holds the windows of all points at once."""
    compute = compute_dtype(background.dtype)
    background_, xy, values, sigma = (t.to(compute) for t in (background, xy, values, sigma))
    sigma = sigma.unsqueeze(1).expand(xy.shape[:2]) if sigma.dim() == 1 else sigma
    result = _normalise(*_sums(background_, xy, values, sigma), soft)
    return result.to(background.dtype).contiguous(memory_format=output_format(background))


@torch.library.custom_op("gangealing_fast::splat2d", mutates_args=())
def _splat2d(background: Tensor, xy: Tensor, values: Tensor, sigma: Tensor, soft: bool) -> tuple[Tensor, Tensor]:
    sums, total = _sums(background, xy, values, sigma)
    return _normalise(sums, total, soft).contiguous(memory_format=output_format(background)), total


@_splat2d.register_fake
def _(background: Tensor, xy: Tensor, values: Tensor, sigma: Tensor, soft: bool) -> tuple[Tensor, Tensor]:
    result = torch.empty(
        background.shape, dtype=background.dtype, device=background.device, memory_format=output_format(background)
    )
    return result, background.new_empty(background.shape[0], 1, *background.shape[2:])


@torch.library.custom_op("gangealing_fast::splat2d_backward", mutates_args=())
def _splat2d_backward(
    grad: Tensor, result: Tensor, total: Tensor, xy: Tensor, values: Tensor, sigma: Tensor, soft: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    divisor = (total.clamp(min=1) if soft else total) + _EPSILON
    grad_sums = grad / divisor
    grad_total = -(grad_sums * result).sum(1, keepdim=True)
    if soft:
        grad_total = torch.where(total >= 1, grad_total, 0.0)
    background = torch.zeros_like(result)
    grad_xy, grad_values, grad_sigma = reference_vjp(
        lambda *points: _sums(background, *points), (xy, values, sigma), (grad_sums, grad_total)
    )
    return grad_sums.contiguous(memory_format=output_format(result)), grad_xy, grad_values, grad_sigma


@_splat2d_backward.register_fake
def _(
    grad: Tensor, result: Tensor, total: Tensor, xy: Tensor, values: Tensor, sigma: Tensor, soft: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grad_background = torch.empty(result.shape, dtype=result.dtype, device=result.device, memory_format=output_format(result))
    return grad_background, xy.new_empty(xy.shape), values.new_empty(values.shape), sigma.new_empty(sigma.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, xy, values, sigma, ctx.soft = inputs
    result, total = output
    ctx.mark_non_differentiable(total)
    ctx.save_for_backward(result, total, xy, values, sigma)


def _backward(ctx: Any, grad: Tensor, grad_total: Tensor) -> tuple[Tensor | None, ...]:
    return *_splat2d_backward(grad, *ctx.saved_tensors, ctx.soft), None


def _double_backward(ctx: Any, *tangents: Tensor) -> tuple[Tensor | None, ...]:
    raise NotImplementedError("splat2d has first derivatives only; its second derivative was asked for.")


register_derivative(_splat2d, _backward, _setup_context)
register_derivative(_splat2d_backward, _double_backward, None)
_call = eager(_splat2d, _setup_context, _backward)


def splat2d(background: Tensor, xy: Tensor, values: Tensor, sigma: Tensor, *, soft: bool = False) -> Tensor:
    """Paint points as Gaussians onto an image and divide by the sum of their weights.

    background: `[N, C, H, W]`, float64, float32, bfloat16 or float16, any strides, H and W at least 1.
    xy: `[N, P, 2]` in pixels, (0, 0) at the centre of the first one. values: `[N, P, C]` in background's dtype.
    sigma: `[N]` or `[N, P]` in pixels. xy and sigma are of background's dtype or the one computed in (float32; float64 for
    a float64 background).
    soft: divide by max(sum of weights, 1), which leaves pixels far from every point as they are.
    Returns `[N, C, H, W]` in background's dtype and layout. Differentiable once in all four tensors. Bit-identical between
    runs: every pixel adds its points in their order. A NaN value reaches the pixels of its point alone.
    Raises TypeError or ValueError for inputs that do not fit together, NotImplementedError for a second derivative.
    """
    check_tensor("splat2d", "background", background, 4, "[N, C, H, W]")
    check_tensor("splat2d", "xy", xy, 3, "[N, P, 2]")
    check_tensor("splat2d", "values", values, 3, "[N, P, C]")
    check_tensor("splat2d", "sigma", sigma, (1, 2), "[N] or [N, P]")
    for name, tensor in (("xy", xy), ("values", values), ("sigma", sigma)):
        if tensor.device != background.device:
            raise ValueError(f"splat2d: {name} is on {tensor.device} but background is on {background.device}; move one.")
    if values.dtype != background.dtype:
        raise TypeError(f"splat2d: values is {values.dtype} but background is {background.dtype}; convert one of them.")
    batch, channels = background.shape[:2]
    expected = {"xy": [batch, xy.shape[1], 2], "values": [batch, xy.shape[1], channels]}
    expected["sigma"] = [batch, xy.shape[1]][: sigma.dim()]
    for name, tensor in (("xy", xy), ("values", values), ("sigma", sigma)):
        if list(tensor.shape) != expected[name]:
            raise ValueError(f"splat2d: {name} has shape {list(tensor.shape)}, expected {expected[name]}.")
    if 0 in background.shape[2:]:
        raise ValueError(f"splat2d: background has no pixels; its shape is {list(background.shape)}.")
    xy, sigma = parameter("splat2d", "xy", xy, background), parameter("splat2d", "sigma", sigma, background)
    if reference_wanted():
        return run_reference(splat2d_reference, background, xy, values, sigma, soft=bool(soft))
    sigma = sigma.unsqueeze(1).expand(xy.shape[:2]) if sigma.dim() == 1 else sigma
    compute = compute_dtype(background.dtype)
    return _call(background.to(compute), xy, values.to(compute), sigma, bool(soft))[0].to(background.dtype)
