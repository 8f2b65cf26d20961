# SPDX-License-Identifier: Apache-2.0
"""The vertex of a grid that lies nearest to a point: how GANgealing inverts a warp (arXiv 2112.05143, section 4.3).

    index = argmin over (x, y) of (grid[y, x].x - point.x)² + (grid[y, x].y - point.y)²

Of several equally near vertices the first in reading order. Differences and squares are rounded one by one, without fused
multiply-adds, so that every implementation sees the same ties. A vertex whose distance is not finite is never the
nearest; where there is no other, the index is (-1, -1).
"""

from __future__ import annotations

import torch
from torch import Tensor

from gangealing_fast.ops._common import check_tensor
from gangealing_fast.ops._dispatch import reference_wanted, run_reference
from gangealing_fast.ops.grid_sample import widest_dtype


def nearest_grid_point_reference(grid: Tensor, points: Tensor) -> Tensor:
    """Plain torch version of `nearest_grid_point`; holds the distance of every point to every vertex."""
    dtype = widest_dtype(grid, points)
    width = grid.shape[2]
    vertices, points = grid.detach().to(dtype).flatten(1, 2).unsqueeze(1), points.detach().to(dtype).unsqueeze(2)
    squared = (vertices[..., 0] - points[..., 0]).square() + (vertices[..., 1] - points[..., 1]).square()  # [N, P, H * W]
    squared = torch.where(squared.isfinite(), squared, torch.inf)
    nearest = squared.argmin(-1)
    found = torch.stack([nearest % width, nearest // width], -1)
    return torch.where(squared.amin(-1, keepdim=True).isfinite(), found, -1)


@torch.library.custom_op("gangealing_fast::nearest_grid_point", mutates_args=())
def _nearest_grid_point(grid: Tensor, points: Tensor) -> Tensor:
    return nearest_grid_point_reference(grid, points)


@_nearest_grid_point.register_fake
def _(grid: Tensor, points: Tensor) -> Tensor:
    return points.new_empty(points.shape, dtype=torch.int64)


def check_grid_and_points(operator: str, grid: Tensor, points: Tensor) -> None:
    """Raise TypeError or ValueError, in one sentence, where `points` cannot be looked up in `grid`."""
    check_tensor(operator, "grid", grid, 4, "[N, H, W, 2]")
    check_tensor(operator, "points", points, 3, "[N, P, 2]")
    if points.device != grid.device:
        raise ValueError(f"{operator}: points is on {points.device} but grid is on {grid.device}; move one of them.")
    for name, tensor in (("grid", grid), ("points", points)):
        if tensor.shape[-1] != 2:
            raise ValueError(f"{operator}: the last axis of {name} must be 2 (x, y), but its shape is {list(tensor.shape)}.")
    if grid.shape[0] != points.shape[0]:
        raise ValueError(f"{operator}: grid has batch size {grid.shape[0]} and points {points.shape[0]}; they must be equal.")
    if grid.shape[1] == 0 or grid.shape[2] == 0:
        raise ValueError(f"{operator}: grid has no points; its shape is {list(grid.shape)}.")


def nearest_grid_point(grid: Tensor, points: Tensor) -> Tensor:
    """Indices of the grid vertices nearest to `points`.

    grid: `[N, H, W, 2]` of (x, y), H and W at least 1. points: `[N, P, 2]` in the grid's units. Both float64, float32,
    bfloat16 or float16, any strides; compared in float64 if one of them is, else in float32.
    Returns `[N, P, 2]` int64: (x, y) indices, that is (column, row); the first vertex in reading order among equally near
    ones, (-1, -1) for a point that is not finite or so far away that every distance overflows. Has no derivative;
    `invert_grid` has.
    Raises TypeError or ValueError for inputs that do not fit together.
    """
    check_grid_and_points("nearest_grid_point", grid, points)
    if reference_wanted():
        return run_reference(nearest_grid_point_reference, grid, points)
    dtype = widest_dtype(grid, points)
    return _nearest_grid_point(grid.detach().to(dtype), points.detach().to(dtype))
