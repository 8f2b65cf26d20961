# SPDX-License-Identifier: Apache-2.0
"""Adaptive instance normalisation of a translation network's feature maps."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.case import BOTH, FORWARD, Case, Variant, channels_last, compiled
from gangealing_fast.ops.adain import adain, adain_reference


def _torch(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    one = x.reshape(1, -1, *x.shape[2:])
    return F.batch_norm(one, None, None, scale.flatten(), shift.flatten(), training=True, eps=1e-5).view(x.shape)


def _torch_last(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return F.instance_norm(x) * scale[..., None, None] + shift[..., None, None]


def cases() -> list[Case]:
    result = []
    for batch, channels, size, last, dtype in (
        (5, 256, 64, False, torch.float32),
        (5, 256, 64, True, torch.float32),
        (5, 64, 128, False, torch.float32),
        (5, 64, 128, True, torch.float32),
        (5, 256, 64, True, torch.bfloat16),
    ):

        def inputs(
            device: torch.device, shape: tuple[int, ...] = (batch, channels, size, size), dtype: torch.dtype = dtype
        ) -> tuple[Tensor, ...]:
            x, scale, shift = torch.randn(shape), torch.randn(shape[:2]), torch.randn(shape[:2])
            return tuple(t.to(device, dtype).requires_grad_() for t in (x, scale, shift))

        prepare = channels_last if last else None
        moved = torch.finfo(dtype).bits / 8 * batch * channels * size**2
        plain = Variant("torch", _torch, note="batch_norm of one sample with N C channels")
        if last:
            plain = Variant("torch", _torch_last, prepare, note="instance_norm, then scale and shift")
        result.append(
            Case(
                operator="adain",
                name=f"[{batch}, {channels}, {size}, {size}]{' channels-last' if last else ''}",
                inputs=inputs,
                variants=(
                    Variant("ours", adain, prepare),
                    Variant("reference", adain_reference, prepare),
                    plain,
                    *((compiled(adain_reference, passes=(BOTH,), prepare=prepare),) if size == 64 else ()),
                ),
                dtype=dtype,
                moved={FORWARD: 2 * moved, BOTH: 5 * moved},
                targets={"reference": 3} if dtype == torch.float32 else {},
                peak=size == 64 and not last,
            )
        )
    return result
