# SPDX-License-Identifier: Apache-2.0
"""Pictures of the generator's size to the transformer's."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.case import BOTH, FORWARD, Case, Variant, channels_last, compiled
from gangealing_fast.ops.bilinear_downsample import bilinear_downsample, bilinear_downsample_reference, tent_taps


def _inputs(device: torch.device, side: int) -> tuple[Tensor, ...]:
    return (torch.randn(5, 3, side, side).to(device).requires_grad_(),)


def _torch(x: Tensor, stride: int) -> Tensor:
    taps = torch.tensor(tent_taps(stride), dtype=x.dtype, device=x.device)
    kernel = torch.outer(taps, taps).expand(x.shape[1], 1, -1, -1)
    return F.conv2d(F.pad(x, (stride // 2,) * 4, mode="reflect"), kernel, stride=stride, groups=x.shape[1])


def cases() -> list[Case]:
    result = []
    for size, stride in ((256, 2), (512, 4)):
        moved = 4.0 * 5 * 3 * (size**2 + (size // stride) ** 2)
        reference = partial(bilinear_downsample_reference, stride=stride)
        result.append(
            Case(
                operator="bilinear_downsample",
                name=f"[5, 3, {size}, {size}] stride {stride}",
                inputs=partial(_inputs, side=size),
                variants=(
                    Variant("ours", partial(bilinear_downsample, stride=stride)),
                    Variant("reference", reference),
                    Variant("torch", partial(_torch, stride=stride), channels_last, note="depthwise channels-last convolution"),
                    *((compiled(reference, passes=(BOTH,)),) if stride == 2 else ()),
                ),
                moved={FORWARD: moved, BOTH: 2 * moved},
                targets={"reference": 15, "compile": 6} if stride == 2 else {},
            )
        )
    return result
