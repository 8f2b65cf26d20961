# SPDX-License-Identifier: Apache-2.0
"""Random poses of the generator's samples, and how consistently a transformer undoes them.

A generator that has seen a few thousand pictures knows fewer poses than there are. Shown under a random similarity A, as
`warped(q) = sample(A⁻¹ q)`, a sample keeps its target, so that the transformer has to undo A as well. How far it does can be told
without any target: where the warp W of the sample and the warp W' of the warped sample carry the template to the same places,
`A⁻¹ W' = W` (equivariance, as asked of landmarks by Thewlis et al. 2017, arXiv 1705.02193).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from gangealing_fast.alignment.config import TrainConfig
from gangealing_fast.geometry.warps import identity_grid, inverse_similarity_matrix, transform_points
from gangealing_fast.ops import mipmap_warp

POSE_NUMBERS = 4


class PoseRange(NamedTuple):
    """Which poses are drawn: angles uniform in ±rotation degrees, factors of size uniform in their logarithm between the two of
    `scale`, shifts uniform in ±shift of the picture's side along each axis."""

    rotation: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    shift: float = 0.0

    @classmethod
    def of(cls, config: TrainConfig) -> PoseRange:
        """What the options of a run ask for."""
        return cls(config.pose_rotation, config.pose_scale, config.pose_shift)

    @property
    def wanted(self) -> bool:
        """Whether there is any pose but the sample's own."""
        return self != PoseRange()

    def draw(self, numbers: Tensor) -> Tensor:
        """`[N, 2, 3]`, A⁻¹ for standard normal `numbers` `[N, 4]`: where in its own frame a posed picture is read."""
        angle, log_scale, x, y = torch.special.ndtr(numbers.float()).unbind(1)
        angle = (2 * angle - 1) * math.radians(self.rotation)
        low, high = (math.log(factor) for factor in self.scale)
        log_scale = low + (high - low) * log_scale
        # A picture's side is 2 in normalised units; the object is shifted, then turned and scaled about the middle of the picture.
        x, y = ((2 * part - 1) * 2 * self.shift for part in (x, y))
        return inverse_similarity_matrix(angle, log_scale, x, y)


def show(images: Tensor, pose: Tensor, padding_mode: str) -> Tensor:
    """Pictures `[N, 3, H, W]` read where `pose` `[N, 2, 3]` says, at their own size."""
    grid = transform_points(pose, identity_grid(*images.shape[2:], device=images.device)[None])
    return mipmap_warp(images, grid, padding_mode=padding_mode)


def equivariance_error(grid: Tensor, posed_grid: Tensor, pose: Tensor) -> Tensor:
    """How far apart a picture and the same as posed are read by `grid` and `posed_grid`, both `[N, H, W, 2]`: `[N]`, 0 at best.

    Of the similarities z → a z + b (as complex numbers) nearest to the two warps, the second as it reads the picture itself:

        |b' - b|² + |a' - a|² / (|a| |a'|)

    The shift counts in the picture's frame, turn and size relatively, 2 (cosh(log-size) - cos(angle)): so that zooming in or out
    does not make anything smaller. The mean square distance of what is read would be least at a single point.
    """
    size, shift = _similarity(grid.float())
    posed_size, posed_shift = _similarity(transform_points(pose, posed_grid.float()))
    lengths = (size.square().sum(1) * posed_size.square().sum(1)).clamp_min(1e-12).sqrt()
    return (posed_shift - shift).square().sum(1) + (posed_size - size).square().sum(1) / lengths


def _similarity(grid: Tensor) -> tuple[Tensor, Tensor]:
    """a and b, `[N, 2]` each, of the similarity nearest to grids `[N, H, W, 2]` in the mean square."""
    base = identity_grid(*grid.shape[1:3], device=grid.device)
    x, y = base.unbind(2)
    real = (grid[..., 0] * x + grid[..., 1] * y).mean((1, 2))
    imaginary = (grid[..., 1] * x - grid[..., 0] * y).mean((1, 2))
    return torch.stack([real, imaginary], 1) / base.square().sum(2).mean(), grid.mean((1, 2))
