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
from functools import cached_property, partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from gangealing_fast.kernels._convolution import block_choices, card_of, convolve
from gangealing_fast.kernels._tuning import fastest
from gangealing_fast.kernels.bias_act import activate, activate_backward
from gangealing_fast.ops._common import output_format
from gangealing_fast.ops.modulated_conv2d import blur_padding
from gangealing_fast.runtime.precision import tf32_convolutions

LIBRARY = "library"
_ops = torch.ops.gangealing_fast
# Of x, weight, style, demodulation, bias, noise and noise_strength.
_Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


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


def _routes(
    algorithm: str, x: Tensor, weight: Tensor, pixels: int, channels: int, *, scaled: bool, products: bool = False
) -> dict[str, Any]:
    """Name -> blocks of the routes to choose from, the one to take unmeasured first.

    pixels, channels: of the convolution's result. scaled, products: as `block_choices`.
    """
    if algorithm == LIBRARY or x.dtype == torch.float64:
        return {LIBRARY: None}
    # A weight for each sample is worth a thought if it is not much larger than what is convolved.
    scaled = scaled and weight.numel() * x.shape[0] <= 2 * x.shape[0] * pixels * sum(weight.shape[:2])
    choices = block_choices(x.shape[0], pixels, channels, x.dtype, card_of(x.device), scaled=scaled, products=products)
    fused = {str(blocks): blocks for blocks in choices}
    return fused if algorithm == "fused" else {LIBRARY: None} | fused


def _choose(what: str, routes: dict[str, Any], x: Tensor, settings: tuple[Any, ...], run: Callable[[Any], Any]) -> Any:
    """The blocks of the fastest of `routes`, None for the library."""
    settings = (*x.shape, *settings, str(x.dtype), str(output_format(x)), tf32_convolutions())
    return routes[fastest(what, settings, x.device, list(routes), lambda name: run(routes[name]))]


@dataclass(frozen=True)
class _Call:
    """What the operator and its backward both get."""

    x: Tensor
    weight: Tensor
    style: Tensor
    demodulation: Tensor | None
    f: Tensor
    bias: Tensor | None
    noise: Tensor | None
    noise_strength: Tensor | None
    up: bool
    down: bool
    slope: float
    gain: float

    @cached_property
    def kernel(self) -> Tensor:
        """The weight in x's dtype."""
        return self.weight.to(self.x.dtype)

    @cached_property
    def shape(self) -> _Shape:
        return _Shape.of(self.x, self.weight, self.f, self.up, self.down)

    @property
    def settings(self) -> tuple[Any, ...]:
        """What the choice of a route depends on beside x."""
        return (*self.weight.shape, self.up, self.down, self.demodulation is not None)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to convolve: the sum over no channels is 0."""
        return self.x.numel() == 0 or self.weight.numel() == 0

    def scaled_input(self) -> Tensor:
        """What the convolution proper gets."""
        inner = _blur(self.x, self.f, self.shape.blur, 1.0) if self.down else self.x
        return inner * self.style.to(self.x.dtype)[:, :, None, None]


def _forward(call: _Call, blocks: Any) -> Tensor:
    """The operator by the fused kernel in these blocks, or by the library if they are None."""
    shape, added = call.shape, (call.bias, call.noise, call.noise_strength)
    if blocks is None:
        inner = call.scaled_input()
        if call.up:
            y = F.conv_transpose2d(inner, call.kernel.transpose(0, 1), stride=2)
        else:
            y = F.conv2d(inner, call.kernel, stride=shape.stride, padding=shape.padding)
    else:
        inner = _blur(call.x, call.f, shape.blur, 1.0) if call.down else call.x
        bias, noise, strength = (None, None, None) if call.up else added
        y, _ = convolve(
            inner, call.kernel, call.style, call.demodulation, output_size=shape.outer, blocks=blocks, stride=shape.stride,
            padding=shape.padding, transposed=call.up, bias=bias, noise=noise, noise_strength=strength,
            slope=call.slope, gain=call.gain,
        )  # fmt: skip
    if call.up:
        y = _blur(y, call.f, shape.blur, 4.0)
    # What the fused kernel has not done: without a blur behind it everything is done.
    scale = call.demodulation if blocks is None else None
    if blocks is not None and not call.up:
        added = (None, None, None)
    if scale is not None or added[0] is not None:
        y = activate(y, *added, scale, call.slope, call.gain)
    return y.contiguous(memory_format=output_format(call.x))


def modulated_conv2d(
    x: Tensor, weight: Tensor, style: Tensor, demodulation: Tensor | None, f: Tensor,
    bias: Tensor | None, noise: Tensor | None, noise_strength: Tensor | None,
    up: bool, down: bool, slope: float, gain: float, algorithm: str,
) -> Tensor:  # fmt: skip
    """The registered operator `modulated_conv2d`."""
    call = _Call(x, weight, style, demodulation, f, bias, noise, noise_strength, up, down, slope, gain)
    if call.is_empty:
        size = (2 * x.shape[2], 2 * x.shape[3]) if up else call.shape.outer
        y = x.new_zeros((x.shape[0], weight.shape[0], *size)).contiguous(memory_format=output_format(x))
        return y if bias is None else activate(y, bias, noise, noise_strength, None, slope, gain)
    outer = call.shape.outer
    routes = _routes(algorithm, x, weight, outer[0] * outer[1], weight.shape[0], scaled=True)
    settings = (*call.settings, bias is not None, noise is not None)
    return _forward(call, _choose("modulated_conv2d", routes, x, settings, partial(_forward, call)))


def _convolution_backward(grad: Tensor, x: Tensor, kernel: Tensor, shape: _Shape, up: bool, *, input: bool) -> Tensor:
    """cuDNN's gradient of the convolution's input, or else of its weight."""
    weight = kernel.transpose(0, 1) if up else kernel
    mask = [input, not input, False]
    both = [shape.stride] * 2, [shape.padding] * 2, [1, 1]
    found = torch.ops.aten.convolution_backward(grad, x, weight, None, *both, up, [0, 0], 1, mask)
    return found[0] if input else found[1].transpose(0, 1) if up else found[1]


@dataclass(frozen=True)
class _Request:
    """What the backward gets beside the call: the gradient of the operator's output, that output, and what is wanted."""

    grad: Tensor
    y: Tensor | None
    x: bool
    weight: bool
    style: bool
    demodulation: bool
    activation: bool


def _activation_backward(call: _Call, wanted: _Request, factor: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradient of the convolution, as it leaves it (behind the up variant's blur), and the activation's sums.

    These are for the bias `[Cout]`, over channels for the noise, and of products for the demodulation; empty if not wanted.
    factor: multiplies the gradient, `[N, Cout]`.
    """
    nothing = call.style.new_empty(0)
    if wanted.y is None and factor is None:
        found = wanted.grad, nothing, nothing, nothing
    else:
        y, slope, gain = (wanted.grad, 1.0, 1.0) if wanted.y is None else (wanted.y, call.slope, call.gain)
        found = activate_backward(
            wanted.grad, y, slope, gain, need_bias=wanted.activation,
            noise_batch=call.noise.shape[0] if wanted.activation and call.noise is not None else -1,
            need_products=wanted.demodulation, added=(call.bias, call.noise, call.noise_strength), factor=factor,
        )  # fmt: skip
    g = _blur_adjoint(found[0], call.f, call.shape.blur, call.shape.outer, 4.0) if call.up else found[0]
    return g, *found[1:]


def _input_backward(call: _Call, g: Tensor, blocks: Any) -> tuple[Tensor, Tensor]:
    """Gradients of x and of style from the convolution's, without d for the fused route, with d for the library."""
    x, shape = call.x, call.shape
    if blocks is None:
        like = x.new_empty((*x.shape[:2], *shape.inner))
        inner = _convolution_backward(g, like, call.kernel, shape, call.up, input=True)
    else:
        convolved = partial(
            convolve, g, call.kernel, call.demodulation, output_size=shape.inner, blocks=blocks, stride=shape.stride,
            padding=shape.padding, transposed=not call.up, adjoint=True,
        )  # fmt: skip
        if not call.down:
            return convolved(call.style, original=x)
        inner, _ = convolved(None)
    if call.down:
        inner = _blur_adjoint(inner, call.f, shape.blur, (x.shape[2], x.shape[3]), 1.0)
    grad_x, _, _, products = activate_backward(inner, x, 1.0, 1.0, need_products=True, factor=call.style)
    return grad_x, products


def _backward(call: _Call, wanted: _Request, blocks: Any) -> tuple[Tensor | None, ...]:
    """The gradients asked for by the fused kernel in these blocks, or by the library if they are None."""
    g, grad_bias, plane, products = _activation_backward(call, wanted, call.demodulation if blocks is None else None)
    grad_x = grad_style = grad_weight = grad_noise = grad_strength = None
    if call.is_empty:
        grad_x, grad_style, grad_weight = torch.zeros_like(call.x), torch.zeros_like(call.style), torch.zeros_like(call.weight)
    elif wanted.x or wanted.style:
        grad_x, grad_style = _input_backward(call, g, blocks)
        grad_x = grad_x.contiguous(memory_format=output_format(call.x))
    if wanted.weight and not call.is_empty:
        if blocks is not None and call.demodulation is not None:
            g = g * call.demodulation.to(g.dtype)[:, :, None, None]
        found = _convolution_backward(g, call.scaled_input(), call.kernel, call.shape, call.up, input=False)
        grad_weight = found.to(call.weight.dtype).contiguous()
    if wanted.activation and call.noise is not None and call.noise_strength is not None:
        grad_noise = (plane * call.noise_strength).to(call.noise.dtype)
        grad_strength = (plane * call.noise).sum().reshape(call.noise_strength.shape).to(call.noise_strength.dtype)
    return (
        grad_x if wanted.x else None,
        grad_weight if wanted.weight else None,
        grad_style if wanted.style else None,
        products / call.demodulation if wanted.demodulation and call.demodulation is not None else None,
        grad_bias if wanted.activation else None,
        grad_noise,
        grad_strength,
    )


def modulated_conv2d_backward(
    grad: Tensor, x: Tensor, weight: Tensor, style: Tensor, demodulation: Tensor | None, f: Tensor,
    bias: Tensor | None, noise: Tensor | None, noise_strength: Tensor | None,
    y: Tensor | None, up: bool, down: bool, slope: float, gain: float, algorithm: str,
    need_x: bool, need_weight: bool, need_style: bool, need_demodulation: bool, need_activation: bool,
) -> _Gradients:  # fmt: skip
    """The registered operator `modulated_conv2d_backward`."""
    call = _Call(x, weight, style, demodulation, f, bias, noise, noise_strength, up, down, slope, gain)
    needs = (need_x, need_weight, need_style, need_demodulation and demodulation is not None, need_activation and bias is not None)
    wanted = _Request(grad, y, *needs)
    routes = {LIBRARY: None}
    if not call.is_empty and (need_x or need_style):
        inner = call.shape.inner
        scaled = demodulation is not None
        routes = _routes(algorithm, x, weight, inner[0] * inner[1], x.shape[1], scaled=scaled, products=True)
    settings = (*call.settings, y is not None, noise is not None, *needs)
    run = partial(_backward, call, wanted)
    found = run(_choose("modulated_conv2d_backward", routes, x, settings, run))
    return cast(_Gradients, tuple(style.new_empty(0) if g is None else g for g in found))
