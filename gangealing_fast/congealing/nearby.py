# SPDX-License-Identifier: Apache-2.0
"""Matches of places that cannot lie far apart: what is around two places says whether they are the same.

Places side by side are displaced alike. So the likeness of two places is averaged with those of the places around the first to the
places equally displaced, as local methods of stereo and of optical flow do (Hosni et al., "Fast cost-volume filtering for visual
correspondence and beyond", PAMI 2013, here with a Gaussian).
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from gangealing_fast.congealing.sub_cell import cells_around, weighted_middle

NEIGHBOURHOOD = 1.75
"""Standard deviation, in cells, of the Gaussian that likenesses are averaged with."""
SLACK = 0.01
"""A match may be that much less alike than the best that its second place has."""
LEAST_PEAK = 0.01
"""How far the best of a place's likenesses must be above their mean: an empty background is alike everywhere."""
TEMPERATURE = 0.05


def match_nearby(
    first: Tensor, second: Tensor, first_inside: Tensor, second_inside: Tensor, grid: int, cells: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The places of the first that match, `[M]`, where they lie in the second, `[M, 2]` in cells (x, y), and their cosines `[M]`.

    first, second: unit vectors `[P, D]`, P = grid², 0 for places that do not count. inside: `[P]`, bool. cells: how far two places
    may lie apart along each axis.
    """
    side = 2 * cells + 1
    plain = _likeness(first, second, grid, cells)
    counts = first_inside.view(1, 1, grid, grid) & _displaced(second_inside.view(grid, grid), cells)
    around = _averaged(plain, grid).div_(_averaged(counts.float(), grid).clamp_min_(1e-3)).mul_(counts)
    mean = around.sum((0, 1)) / counts.sum((0, 1)).clamp_min(1)
    around = around.masked_fill_(~counts, -1.0)
    best, number = around.view(side * side, -1).max(0)
    here = torch.arange(grid * grid)
    down, across = number // side - cells, number % side - cells
    row, column = here // grid + down, here % grid + across
    target = row.clamp(0, grid - 1) * grid + column.clamp(0, grid - 1)
    mutual = best >= _largest_by_target(around, grid, cells)[target] - SLACK
    cell = (mutual & (best > mean.view(-1) + LEAST_PEAK)).nonzero()[:, 0]
    near, inside = cells_around(number[cell], side)
    offset = weighted_middle(around.view(side * side, -1)[near, cell[:, None]], inside, TEMPERATURE)
    at = torch.stack([column[cell], row[cell]], -1) + offset
    return cell, at, plain.view(side * side, -1)[number[cell], cell].clamp_min(0)


def _displaced(there: Tensor, cells: int) -> Tensor:
    """`[side, side, g, g]`: a map `[g, g]` displaced by up to `cells` up and down, left and right; 0 beyond the edges."""
    grid, side, wide = len(there), 2 * cells + 1, len(there) + 2 * cells
    return F.pad(there, (cells,) * 4).as_strided((side, side, grid, grid), (wide, 1, wide, 1))


def _likeness(first: Tensor, second: Tensor, grid: int, cells: int) -> Tensor:
    """`[side, side, g, g]`: cosines of each place of the first with those of the second at each displacement (down, across)."""
    side, wide, width = 2 * cells + 1, grid + 2 * cells, first.shape[1]
    padded = F.pad(second.view(grid, grid, width), (0, 0, cells, cells, cells, cells))
    # Each row of places with all rows that it may lie in: a product of matrices, of which the displacements are diagonals.
    bands = padded.as_strided((grid, side * wide, width), (wide * width, width, 1))
    table = torch.bmm(first.view(grid, grid, width), bands.mT)
    return table.as_strided((side, side, grid, grid), (wide, 1, grid * side * wide, side * wide + 1)).contiguous()


def _averaged(maps: Tensor, grid: int) -> Tensor:
    """Maps `[..., g, g]` times a Gaussian along both axes, as products with matrices."""
    gaussian = _gaussian(grid)
    return gaussian @ maps @ gaussian


@functools.lru_cache(maxsize=16)
def _gaussian(grid: int) -> Tensor:
    """`[g, g]`: the Gaussian between places along an axis."""
    apart = (torch.arange(grid)[:, None] - torch.arange(grid)).float()
    weight = torch.exp(-(apart**2) / (2 * NEIGHBOURHOOD**2)).masked_fill(apart.abs() > round(2 * NEIGHBOURHOOD), 0.0)
    return weight / weight.sum(1).max()


def _largest_by_target(around: Tensor, grid: int, cells: int) -> Tensor:
    """`[P]`: the largest likeness of each place of the second with any of the first."""
    side, wide = 2 * cells + 1, grid + 2 * cells
    targets = around.new_full((side, side, wide, wide), -2.0)
    strides = targets.stride()
    into = targets.as_strided((side, side, grid, grid), (strides[0] + strides[2], strides[1] + 1, strides[2], 1))
    into.copy_(around)
    return targets.amax((0, 1))[cells : cells + grid, cells : cells + grid].reshape(-1)
