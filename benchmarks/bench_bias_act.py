# SPDX-License-Identifier: Apache-2.0
"""Bias, noise and leaky ReLU of the generator's layers (frozen: only the activations need a gradient), and bias and leaky
ReLU of the transformer's (whose bias is learned)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.case import BOTH, FORWARD, Case, Variant, channels_last, compiled
from gangealing_fast.ops.bias_act import bias_act, bias_act_reference

BATCH, GAIN = 5, 2**0.5


def _ours(x: Tensor, b: Tensor, noise: Tensor | None, strength: Tensor | None) -> Tensor:
    return bias_act(x, b, noise=noise, noise_strength=strength)


def _reference(x: Tensor, b: Tensor, noise: Tensor | None, strength: Tensor | None) -> Tensor:
    return bias_act_reference(x, b, noise=noise, noise_strength=strength)


def _torch(x: Tensor, b: Tensor, noise: Tensor | None, strength: Tensor | None) -> Tensor:
    # The positive gain moves inside the leaky ReLU, so that it rides on the addition of the bias; the rest is in place.
    y = torch.add((GAIN * b)[None, :, None, None], x, alpha=GAIN)
    if noise is not None and strength is not None:
        y = y.addcmul_(noise, GAIN * strength)
    return F.leaky_relu_(y, 0.2)


def _case(channels: int, size: int, dtype: torch.dtype, *, generator: bool, compile_it: bool) -> Case:
    def inputs(device: torch.device) -> tuple[Tensor | None, ...]:
        def draw(*shape: int) -> Tensor:
            return torch.randn(shape).to(device, dtype)

        x, b = draw(BATCH, channels, size, size).requires_grad_(), draw(channels)
        if generator:
            return x, b, draw(BATCH, 1, size, size), draw(1)
        return x, b.requires_grad_(), None, None

    element = torch.empty(0, dtype=dtype).element_size()
    plane = float(element * BATCH * size * size)
    forward = plane * (2 * channels + generator)
    narrow = dtype == torch.bfloat16
    targets = {"reference": 5.0 if narrow else 2.6, "bandwidth": 0.85, **({"compile": 10.0} if compile_it else {})}
    return Case(
        operator="bias_act",
        name=f"{'noise' if generator else 'bias'} [{BATCH}, {channels}, {size}, {size}]",
        inputs=inputs,
        variants=(
            Variant("ours", _ours, channels_last),
            Variant("reference", _reference, channels_last),
            Variant("torch", _torch, channels_last, note="the same in three passes, in place where that is possible"),
            *((compiled(_reference, passes=(BOTH,)),) if compile_it else ()),
        ),
        dtype=dtype,
        moved={FORWARD: forward, BOTH: forward + plane * 3 * channels},
        targets=targets if generator else {},
    )


def cases() -> list[Case]:
    shapes = ((512, 32), (512, 64), (256, 128), (128, 256))
    return [
        *(_case(*shape, torch.float32, generator=True, compile_it=shape == (256, 128)) for shape in shapes),
        *(_case(*shape, torch.bfloat16, generator=True, compile_it=shape == (256, 128)) for shape in shapes[1::2]),
        _case(64, 128, torch.float32, generator=False, compile_it=False),
        _case(512, 32, torch.float32, generator=False, compile_it=False),
    ]
