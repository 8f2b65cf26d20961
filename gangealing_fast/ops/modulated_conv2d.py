# SPDX-License-Identifier: Apache-2.0
"""Modulated convolution (StyleGAN2, arXiv 1912.04958, section 2.2): a convolution whose input channels are scaled per sample.

    W'[n, o, i, k] = weight[o, i, k] * style[n, i]
    W''            = W' / sqrt(sum over i, k of W'^2 + 1e-8)          (demodulation)
    y[n]           = W''[n] * x[n]                                     (correlation, same padding)

Scaling the activations instead of the weight, `y = d * (weight * (style * x))` with `d[n, o]` the reciprocal norm above, is the
same number with one shared convolution instead of N grouped ones; it is what `modulated_conv2d` computes.
`modulated_conv2d_reference` follows the definition, sample by sample.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from gangealing_fast.ops._dispatch import reference_wanted
from gangealing_fast.ops.upfirdn2d import blur_filter, upfirdn2d, upfirdn2d_reference

EPSILON = 1e-8


def blur_padding(filter_size: int, kernel_size: int, *, up: bool) -> tuple[int, int]:
    """Padding of the low-pass filter so that an up- or downsampling convolution doubles or halves the size exactly."""
    if up:
        total = filter_size - 2 - (kernel_size - 1)
        return (total + 1) // 2 + 1, total // 2 + 1
    total = filter_size - 2 + (kernel_size - 1)
    return (total + 1) // 2, total // 2


def _check(x: Tensor, weight: Tensor, style: Tensor, up: bool, down: bool) -> None:
    if x.dim() != 4:
        raise ValueError(f"modulated_conv2d: x must be [N, Cin, H, W], got {list(x.shape)}")
    if weight.dim() != 4 or weight.shape[2] != weight.shape[3]:
        raise ValueError(f"modulated_conv2d: weight must be [Cout, Cin, k, k], got {list(weight.shape)}")
    if weight.shape[1] != x.shape[1]:
        raise ValueError(f"modulated_conv2d: weight expects {weight.shape[1]} input channels, x has {x.shape[1]}")
    if tuple(style.shape) != (x.shape[0], x.shape[1]):
        raise ValueError(f"modulated_conv2d: style must be [{x.shape[0]}, {x.shape[1]}], got {list(style.shape)}")
    if up and down:
        raise ValueError("modulated_conv2d: up and down exclude each other; choose one")
    if len({x.device, weight.device, style.device}) > 1:
        raise ValueError("modulated_conv2d: x, weight and style must be on one device")


def modulated_conv2d_reference(
    x: Tensor,
    weight: Tensor,
    style: Tensor,
    *,
    up: bool = False,
    down: bool = False,
    demodulate: bool = True,
    f: Tensor | None = None,
) -> Tensor:
    """The definition, one grouped convolution with a weight per sample; arguments as `modulated_conv2d`."""
    n, cin, h, w = x.shape
    cout, _, k, _ = weight.shape
    modulated = weight[None] * style[:, None, :, None, None]
    if demodulate:
        modulated = modulated * torch.rsqrt(modulated.square().sum((2, 3, 4), keepdim=True) + EPSILON)
    modulated = modulated.to(x.dtype)
    f = blur_filter(device=x.device) if f is None else f
    if up:
        grouped = modulated.transpose(1, 2).reshape(n * cin, cout, k, k)
        y = F.conv_transpose2d(x.reshape(1, n * cin, h, w), grouped, stride=2, groups=n)
        y = y.reshape(n, cout, y.shape[2], y.shape[3])
        return upfirdn2d_reference(y, f, padding=blur_padding(f.shape[0], k, up=True), gain=4.0)
    stride, padding = 1, k // 2
    if down:
        x = upfirdn2d_reference(x, f, padding=blur_padding(f.shape[0], k, up=False))
        stride, padding = 2, 0
    grouped = modulated.reshape(n * cout, cin, k, k)
    y = F.conv2d(x.reshape(1, n * cin, x.shape[2], x.shape[3]), grouped, stride=stride, padding=padding, groups=n)
    return y.reshape(n, cout, y.shape[2], y.shape[3])


def modulated_conv2d(
    x: Tensor,
    weight: Tensor,
    style: Tensor,
    *,
    up: bool = False,
    down: bool = False,
    demodulate: bool = True,
    f: Tensor | None = None,
) -> Tensor:
    """Convolve `x` with `weight` scaled per sample by `style`; differentiable to any order.

    x: `[N, Cin, H, W]`. weight: `[Cout, Cin, k, k]`, already multiplied by its run-time scale. style: `[N, Cin]`.
    up: double the size (stride-2 transposed convolution, then the low-pass filter with gain 4).
    down: halve the size (low-pass filter, then a stride-2 convolution). demodulate: normalise every output map (eq. 3).
    f: low-pass filter `[a, b]`, [1, 3, 3, 1] by default. Returns `[N, Cout, H', W']`, H' = H, 2H or H/2.
    Raises ValueError for shapes or devices that do not fit, or up and down together.
    """
    _check(x, weight, style, up, down)
    k = weight.shape[2]
    f = blur_filter(device=x.device) if f is None else f
    if reference_wanted():
        return modulated_conv2d_reference(x, weight, style, up=up, down=down, demodulate=demodulate, f=f)
    scaled = x * style.to(x.dtype)[:, :, None, None]
    kernel = weight.to(x.dtype)
    if up:
        y = F.conv_transpose2d(scaled, kernel.transpose(0, 1), stride=2)
        y = upfirdn2d(y, f, padding=blur_padding(f.shape[0], k, up=True), gain=4.0)
    elif down:
        y = F.conv2d(upfirdn2d(scaled, f, padding=blur_padding(f.shape[0], k, up=False)), kernel, stride=2)
    else:
        y = F.conv2d(scaled, kernel, padding=k // 2)
    if demodulate:
        energy = weight.float().square().sum((2, 3)) if weight.dtype != torch.float64 else weight.square().sum((2, 3))
        norm = torch.rsqrt(style.to(energy.dtype).square() @ energy.t() + EPSILON)
        y = y * norm.to(y.dtype)[:, :, None, None]
    return y
