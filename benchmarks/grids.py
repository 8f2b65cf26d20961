# SPDX-License-Identifier: Apache-2.0
"""Sampling grids as training meets them: smooth, not random points."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def warp_grid(batch: int, size: int, *, zoom: float, wobble: float) -> Tensor:
    """`[batch, size, size, 2]`: rotated identities, sides scaled by `zoom`, plus a smooth flow of standard deviation `wobble`."""
    angle = torch.rand(batch) * 0.6 - 0.3
    cos, sin = zoom * angle.cos(), zoom * angle.sin()
    zero = torch.zeros(batch)
    matrix = torch.stack([torch.stack([cos, -sin, zero], 1), torch.stack([sin, cos, zero], 1)], 1)
    grid = F.affine_grid(matrix, [batch, 1, size, size], align_corners=False)
    coarse = wobble * torch.randn(batch, 2, max(size // 16, 2), max(size // 16, 2))
    return grid + F.interpolate(coarse, size=(size, size), mode="bicubic").permute(0, 2, 3, 1)
