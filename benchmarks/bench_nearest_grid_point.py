# SPDX-License-Identifier: Apache-2.0
"""The nearest grid vertex: key points of a batch, and a dense set of points."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.case import FORWARD, Case, Variant, compiled
from benchmarks.grids import warp_grid
from gangealing_fast.ops.nearest_grid_point import nearest_grid_point, nearest_grid_point_reference


def _torch(grid: Tensor, points: Tensor) -> Tensor:
    distance = torch.cdist(points, grid.flatten(1, 2), compute_mode="donot_use_mm_for_euclid_dist")
    index = distance.argmin(-1)
    return torch.stack([index % grid.shape[2], index // grid.shape[2]], -1)


def cases() -> list[Case]:
    result = []
    for batch, size, points in ((5, 128, 20), (5, 128, 500), (1, 256, 1000)):

        def inputs(device: torch.device, batch: int = batch, size: int = size, points: int = points) -> tuple[Tensor, ...]:
            grid = warp_grid(batch, size, zoom=0.9, wobble=0.02)
            return grid.to(device), (torch.rand(batch, points, 2) * 1.6 - 0.8).to(device)

        result.append(
            Case(
                operator="nearest_grid_point",
                name=f"{batch} x {points} points in {size}²",
                inputs=inputs,
                variants=(
                    Variant("ours", nearest_grid_point),
                    Variant("reference", nearest_grid_point_reference),
                    Variant("torch", _torch, note="cdist, argmin"),
                    compiled(nearest_grid_point_reference),
                ),
                passes=(FORWARD,),
                moved={FORWARD: 4.0 * batch * size**2 * 2 + 24.0 * batch * points},
                targets={"reference": 50, "compile": 10},
                tolerance=1e-2,  # fused multiply-adds may decide between two vertices otherwise
            )
        )
    return result
