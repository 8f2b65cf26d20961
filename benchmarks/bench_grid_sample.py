# SPDX-License-Identifier: Apache-2.0
"""Bilinear sampling of pictures and feature maps, against torch's own."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.case import BOTH, FORWARD, Case, Variant
from benchmarks.grids import warp_grid
from gangealing_fast.ops.grid_sample import grid_sample

# Batch, channels, picture side, grid side, padding mode, align_corners.
SHAPES = (
    (5, 3, 256, 128, "reflection", False),
    (5, 3, 128, 128, "border", False),
    (5, 3, 128, 128, "zeros", True),
    (5, 3, 64, 64, "border", False),
    (16, 1, 32, 32, "border", False),
    (5, 64, 32, 32, "zeros", False),
    (1, 3, 1024, 1024, "border", False),
)


def cases() -> list[Case]:
    result = []
    for batch, channels, size, points, padding, corners in SHAPES:

        def inputs(
            device: torch.device, shape: tuple[int, ...] = (batch, channels, size, size), side: int = points
        ) -> tuple[Tensor, ...]:
            grid = warp_grid(shape[0], side, zoom=0.9, wobble=0.02)
            return torch.randn(shape).to(device).requires_grad_(), grid.to(device).requires_grad_()

        picture, grid = 4.0 * batch * channels * size**2, 4.0 * batch * points**2 * 2
        out = grid / 2 * channels
        options: dict[str, Any] = {"padding_mode": padding, "align_corners": corners}
        result.append(
            Case(
                operator="grid_sample",
                name=f"[{batch}, {channels}, {size}, {size}] at {points}², {padding}{', corners' if corners else ''}",
                inputs=inputs,
                variants=(
                    Variant("ours", partial(grid_sample, **options)),
                    Variant("torch", partial(F.grid_sample, mode="bilinear", **options), note="F.grid_sample"),
                ),
                moved={FORWARD: picture + grid + out, BOTH: 3 * (picture + grid) + 2 * out},
                targets={"torch": 1.0},
                everywhere=True,
            )
        )
    return result
