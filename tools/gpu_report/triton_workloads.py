# SPDX-License-Identifier: Apache-2.0
"""Calls of the Triton kernels at training's shapes (256² pictures, flow 128, batch 5), for the report.

They stand for the step's largest calls in both float32 and bfloat16; `tiny()` has every size 1, which Triton compiles apart.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tools.checkout import use_kernels
from tools.gpu_report.workloads import TritonWorkload

BATCH = 5


def _module(name: str) -> Any:
    use_kernels()
    return importlib.import_module(f"gangealing_fast.kernels.{name}")


def _empty(*shape: int, dtype: torch.dtype = torch.float32, channels_last: bool = False) -> Tensor:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=dtype, device="meta", memory_format=layout)


def _call(module: str, function: str, inputs: Sequence[Any], *others: Any, **keywords: Any) -> Any:
    def call() -> tuple[list[Any], list[Any]]:
        found = getattr(_module(module), function)(*inputs, *others, **keywords)
        return list(inputs), [found] if isinstance(found, Tensor) else list(found)

    return call


def _words(x: Tensor) -> str:
    last = x.dim() == 4 and not x.is_contiguous()
    return f"{list(x.shape)}, {str(x.dtype).removeprefix('torch.')}{', channels-last' if last else ''}"


def bias_act(x: Tensor, *, noise: bool) -> list[TritonWorkload]:
    """Forward and backward."""
    channels, plane = x.shape[1], [x.shape[0], 1, *x.shape[2:]]
    b = _empty(channels)
    added = [_empty(*plane), _empty(1)] if noise else [None, None]
    words = _words(x) + (", noise" if noise else "")
    gradients = (0.2, 1.4, True, x.shape[0] if noise else -1)
    return [
        TritonWorkload("bias_act", words, _call("bias_act", "bias_act", [x, b, *added], 0.2, 1.4)),
        TritonWorkload("bias_act_backward", words, _call("bias_act", "bias_act_backward", [torch.empty_like(x), x], *gradients)),
    ]


def flow_regularizer(flow: Tensor) -> list[TritonWorkload]:
    """Forward and backward."""
    name, sums = "flow_regularizer", [_empty(flow.shape[0]), _empty(flow.shape[0])]
    return [
        TritonWorkload(name, _words(flow), _call(name, name, [flow])),
        TritonWorkload(f"{name}_backward", _words(flow), _call(name, f"{name}_backward", [*sums, flow])),
    ]


def convex_upsample(flow: Tensor, factor: int) -> list[TritonWorkload]:
    """Forward and backward."""
    n, h, w, _ = flow.shape
    name, mask = "convex_upsample", _empty(n, 9 * factor**2, h, w, dtype=flow.dtype)
    grad, words = _empty(n, h * factor, w * factor, 2, dtype=flow.dtype), f"{_words(flow)}, factor {factor}"
    return [
        TritonWorkload(name, words, _call(name, name, [flow, mask], factor)),
        TritonWorkload(f"{name}_backward", words, _call(name, f"{name}_backward", [grad, flow, mask], factor)),
    ]


def mutual_nearest(first: Tensor) -> list[TritonWorkload]:
    """As many vectors of each set."""
    name, (n, p, d) = "mutual_nearest", first.shape
    return [TritonWorkload(name, _words(first), _call(name, name, [first, torch.empty_like(first)]), flops=2 * n * p * p * d)]


def lpips_distance(a: Tensor) -> list[TritonWorkload]:
    """Forward and backward of one tap."""
    name, b, head = "lpips_distance", torch.empty_like(a), _empty(a.shape[1])
    return [
        TritonWorkload(name, _words(a), _call(name, name, [a, b, head])),
        TritonWorkload(
            f"{name}_backward",
            _words(a) + ", head frozen",
            _call(name, f"{name}_backward", [_empty(a.shape[0]), a, b, head], True, True, False),
        ),
    ]


def adain(x: Tensor) -> list[TritonWorkload]:
    """Forward and backward."""
    scale, shift, mean, rstd = (_empty(*x.shape[:2]) for _ in range(4))
    grad = torch.empty_like(x)
    return [
        TritonWorkload("adain", _words(x), _call("adain", "adain", [x, scale, shift], 1e-5)),
        TritonWorkload("adain_backward", _words(x), _call("adain", "adain_backward", [grad, x, scale, mean, rstd], 1e-5)),
    ]


def adam_ema(parameters: int, gradient: torch.dtype = torch.float32) -> list[TritonWorkload]:
    """One step of so many parameters with averages."""
    lists = [[_empty(parameters, dtype=gradient if i == 1 else torch.float32)] for i in range(5)]

    def call() -> tuple[list[Any], list[Any]]:
        _module("adam_ema").adam_ema(*lists, [2.0], 0.01, 0.9, 0.999, 1e-8, 0.999)
        return [t for tensors in lists for t in tensors], [lists[i][0] for i in (0, 2, 3, 4)]

    words = f"{parameters} parameters, gradients {str(gradient).removeprefix('torch.')}"
    return [TritonWorkload("adam_ema", words, call, moved=parameters * (8 * 4 + gradient.itemsize))]


def convolution(
    x: Tensor, out_channels: int, kernel: int = 3, mode: str = "plain", *, card: Any = None, choice: int = 0
) -> list[TritonWorkload]:
    """The fused convolution and its gradient to x and style.

    mode: "plain" | "up" | "down" (both without their blurs). card: that tiles are chosen for, by default any. choice: which of its
    tiles, the last of which scales the weight before.
    """
    module = _module("_convolution")
    convolve, card = module.convolve, card or module.ANY_CARD

    def blocks_of(pixels: int, channels: int, **others: bool) -> Any:
        return module.block_choices(x.shape[0], pixels, channels, x.dtype, card, scaled=True, **others)[choice]

    n, channels, h, w = x.shape
    weight = _empty(out_channels, channels, kernel, kernel, dtype=x.dtype, channels_last=kernel > 1)
    style, d, bias = _empty(n, channels), _empty(n, out_channels), _empty(out_channels)
    stride = 1 if mode == "plain" else 2
    padding = kernel // 2 if mode == "plain" else 0
    outer = {"plain": (h, w), "up": (2 * h - 2 + kernel, 2 * w - 2 + kernel), "down": ((h - kernel) // 2 + 1,) * 2}[mode]
    noise, strength = (_empty(n, 1, *outer), _empty(1)) if mode == "plain" else (None, None)
    grad = _empty(n, out_channels, *outer, dtype=x.dtype, channels_last=True)

    def forward() -> tuple[list[Any], list[Any]]:
        activation = {} if mode == "up" else {"bias": bias, "noise": noise, "noise_strength": strength, "slope": 0.2, "gain": 1.4}
        y, _ = convolve(
            x, weight, style, d, output_size=outer, blocks=blocks_of(outer[0] * outer[1], out_channels),
            stride=stride, padding=padding, transposed=mode == "up", **activation,
        )  # fmt: skip
        return [x, weight, style, d, *([] if mode == "up" else [bias, noise])], [y]

    def backward() -> tuple[list[Any], list[Any]]:
        grad_x, products = convolve(
            grad, weight, d, style, output_size=(h, w), blocks=blocks_of(h * w, channels, products=True), stride=stride,
            padding=padding, transposed=mode != "up", adjoint=True, original=x,
        )  # fmt: skip
        return [grad, weight, d, style, x], [grad_x, products]

    size = h * w if mode == "up" else outer[0] * outer[1]
    flops = 2 * n * size * channels * out_channels * kernel**2
    words = f"{_words(x)} to {out_channels}, {kernel}x{kernel}, {mode}" + (", weight scaled before" if choice else "")
    return [
        TritonWorkload("modulated_conv2d", words, forward, flops=flops),
        TritonWorkload("modulated_conv2d_backward", words, backward, flops=flops),
    ]


def training() -> list[TritonWorkload]:
    """The calls that the report states."""
    half = torch.bfloat16
    workloads = []
    for x in (
        _empty(BATCH, 128, 256, 256),
        _empty(BATCH, 128, 256, 256, dtype=half, channels_last=True),
    ):
        workloads += bias_act(x, noise=True)
    workloads += bias_act(_empty(BATCH, 3, 256, 256), noise=False)
    workloads += flow_regularizer(_empty(BATCH, 128, 128, 2))
    workloads += convex_upsample(_empty(BATCH, 16, 16, 2), 8)
    for dtype in (torch.float32, half):
        workloads += mutual_nearest(_empty(8, 1024, 104, dtype=dtype))
    for dtype in (torch.float32, half):
        workloads += lpips_distance(_empty(BATCH, 64, 256, 256, dtype=dtype, channels_last=True))
    workloads += lpips_distance(_empty(BATCH, 512, 16, 16, channels_last=True))
    for x in (_empty(BATCH, 256, 64, 64), _empty(BATCH, 256, 64, 64, dtype=half, channels_last=True)):
        workloads += adain(x)
    workloads += adam_ema(40_000_000) + adam_ema(40_000_000, half) + adam_ema(513)
    for dtype in (torch.float32, half):
        workloads += convolution(_empty(BATCH, 512, 32, 32, dtype=dtype, channels_last=True), 512)
    workloads += convolution(_empty(BATCH, 128, 128, 128, dtype=half, channels_last=True), 128, choice=-1)
    for mode, size in (("up", 64), ("down", 67)):
        workloads += convolution(_empty(BATCH, 256, size, size, dtype=half, channels_last=True), 256, mode=mode)
    return workloads


def tiny() -> list[TritonWorkload]:
    """Every kernel with sizes of 1, of which Triton makes constants."""
    x = _empty(1, 1, 1, 1)
    return [
        *bias_act(x, noise=True),
        *flow_regularizer(_empty(1, 1, 1, 2)),
        *convex_upsample(_empty(1, 1, 1, 2), 1),
        *mutual_nearest(_empty(1, 1, 1)),
        *lpips_distance(x),
        *lpips_distance(_empty(1, 513, 1, 1)),
        *adain(x),
        *adam_ema(1, torch.float16),
        *convolution(_empty(1, 1, 1, 1, dtype=torch.float16), 1),
        *convolution(_empty(1, 1, 1, 1, dtype=torch.float16), 1, kernel=1),
        *convolution(_empty(1, 1, 1, 1), 1, mode="up"),
        *convolution(_empty(1, 1, 3, 3), 1, mode="down"),
    ]
