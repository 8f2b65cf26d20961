# SPDX-License-Identifier: Apache-2.0
"""Perceptual distance of the five taps of VGG16 for pictures of 128 x 128."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.case import BOTH, FORWARD, Case, Variant, channels_last, compiled
from gangealing_fast.ops.lpips_distance import lpips_distance, lpips_distance_reference

TAPS = ((64, 128), (128, 64), (256, 32), (512, 16), (512, 8))  # channels, size
BATCH = 5


def _inputs(device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Features of both pictures, then heads; the features are not negative, as after a ReLU."""
    features = [
        torch.randn(BATCH, channels, size, size).relu().to(device, dtype).requires_grad_()
        for _ in range(2)
        for channels, size in TAPS
    ]
    return *features, *(torch.rand(channels).to(device) for channels, _ in TAPS)


def _ours(*inputs: Tensor) -> Tensor:
    return lpips_distance(inputs[:5], inputs[5:10], inputs[10:])


def _reference(*inputs: Tensor) -> Tensor:
    taps = zip(inputs[:5], inputs[5:10], inputs[10:], strict=True)
    return torch.stack([lpips_distance_reference(a, b, head) for a, b, head in taps]).sum(0)


def _torch(*inputs: Tensor) -> Tensor:
    total = torch.zeros((), dtype=inputs[0].dtype, device=inputs[0].device)
    for a, b, head in zip(inputs[:5], inputs[5:10], inputs[10:], strict=True):
        difference = (F.normalize(a, dim=1, eps=1e-10) - F.normalize(b, dim=1, eps=1e-10)).square()
        total = total + F.conv2d(difference, head.to(difference.dtype)[None, :, None, None]).mean((1, 2, 3))
    return total.float()


def cases() -> list[Case]:
    result = []
    for dtype, width in ((torch.float32, 4.0), (torch.bfloat16, 2.0)):
        elements = BATCH * sum(channels * size * size for channels, size in TAPS)
        result.append(
            Case(
                operator="lpips_distance",
                name=f"five taps, batch {BATCH}, channels-last",
                inputs=partial(_inputs, dtype=dtype),
                variants=(
                    Variant("ours", _ours, prepare=channels_last),
                    Variant("reference", _reference, prepare=channels_last),
                    Variant("torch", _torch, prepare=channels_last, note="normalize and a 1x1 convolution"),
                    compiled(_reference, passes=(BOTH,), prepare=channels_last),  # 1.1x faster than with contiguous maps
                ),
                dtype=dtype,
                # Both maps in; then both maps in and both gradients out.
                moved={FORWARD: 2 * width * elements, BOTH: 6 * width * elements},
                targets={"reference": 11, "compile": 3.5, "bandwidth": 0.5} if dtype == torch.float32 else {},
                peak=dtype == torch.float32,
            )
        )
    return result
