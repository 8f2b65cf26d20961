# SPDX-License-Identifier: Apache-2.0
"""The sub-pixel inverse of a grid; the reference looks at every cell for every point."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.case import Case, Variant
from benchmarks.grids import warp_grid
from gangealing_fast.ops.invert_grid import invert_grid, invert_grid_reference


def _position(grid: Tensor, points: Tensor) -> Tensor:
    return invert_grid(grid, points)[0]


def _reference(grid: Tensor, points: Tensor) -> Tensor:
    return invert_grid_reference(grid, points)[0]


def cases() -> list[Case]:
    result = []
    for batch, size, points in ((5, 128, 20), (5, 128, 100)):

        def inputs(device: torch.device, batch: int = batch, size: int = size, points: int = points) -> tuple[Tensor, ...]:
            grid = warp_grid(batch, size, zoom=0.9, wobble=0.02)
            where = torch.rand(batch, points, 2) * 1.6 - 0.8
            return grid.to(device).requires_grad_(), where.to(device).requires_grad_()

        result.append(
            Case(
                operator="invert_grid",
                name=f"{batch} x {points} points in {size}²",
                inputs=inputs,
                variants=(Variant("ours", _position), Variant("reference", _reference)),
                tolerance=1e-3,  # of a cell whose corners float32 knows to 1e-5 of its size
            )
        )
    return result
