# SPDX-License-Identifier: Apache-2.0
"""Mutual nearest neighbours of places, with sub-cell read-out."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gangealing_fast.congealing.features import places

TEMPERATURE = 0.03


class Matches(NamedTuple):
    """Matches of N pairs, padded to one number M.

    cell `[N, M]`, int64: the place's number in the first. source `[N, M, 2]`: its point. target `[N, M, 2]`: the point found in the
    second. weight `[N, M]`: the cosine, 0 for padding.
    """

    cell: Tensor
    source: Tensor
    target: Tensor
    weight: Tensor


def mutual_matches(first: Tensor, second: Tensor, first_inside: Tensor, second_inside: Tensor, grid: int) -> Matches:
    """Places of the first and of the second that are each other's nearest, for N pairs.

    first, second: unit vectors `[N, P, D]`, P = grid². inside: `[N, P]`, bool.
    """
    count, number = first.shape[:2]
    likeness = (first * first_inside[..., None]) @ (second * second_inside[..., None]).mT
    best, there = likeness.max(2)
    back = likeness.argmax(1)
    mutual = (back.gather(1, there) == torch.arange(number)) & first_inside & second_inside.gather(1, there)
    most = max(8, int(mutual.sum(1).max())) if count else 8
    order = mutual.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :most]
    kept, target_cell = mutual.gather(1, order), there.gather(1, order)
    refined = _read_out(likeness, order, target_cell, grid)
    points = places(grid)
    cosine = best.gather(1, order)
    return Matches(order, points[order], points[target_cell] + refined, cosine.clamp_min(0) * kept)


def _read_out(likeness: Tensor, row: Tensor, column: Tensor, grid: int) -> Tensor:
    """`[N, M, 2]`: how far the softmax-weighted middle of the 3x3 places around a match is from it."""
    step = torch.arange(9)
    offset = torch.stack([step % 3 - 1, step // 3 - 1], -1)
    x, y = (column % grid)[..., None] + offset[:, 0], (column // grid)[..., None] + offset[:, 1]
    inside = (x >= 0) & (x < grid) & (y >= 0) & (y < grid)
    around = y.clamp(0, grid - 1) * grid + x.clamp(0, grid - 1)
    pair = torch.arange(len(row))[:, None, None]
    value = likeness[pair, row[..., None], around].masked_fill(~inside, -1)
    share = F.softmax((value - value[..., 4:5]) / TEMPERATURE, -1)
    return (share[..., None] * offset.float()).sum(-2) * 2 / grid
