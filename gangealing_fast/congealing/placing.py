# SPDX-License-Identifier: Apache-2.0
"""Where a template reads a picture that lies on it as `records.Registered` says."""

from __future__ import annotations

import torch
from torch import Tensor

from gangealing_fast.geometry.warps import resize_grid

_BEHIND = 1e-6
"""A homography's third coordinate is kept above that: a place beyond its horizon is far away, not on the other side."""


def reading_places(matrix: Tensor, flow: Tensor, side: int, resolution: int) -> Tensor:
    """Pixels `[N, R, R, 2]` (x, y) of N pictures that a template of `side` pixels shows, sampled at R = `resolution` pixels a side.

    matrix `[N, 3, 3]`, flow `[N, F, F, 2]`: as in `records`. Result in float64: inv(matrix) @ (p + flow(p)).
    """
    at = (torch.arange(resolution, dtype=torch.float64) + 0.5) * side / resolution - 0.5
    template = torch.stack([at.expand(resolution, -1), at[:, None].expand(-1, resolution)], -1)
    moved = template + resize_grid(flow.double(), resolution)
    return apply_homography(torch.linalg.inv(matrix.double()), moved.flatten(1, 2)).view_as(moved)


def apply_homography(matrix: Tensor, points: Tensor) -> Tensor:
    """Points `[N, P, 2]` carried by matrices `[N, 3, 3]` of homogeneous coordinates."""
    carried = points @ matrix[:, :, :2].mT + matrix[:, None, :, 2]
    return carried[..., :2] / carried[..., 2:].clamp(min=_BEHIND)


def own_resolution(matrix: Tensor, side: int) -> int:
    """Pixels a side at which the template shows a picture about as large as the picture itself does; matrix `[3, 3]`."""
    determinant = float(torch.linalg.det(matrix[:2, :2].double()).abs())
    return max(1, round(side / max(determinant, 1e-12) ** 0.5))


def resized(matrix: Tensor, before: tuple[int, int], after: tuple[int, int]) -> Tensor:
    """A matrix `[3, 3]` of a picture of `before` (width, height), for the same picture at `after`.

    Pixel centres are at whole numbers, so that place x of one lies at (x + 1/2) after / before - 1/2 of the other.
    """
    (width, height), (wide, high) = before, after
    x, y = width / wide, height / high
    back = matrix.new_tensor([[x, 0.0, x / 2 - 0.5], [0.0, y, y / 2 - 0.5], [0.0, 0.0, 1.0]])
    return matrix @ back


def scaling(before: int, after: int) -> Tensor:
    """`[3, 3]`, float64: pixels of a template of `before` pixels a side to those of the same template at `after`."""
    return resized(torch.eye(3, dtype=torch.float64), (after, after), (before, before))


def is_affine(matrix: Tensor) -> bool:
    """Whether all matrices `[N, 3, 3]` leave parallels parallel."""
    return bool((matrix[:, 2, :2].abs() <= 1e-9).all())
