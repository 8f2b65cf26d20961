# SPDX-License-Identifier: Apache-2.0
"""Modulated convolutions of the generator at 256 x 256, batch 5: frozen weights, gradients to x and style."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import machine
from benchmarks.case import BOTH, FORWARD, Case, Variant, channels_last, compiled
from gangealing_fast.ops.modulated_conv2d import modulated_conv2d, modulated_conv2d_reference

BATCH = 5
# In, out, size. The grouped reference takes seconds at most sizes: these three show where the time goes.
LAYERS = ((512, 512, 32), (512, 512, 64), (128, 128, 256))
UP_LAYER = (512, 512, 32)
COLOUR_LAYER = (128, 3, 256)


def _inputs(device: torch.device, shape: tuple[int, int, int], k: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    channels, out, size = shape
    x = torch.randn(BATCH, channels, size, size).to(device, dtype).requires_grad_()
    weight = (torch.randn(out, channels, k, k) / (channels * k * k) ** 0.5).to(device)
    return x, weight, (1 + torch.randn(BATCH, channels) / 4).to(device).requires_grad_()


def _ours(**options: Any) -> Variant:
    return Variant("ours", lambda x, weight, style: modulated_conv2d(x, weight, style, **options), prepare=channels_last)


def _reference(**options: Any) -> Callable[..., Tensor]:
    return lambda x, weight, style: modulated_conv2d_reference(x, weight, style, **options)


def _torch(x: Tensor, weight: Tensor, style: Tensor) -> Tensor:
    norm = torch.rsqrt(style.square() @ weight.square().sum((2, 3)).t() + 1e-8)
    y = F.conv2d(x * style.to(x.dtype)[:, :, None, None], weight.to(x.dtype), padding=1)
    return y * norm.to(x.dtype)[:, :, None, None]


def _case(name: str, shape: tuple[int, int, int], k: int, dtype: torch.dtype, variants: tuple[Variant, ...], **more: Any) -> Case:
    channels, out, size = shape
    operations = 2.0 * BATCH * channels * out * k * k * size * size
    passes = (BOTH,) if size > 32 and k == 3 else (FORWARD, BOTH)
    return Case(
        operator="modulated_conv2d",
        name=f"{name} {channels} to {out} at {size}",
        inputs=lambda device: _inputs(device, shape, k, dtype),
        variants=variants,
        passes=passes,
        dtype=dtype,
        operations={what: operations * (2 if what == BOTH else 1) for what in passes},
        **more,
    )


def cases() -> list[Case]:
    result = []
    # On CUDA whatever the processor has.
    narrow = (torch.bfloat16,) if torch.cuda.is_available() or machine.convolves_in_bfloat16() else ()
    for dtype in (torch.float32, *narrow):
        for shape in LAYERS:
            reference = _reference()
            variants = (
                _ours(),
                Variant("reference", reference),
                Variant("torch", _torch, prepare=channels_last, note="one convolution of scaled activations, channels-last"),
                *((compiled(reference, passes=(BOTH,)),) if shape == (512, 512, 32) else ()),
            )
            # The unit of throughput is what oneDNN itself reaches with the number format.
            targets = {"reference": 2.5, "throughput": 1.0} if dtype == torch.float32 else {"reference": 3.5}
            result.append(_case("3x3", shape, 3, dtype, variants, targets=targets))
        result.append(_case("3x3 up", UP_LAYER, 3, dtype, (_ours(up=True), Variant("reference", _reference(up=True)))))
        colour = (_ours(demodulate=False), Variant("reference", _reference(demodulate=False)))
        result.append(_case("1x1", COLOUR_LAYER, 1, dtype, colour))
    return result
