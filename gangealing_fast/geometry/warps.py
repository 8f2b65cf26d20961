# SPDX-License-Identifier: Apache-2.0
"""Warps as matrices and as grids: the one place that makes, applies, inverts, composes and mirrors them.

Coordinates   A point is (x, y) in the last dimension, x to the right and y down. A picture's edges lie at -1 and 1, so that the
              centre of pixel i of n is (2 i + 1) / n - 1 (`align_corners=False` in torch's terms), and its side is 2 long.
Direction     A warp that aligns says where to read: it maps a place of the output (the template) to the place of the input (the
              picture) that is shown there.
Grid          `[N, H, W, 2]`: where each of N pictures is read for every pixel of an output of H rows and W columns.
Matrix        `[N, 2, 3]`: maps p to `matrix[:, :2] @ p + matrix[:, 2]`, as a 3x3 matrix with the last row (0, 0, 1) maps (x, y, 1).
Angle, size   Radians, from the x axis towards the y axis: clockwise on the screen. Sizes are given by their natural logarithm.
Order         `compose(outer, inner)` maps p to outer(inner(p)): the inner map comes first.
Batches       N maps take N sets of points, or one set `[1, ...]` that is the same for all of them. N may be 0.
Dtype         Arguments have one floating dtype and one device; results keep both.

ValueError says which argument has a wrong shape.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

Device = torch.device | str | None


def identity_grid(height: int, width: int, *, dtype: torch.dtype = torch.float32, device: Device = None) -> Tensor:
    """`[height, width, 2]`: the centres of the pixels, where a picture is read that stays as it is."""
    x = (torch.arange(width, device=device, dtype=dtype) * 2 + 1) / width - 1
    y = (torch.arange(height, device=device, dtype=dtype) * 2 + 1) / height - 1
    return torch.stack([x.expand(height, -1), y[:, None].expand(-1, width)], -1)


def identity_matrix(count: int, *, dtype: torch.dtype = torch.float32, device: Device = None) -> Tensor:
    """`[count, 2, 3]`: maps that leave every point where it is."""
    return torch.eye(2, 3, dtype=dtype, device=device).repeat(count, 1, 1)


def similarity_matrix(angle: Tensor, log_scale: Tensor, shift_x: Tensor, shift_y: Tensor) -> Tensor:
    """`[..., 2, 3]` for arguments `[...]`: turns by the angle, scales by exp(log_scale) about the middle, then shifts.

    `[[s cos a, -s sin a, x], [s sin a, s cos a, y]]` with s = exp(log_scale).
    """
    size = torch.exp(log_scale)
    cos, sin = size * torch.cos(angle), size * torch.sin(angle)
    return _matrix_of_rows((cos, -sin, shift_x), (sin, cos, shift_y))


def inverse_similarity_matrix(angle: Tensor, log_scale: Tensor, shift_x: Tensor, shift_y: Tensor) -> Tensor:
    """The inverse of `similarity_matrix` of the same arguments, in closed form: it shifts back, then turns and scales back."""
    size = torch.exp(-log_scale)
    cos, sin = size * torch.cos(angle), size * torch.sin(angle)
    return _matrix_of_rows((cos, sin, -cos * shift_x - sin * shift_y), (-sin, cos, sin * shift_x - cos * shift_y))


def transform_points(matrix: Tensor, points: Tensor) -> Tensor:
    """Points `[N, ..., 2]`, or `[1, ..., 2]` for all, carried by matrices `[N, 2, 3]`: `[N, ..., 2]`. A grid is such points."""
    _check_matrix(matrix, "matrix")
    _check_points(points, matrix.shape[0])
    shape = (matrix.shape[0], *points.shape[1:])
    flat = points.expand(shape).flatten(1, -2)
    return (flat @ matrix[:, :, :2].mT + matrix[:, None, :, 2]).reshape(shape)


def read_grid(grid: Tensor, points: Tensor) -> Tensor:
    """Points `[N, ..., 2]`, or `[1, ..., 2]` for all, carried by grids `[N, H, W, 2]` with H, W >= 2: `[N, ..., 2]`.

    Bilinear between the pixel centres, and continued linearly beyond the outermost of them, so that the grid of a matrix carries
    every point as the matrix does.
    """
    if grid.ndim != 4 or grid.shape[3] != 2 or min(grid.shape[1:3]) < 2:
        raise ValueError(f"grid must be [N, H, W, 2] with H, W >= 2, got {list(grid.shape)}.")
    _check_points(points, grid.shape[0])
    count, height, width, _ = grid.shape
    shape = (count, *points.shape[1:])
    limits = points.new_tensor([width, height])
    position = (points.expand(shape).flatten(1, -2) + 1) / 2 * limits - 0.5
    cell = torch.minimum(position.floor().clamp(min=0), limits - 2).long()
    fraction = position - cell
    column, row = cell.unbind(-1)
    sample = torch.arange(count, device=grid.device)[:, None]
    x, y = fraction[..., :1], fraction[..., 1:]
    top = grid[sample, row, column] * (1 - x) + grid[sample, row, column + 1] * x
    bottom = grid[sample, row + 1, column] * (1 - x) + grid[sample, row + 1, column + 1] * x
    return (top * (1 - y) + bottom * y).reshape(shape)


def invert(matrix: Tensor) -> Tensor:
    """The inverse maps of matrices `[N, 2, 3]`. Raises ValueError if one is singular or not finite; waits for the device."""
    _check_matrix(matrix, "matrix")
    linear, failed = torch.linalg.inv_ex(matrix[:, :, :2])
    inverse = torch.cat([linear, -linear @ matrix[:, :, 2:]], 2)
    if bool(failed.any()) or not bool(inverse.isfinite().all()):
        raise ValueError("a matrix is singular or not finite, so it has no inverse; check the warps for collapse")
    return inverse


def compose(outer: Tensor, inner: Tensor) -> Tensor:
    """The maps p → outer(inner(p)) of matrices `[N, 2, 3]`: the product outer · inner of their 3x3 forms."""
    _check_matrix(outer, "outer")
    _check_matrix(inner, "inner")
    product = outer[:, :, :2] @ inner
    return torch.cat([product[:, :, :2], product[:, :, 2:] + outer[:, :, 2:]], 2)


def read_flow(flow: Tensor, points: Tensor) -> Tensor:
    """`[N, M, 2]`: flows `[N, h, w, 2]` at points `[N, M, 2]` of their frame, constant beyond it."""
    read = F.grid_sample(flow.permute(0, 3, 1, 2), points[:, None], padding_mode="border", align_corners=False)
    return read[:, :, 0].mT


def compose_flows(first: Tensor, second: Tensor) -> Tensor:
    """The flow of pictures that were warped by `first` and then by what was found there, `second`: `[N, h, w, 2]`, as `second`."""
    height, width = second.shape[1:3]
    points = identity_grid(height, width, dtype=second.dtype, device=second.device) + second
    return second + read_flow(first, points.flatten(1, 2)).unflatten(1, (height, width))


def resize_grid(grid: Tensor, resolution: int) -> Tensor:
    """A grid `[N, H, W, 2]` bilinearly resized to `[N, resolution, resolution, 2]`, constant beyond its outermost points."""
    resized = F.interpolate(grid.permute(0, 3, 1, 2), size=(resolution, resolution), mode="bilinear", align_corners=False)
    return resized.permute(0, 2, 3, 1)


def reads_outside(grid: Tensor, box: tuple[float, float, float, float] = (-1.0, -1.0, 1.0, 1.0)) -> Tensor:
    """`[N, H, W]` bool: for which pixels of grids `[N, H, W, 2]` a place beyond the picture is read.

    box: the picture's edges (left, top, right, bottom), if it is a part of what the grid reads.
    """
    edges = grid.new_tensor(box)
    return ((grid < edges[:2]) | (grid > edges[2:])).any(-1)


def mirror_pictures(images: Tensor, mirrored: Tensor) -> Tensor:
    """Pictures `[N, C, H, W]`, flipped left to right if `mirrored` `[N]` (bool) says so."""
    return torch.where(mirrored.reshape(-1, 1, 1, 1), images.flip(3), images)


def mirror_grid(grid: Tensor, mirrored: Tensor) -> Tensor:
    """Grids `[N, H, W, 2]` found for the result of `mirror_pictures`, as they read the pictures before that.

    What is read is mirrored, the output is not: x changes its sign if `mirrored` `[N]` (bool) says so.
    """
    sign = torch.where(mirrored, -1.0, 1.0).to(grid)[:, None, None]
    return torch.stack([grid[..., 0] * sign, grid[..., 1]], -1)


def mirror_matrix(matrix: Tensor, mirrored: Tensor) -> Tensor:
    """Matrices `[N, 2, 3]` between mirrored pictures that do what `matrix` does between the pictures as they were.

    Input and output are both mirrored if `mirrored` `[N]` (bool) says so: x changes its sign on both sides.
    """
    sign = matrix.new_tensor([[1.0, -1.0, -1.0], [-1.0, 1.0, 1.0]])
    return torch.where(mirrored[:, None, None], matrix * sign, matrix)


def _matrix_of_rows(*rows: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def _check_matrix(matrix: Tensor, name: str) -> None:
    if matrix.ndim != 3 or matrix.shape[1:] != (2, 3):
        raise ValueError(f"{name} must be [N, 2, 3], got {list(matrix.shape)}.")


def _check_points(points: Tensor, count: int) -> None:
    if points.ndim < 2 or points.shape[-1] != 2 or points.shape[0] not in (1, count):
        raise ValueError(f"points must be [N, ..., 2] with N = {count} or 1, got {list(points.shape)}.")
