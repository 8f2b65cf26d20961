# SPDX-License-Identifier: Apache-2.0
"""The smooth flow that is left over when a picture was carried to the template."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from gangealing_fast.congealing.matching import Matches
from gangealing_fast.congealing.transforms import carry

REACH = 0.25
SCALES = (3.25, 2.0)
"""Standard deviations of the spreading in thirty-seconds of the frame, coarse to fine."""


def residual_flow(matches: Matches, matrix: Tensor, grid: int, sigma: float) -> Tensor:
    """`[N, grid, grid, 2]`, in a frame from -1 to 1: how far beyond each place the matches lie, spread to all places.

    Matches whose source lies in one of the grid's cells count there together.
    Robust normalised convolution: a Gaussian mean of the residuals, weighted by the matches and by Geman and McClure's weight, with
    this sigma.
    """
    count = len(matrix)
    gap = carry(matrix, matches.target) - matches.source
    weight = matches.weight * (gap.norm(dim=-1) < REACH)
    seen = torch.zeros(count, 2, grid * grid)
    trust = torch.zeros(count, 1, grid * grid)
    column, row = ((matches.source + 1) * (grid / 2)).long().clamp(0, grid - 1).unbind(-1)
    cell = (row * grid + column)[:, None]
    # A padded match has the weight 0 and the place of another, so sums leave that place as it is.
    seen.scatter_add_(2, cell.expand(-1, 2, -1), (gap * weight[..., None]).mT)
    trust.scatter_add_(2, cell, weight[:, None])
    seen = (seen / trust.clamp_min(1e-9)).unflatten(2, (grid, grid))
    trust = trust.unflatten(2, (grid, grid))
    positive = trust[trust > 0]
    trust = trust / (positive.mean() if len(positive) else 1.0)
    flow = torch.zeros_like(seen)
    for scale in SCALES:
        width = scale * grid / 32
        floor = 0.05 * blur(trust, 3 * width).clamp_min(0.02)
        for _ in range(3):
            left = seen - flow
            weights = trust / (1 + left.square().sum(1, keepdim=True) / sigma**2) ** 2
            flow = flow + 0.7 * blur(weights * left, width) / (blur(weights, width) + floor)
    return flow.permute(0, 2, 3, 1).contiguous()


def blur(maps: Tensor, sigma: float) -> Tensor:
    """Maps `[N, C, H, W]` convolved with a Gaussian; borders are repeated."""
    radius = min(int(3 * sigma + 0.5), 4 * maps.shape[-1])
    kernel = torch.exp(-(torch.arange(-radius, radius + 1) ** 2) / (2 * sigma * sigma))
    kernel = kernel / kernel.sum()
    channels = maps.shape[1]
    across = F.pad(maps, (radius, radius, 0, 0), mode="replicate")
    across = F.conv2d(across, kernel.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)
    down = F.pad(across, (0, 0, radius, radius), mode="replicate")
    return F.conv2d(down, kernel.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)
