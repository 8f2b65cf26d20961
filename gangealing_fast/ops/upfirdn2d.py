# SPDX-License-Identifier: Apache-2.0
"""Upsample, filter, downsample: the resampling step of StyleGAN2 (Karras et al. 2020, arXiv 1912.04958).

Insert `up - 1` zeros after every sample, pad by (p0, p1) (negative crops), convolve with `f`, keep every `down`-th sample:

    y[i, j] = gain * sum_{k, l} f[k, l] * z[i * down + fh - 1 - k, j * down + fw - 1 - l],   z = pad(zero_stuff(x))

    output size = (H * up + p0 + p1 - fh) // down + 1

The operator is linear in `x` and its adjoint is of the same kind, with `up` and `down` swapped and the filter mirrored.
So the backward is the operator itself, and derivatives of every order come for free.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gangealing_fast.ops._common import check_device, check_tensor, check_whole, compute_dtype, output_format
from gangealing_fast.ops._dispatch import reference_wanted, run_reference
from gangealing_fast.ops._eager import eager, register_derivative

Padding = tuple[int, int] | tuple[int, int, int, int]


def blur_filter(taps: Sequence[float] = (1, 3, 3, 1), gain: float = 1.0, device: torch.device | str | None = None) -> Tensor:
    """The separable low-pass filter `taps (x) taps`, float32 `[n, n]`, scaled to sum to `gain`."""
    row = torch.tensor(taps, dtype=torch.float32, device=device)
    full = torch.outer(row, row)
    return full * (gain / full.sum())


def upfirdn2d_reference(
    x: Tensor,
    f: Tensor,
    *,
    up: int = 1,
    down: int = 1,
    padding: Padding = (0, 0),
    gain: float = 1.0,
    mirrored: bool = False,
) -> Tensor:
    """Plain torch: zero-stuff, pad, convolve, subsample. Arguments as for `upfirdn2d`; `mirrored` correlates instead."""
    px0, px1, py0, py1 = padding if len(padding) == 4 else (*padding, *padding)
    n, c, h, w = x.shape
    compute = compute_dtype(x.dtype)
    z = F.pad(x.to(compute).reshape(n, c, h, 1, w, 1), (0, up - 1, 0, 0, 0, up - 1)).reshape(n, c, h * up, w * up)
    z = F.pad(z, (max(px0, 0), max(px1, 0), max(py0, 0), max(py1, 0)))
    z = z[:, :, max(-py0, 0) : z.shape[2] - max(-py1, 0), max(-px0, 0) : z.shape[3] - max(-px1, 0)]
    f = f.to(compute) * gain
    kernel = (f if mirrored else f.flip(0, 1))[None, None]
    # Filtering one plane at a time is what makes the filter the same for every channel.
    y = F.conv2d(z.reshape(n * c, 1, *z.shape[2:]), kernel)
    y = y.reshape(n, c, *y.shape[2:])[:, :, ::down, ::down]
    return y.to(x.dtype).contiguous(memory_format=output_format(x))


def _output_size(size: int, taps: int, up: int, down: int, p0: int, p1: int) -> int:
    return (size * up + p0 + p1 - taps) // down + 1


@torch.library.custom_op("gangealing_fast::upfirdn2d", mutates_args=())
def _upfirdn2d(
    x: Tensor, f: Tensor, up: int, down: int, px0: int, px1: int, py0: int, py1: int, gain: float, mirrored: bool
) -> Tensor:
    padding = (px0, px1, py0, py1)
    return upfirdn2d_reference(x, f, up=up, down=down, padding=padding, gain=gain, mirrored=mirrored)


@_upfirdn2d.register_fake
def _(x: Tensor, f: Tensor, up: int, down: int, px0: int, px1: int, py0: int, py1: int, gain: float, mirrored: bool) -> Tensor:
    height = _output_size(x.shape[2], f.shape[0], up, down, py0, py1)
    width = _output_size(x.shape[3], f.shape[1], up, down, px0, px1)
    shape = (x.shape[0], x.shape[1], height, width)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=output_format(x))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, f, up, down, px0, px1, py0, py1, gain, mirrored = inputs
    ctx.save_for_backward(f)
    ctx.arguments = (up, down, px0, px1, py0, py1, gain, mirrored)
    ctx.input_size, ctx.output_size = x.shape[2:], output.shape[2:]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (f,) = ctx.saved_tensors
    up, down, px0, _, py0, _, gain, mirrored = ctx.arguments
    (h, w), (out_h, out_w), (fh, fw) = ctx.input_size, ctx.output_size, f.shape
    grad_x = torch.ops.gangealing_fast.upfirdn2d(
        grad, f, down, up,
        fw - px0 - 1, w * up - out_w * down + px0 - up + 1,
        fh - py0 - 1, h * up - out_h * down + py0 - up + 1,
        gain, not mirrored,
    )  # fmt: skip
    return grad_x, *[None] * 9


register_derivative(_upfirdn2d, _backward, _setup_context)
_call = eager(_upfirdn2d, _setup_context, _backward)


def upfirdn2d(x: Tensor, f: Tensor, *, up: int = 1, down: int = 1, padding: Padding = (0, 0), gain: float = 1.0) -> Tensor:
    """Upsample by zero insertion, pad or crop, convolve with one filter, subsample.

    Args:
        x: images or activations `[N, C, H, W]`, any floating dtype.
        f: constant filter `[fh, fw]`, or `[n]` for the separable filter `f (x) f`; no gradient reaches it.
        up: factor of zero insertion, >= 1.
        down: subsampling step, >= 1.
        padding: (p0, p1) before and after on both axes, or (px0, px1, py0, py1); in samples of the zero-stuffed signal,
            negative crops.
        gain: multiplies the result.

    Returns:
        `[N, C, (H * up + p0 + p1 - fh) // down + 1, ...]` in the dtype and layout of `x`. Differentiable to any order in `x`.

    Raises:
        ValueError, TypeError: an argument does not fit; the message says which and how.
    """
    check_tensor("upfirdn2d", "x", x, 4, "[N, C, H, W]")
    check_tensor("upfirdn2d", "f", f, (1, 2), "[fh, fw] or [n]")
    check_device("upfirdn2d", x, f=f)
    check_whole("upfirdn2d", up=up, down=down)
    if up < 1 or down < 1:
        raise ValueError(f"upfirdn2d: up and down must be at least 1, not up={up}, down={down}.")
    if len(padding) not in (2, 4):
        raise ValueError(f"upfirdn2d: padding must be (p0, p1) or (px0, px1, py0, py1), not {padding!r}.")
    check_whole("upfirdn2d", **{f"padding[{index}]": number for index, number in enumerate(padding)})
    if f.requires_grad:
        raise ValueError("upfirdn2d: f is a constant filter and gets no gradient; pass f.detach().")
    f = f.to(compute_dtype(x.dtype))
    if f.dim() == 1:
        f = torch.outer(f, f)
    px0, px1, py0, py1 = padding if len(padding) == 4 else (*padding, *padding)
    height = _output_size(x.shape[2], f.shape[0], up, down, py0, py1)
    width = _output_size(x.shape[3], f.shape[1], up, down, px0, px1)
    if f.numel() == 0 or height < 1 or width < 1 or x.shape[2] < 1 or x.shape[3] < 1:
        raise ValueError(
            f"upfirdn2d: nothing is left of an input of {x.shape[2]} x {x.shape[3]} with up={up}, padding={tuple(padding)} "
            f"and a filter of {f.shape[0]} x {f.shape[1]}; pad more or crop less."
        )
    if reference_wanted():
        return run_reference(upfirdn2d_reference, x, f, up=up, down=down, padding=padding, gain=gain)
    return _call(x, f, up, down, px0, px1, py0, py1, gain, False)
