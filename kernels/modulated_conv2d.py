# SPDX-License-Identifier: Apache-2.0
"""Modulated convolution on CUDA by two routes: one fused kernel (`_convolution`), or cuDNN between two elementwise ones.

Which is faster depends on the shape and the card, so "auto" measures both (`_tuning`); where nothing may be measured it takes
cuDNN. The blurs of the up and down variants are `upfirdn2d`'s: folding them into the convolution would quadruple its
multiplications (3x3 taps and a 4x4 blur are four 3x3 kernels, one for each parity), while apart they are one pass over memory.
Behind the up variant's blur, noise, bias and activation therefore are a pass of their own too. The weight's gradient is always
cuDNN's, as is all of float64, which tensor cores do not serve here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gangealing_fast.kernels._convolution import block_choices, convolve
from gangealing_fast.kernels._tuning import fastest
from gangealing_fast.kernels.bias_act import activate, activate_backward
from gangealing_fast.ops._common import output_format
from gangealing_fast.ops.modulated_conv2d import blur_padding

LIBRARY = "library"
_ops = torch.ops.gangealing_fast


@dataclass(frozen=True)
class _Shape:
    """Sizes of one call: the convolution proper runs between `inner` (behind the down variant's blur) and `outer`."""

    inner: tuple[int, int]
    outer: tuple[int, int]
    stride: int
    padding: int
    blur: tuple[int, int]

    @classmethod
    def of(cls, x: Tensor, weight: Tensor, f: Tensor, up: bool, down: bool) -> _Shape:
        k, (h, w) = weight.shape[2], x.shape[2:]
        blur = blur_padding(f.shape[0], k, up=up) if up or down else (0, 0)
        if up:
            return cls((h, w), (2 * h - 2 + k, 2 * w - 2 + k), 2, 0, blur)
        if down:
            inner = (h + sum(blur) - f.shape[0] + 1, w + sum(blur) - f.shape[0] + 1)
            return cls(inner, ((inner[0] - k) // 2 + 1, (inner[1] - k) // 2 + 1), 2, 0, blur)
        return cls((h, w), (h + 2 * (k // 2) - k + 1, w + 2 * (k // 2) - k + 1), 1, k // 2, blur)


def _blur(x: Tensor, f: Tensor, padding: tuple[int, int], gain: float) -> Tensor:
    return _ops.upfirdn2d(x, f, 1, 1, *padding, *padding, gain, False)


def _blur_adjoint(grad: Tensor, f: Tensor, padding: tuple[int, int], size: tuple[int, int], gain: float) -> Tensor:
    """The gradient of `_blur`'s input of `size`."""
    taps, before = f.shape[0], padding[0]
    after = [inner - outer + before for inner, outer in zip(size, grad.shape[2:], strict=True)]
    return _ops.upfirdn2d(grad, f, 1, 1, taps - before - 1, after[1], taps - before - 1, after[0], gain, True)


def _routes(algorithm: str, dtype: torch.dtype, pixels: int, channels: int) -> dict[str, Any]:
    """Name -> blocks of the routes to choose from, the one to take unmeasured first."""
    if algorithm == LIBRARY or dtype == torch.float64:
        return {LIBRARY: None}
    fused = {str(blocks): blocks for blocks in block_choices(pixels, channels, dtype)}
    return fused if algorithm == "fused" else {LIBRARY: None} | fused


def _choose(what: str, routes: dict[str, Any], x: Tensor, settings: tuple[Any, ...], run: Callable[[Any], Any]) -> Any:
    """The blocks of the fastest of `routes`, None for the library."""
    settings = (*x.shape, *settings, str(x.dtype), str(output_format(x)), torch.backends.cudnn.allow_tf32)
    return routes[fastest(what, settings, x.device, list(routes), lambda name: run(routes[name]))]


def modulated_conv2d(
    x: Tensor, weight: Tensor, style: Tensor, demodulation: Tensor | None, f: Tensor,
    bias: Tensor | None, noise: Tensor | None, noise_strength: Tensor | None,
    up: bool, down: bool, slope: float, gain: float, algorithm: str,
) -> Tensor:  # fmt: skip
    """The registered operator `modulated_conv2d`."""
    shape = _Shape.of(x, weight, f, up, down)
    kernel = weight.to(x.dtype)

    def run(blocks: Any) -> Tensor:
        inner = _blur(x, f, shape.blur, 1.0) if down else x
        scale, activated = demodulation, (bias, noise, noise_strength)
        if blocks is None:
            inner = inner * style.to(x.dtype)[:, :, None, None]
            if up:
                y = F.conv_transpose2d(inner, kernel.transpose(0, 1), stride=2)
            else:
                y = F.conv2d(inner, kernel, stride=shape.stride, padding=shape.padding)
        else:
            here = (None, None, None) if up else activated
            y, _ = convolve(
                inner, kernel, style, demodulation, output_size=shape.outer, blocks=blocks, stride=shape.stride,
                padding=shape.padding, transposed=up, bias=here[0], noise=here[1], noise_strength=here[2],
                slope=slope, gain=gain,
            )  # fmt: skip
            scale, activated = None, activated if up else (None, None, None)
        if up:
            y = _blur(y, f, shape.blur, 4.0)
        if scale is not None or activated[0] is not None:
            y = activate(y, *activated, scale, slope, gain)
        return y.contiguous(memory_format=output_format(x))

    if x.numel() == 0:
        return run(None)
    routes = _routes(algorithm, x.dtype, shape.outer[0] * shape.outer[1], weight.shape[0])
    settings = (*weight.shape, up, down, demodulation is not None, bias is not None, noise is not None)
    return run(_choose("modulated_conv2d", routes, x, settings, run))


def _convolution_backward(grad: Tensor, x: Tensor, kernel: Tensor, shape: _Shape, up: bool, *, input: bool) -> Tensor:
    """cuDNN's gradient of the convolution's input, or else of its weight."""
    weight = kernel.transpose(0, 1) if up else kernel
    mask = [input, not input, False]
    both = [shape.stride] * 2, [shape.padding] * 2, [1, 1]
    found = torch.ops.aten.convolution_backward(grad, x, weight, None, *both, up, [0, 0], 1, mask)
    return found[0] if input else found[1].transpose(0, 1) if up else found[1]


def modulated_conv2d_backward(
    grad: Tensor, x: Tensor, weight: Tensor, style: Tensor, demodulation: Tensor | None, f: Tensor,
    bias: Tensor | None, noise: Tensor | None, noise_strength: Tensor | None,
    y: Tensor | None, up: bool, down: bool, slope: float, gain: float, algorithm: str,
    need_x: bool, need_weight: bool, need_style: bool, need_demodulation: bool, need_activation: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The registered operator `modulated_conv2d_backward`."""
    shape = _Shape.of(x, weight, f, up, down)
    kernel = weight.to(x.dtype)
    need_activation = need_activation and bias is not None
    need_demodulation = need_demodulation and demodulation is not None
    noise_batch = noise.shape[0] if need_activation and noise is not None else -1

    def activation(factor: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The gradient of the convolution, as it leaves it (behind the up variant's blur), and the activation's sums."""
        nothing = style.new_empty(0)
        if y is None and factor is None:
            found = grad, nothing, nothing, nothing
        else:
            found = activate_backward(
                grad, grad if y is None else y, slope if y is not None else 1.0, gain if y is not None else 1.0,
                need_bias=need_activation, noise_batch=noise_batch, need_products=need_demodulation,
                added=(bias, noise, noise_strength), factor=factor,
            )  # fmt: skip
        g = _blur_adjoint(found[0], f, shape.blur, shape.outer, 4.0) if up else found[0]
        return g, *found[1:]

    def to_input(g: Tensor, blocks: Any) -> tuple[Tensor, Tensor]:
        """Gradients of x and of style from the convolution's, without d for the fused route, with d for the library."""
        if blocks is None:
            inner = _convolution_backward(g, x.new_empty((*x.shape[:2], *shape.inner)), kernel, shape, up, input=True)
        elif down:
            inner, _ = convolve(
                g, kernel, demodulation, None, output_size=shape.inner, blocks=blocks, stride=2, transposed=True, adjoint=True
            )
        else:
            grad_x, products = convolve(
                g, kernel, demodulation, style, output_size=shape.inner, blocks=blocks, stride=shape.stride,
                padding=shape.padding, transposed=not up, adjoint=True, original=x,
            )  # fmt: skip
            return grad_x, products
        if down:
            inner = _blur_adjoint(inner, f, shape.blur, tuple(x.shape[2:]), 1.0)
        grad_x, _, _, products = activate_backward(inner, x, 1.0, 1.0, need_products=True, factor=style)
        return grad_x, products

    def run(blocks: Any) -> tuple[Tensor | None, ...]:
        factor = demodulation if blocks is None else None
        g, grad_bias, plane, products = activation(factor)
        grad_x = grad_style = grad_weight = None
        if need_x or need_style:
            grad_x, grad_style = to_input(g, blocks)
            grad_x = grad_x.contiguous(memory_format=output_format(x))
        if need_weight:
            if blocks is not None and demodulation is not None:
                g = g * demodulation.to(g.dtype)[:, :, None, None]
            inner = _blur(x, f, shape.blur, 1.0) if down else x
            inner = inner * style.to(x.dtype)[:, :, None, None]
            grad_weight = _convolution_backward(g, inner, kernel, shape, up, input=False).to(weight.dtype).contiguous()
        grad_noise = grad_strength = None
        if noise_batch >= 0:
            grad_noise = (plane * noise_strength).to(noise.dtype)
            grad_strength = (plane * noise).sum().reshape(noise_strength.shape).to(noise_strength.dtype)
        return (
            grad_x if need_x else None,
            grad_weight,
            grad_style if need_style else None,
            products / demodulation if need_demodulation else None,
            grad_bias if need_activation else None,
            grad_noise,
            grad_strength,
        )

    routes = {LIBRARY: None}
    if x.numel() and (need_x or need_style):
        routes = _routes(algorithm, x.dtype, shape.inner[0] * shape.inner[1], x.shape[1])
    needs = (need_x, need_weight, need_style, need_demodulation, need_activation)
    settings = (*weight.shape, up, down, demodulation is not None, y is not None, noise is not None, *needs)
    found = run(_choose("modulated_conv2d_backward", routes, x, settings, run))
    return tuple(style.new_empty(0) if g is None else g for g in found)
