# SPDX-License-Identifier: Apache-2.0
"""Warps as grids and as matrices."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def similarity_matrix(rot: Tensor, scale: Tensor, shift_x: Tensor, shift_y: Tensor) -> Tensor:
    """Matrices `[..., 2, 3]` of raw head outputs `[...]`: angle `pi tanh(rot)`, size `exp(scale)`, shifts as given."""
    angle, size = torch.tanh(rot) * math.pi, torch.exp(scale)
    cos, sin = size * torch.cos(angle), size * torch.sin(angle)
    return torch.stack([torch.stack([cos, -sin, shift_x], -1), torch.stack([sin, cos, shift_y], -1)], -2)


def identity_grid(height: int, width: int, *, device: torch.device | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
    """`[height, width, 2]`: the pixel centres themselves, pixel edges at -1 and 1."""
    x = (torch.arange(width, device=device, dtype=dtype) * 2 + 1) / width - 1
    y = (torch.arange(height, device=device, dtype=dtype) * 2 + 1) / height - 1
    return torch.stack([x.expand(height, -1), y[:, None].expand(-1, width)], -1)


def transform_points(matrix: Tensor, points: Tensor) -> Tensor:
    """`M · (x, y, 1)` for matrices `[N, 2, 3]` and points `[N, ..., 2]`, or `[1, ..., 2]` for the same under every matrix."""
    shape = (matrix.shape[0], *points.shape[1:])
    flat = points.expand(shape).flatten(1, -2)
    return (flat @ matrix[:, :, :2].mT + matrix[:, None, :, 2]).reshape(shape)


def compose(first: Tensor, second: Tensor) -> Tensor:
    """`first @ second` of matrices `[N, 2, 3]` taken as 3x3 with last row (0, 0, 1)."""
    linear = first[:, :, :2] @ second
    return torch.cat([linear[:, :, :2], linear[:, :, 2:] + first[:, :, 2:]], 2)


def resize_grid(grid: Tensor, resolution: int) -> Tensor:
    """A grid `[N, H, W, 2]` bilinearly resized to `[N, resolution, resolution, 2]`."""
    return F.interpolate(grid.permute(0, 3, 1, 2), size=(resolution, resolution), mode="bilinear", align_corners=False).permute(
        0, 2, 3, 1
    )
