# SPDX-License-Identifier: Apache-2.0
"""The flow head's upsampling, 16² to 128²."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.case import BOTH, FORWARD, Case, Variant, compiled
from gangealing_fast.ops.convex_upsample import convex_upsample, convex_upsample_reference

FACTOR = 8


def _torch(flow: Tensor, mask: Tensor) -> Tensor:
    n, h, w, _ = flow.shape
    weights = mask.view(n, 9, FACTOR, FACTOR, h, w).softmax(1)
    patches = F.unfold(FACTOR * flow.permute(0, 3, 1, 2), 3, padding=1).view(n, 2, 9, h, w)
    return torch.einsum("nkabhw,nckhw->nhawbc", weights, patches).reshape(n, h * FACTOR, w * FACTOR, 2)


def cases() -> list[Case]:
    result = []
    for batch, size in ((5, 16), (40, 16)):

        def inputs(device: torch.device, n: int = batch, side: int = size) -> tuple[Tensor, ...]:
            flow, mask = torch.randn(n, side, side, 2), torch.randn(n, 9 * FACTOR**2, side, side)
            return flow.to(device).requires_grad_(), mask.to(device).requires_grad_()

        points = batch * size * size
        mask, flow, fine = 4.0 * points * 9 * FACTOR**2, 4.0 * points * 2, 4.0 * points * FACTOR**2 * 2
        result.append(
            Case(
                operator="convex_upsample",
                name=f"flow [{batch}, {size}, {size}, 2] factor {FACTOR}",
                inputs=inputs,
                variants=(
                    Variant("ours", convex_upsample),
                    Variant("reference", convex_upsample_reference),
                    Variant("torch", _torch, note="softmax, unfold, einsum"),
                    *((compiled(convex_upsample_reference, passes=(BOTH,)),) if batch == 5 else ()),
                ),
                moved={FORWARD: mask + flow + fine, BOTH: 3 * (mask + flow) + 2 * fine},
                targets={"reference": 20, "compile": 6} if batch == 5 else {},
                peak=batch == 40,
            )
        )
    return result
