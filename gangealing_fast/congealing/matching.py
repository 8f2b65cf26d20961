# SPDX-License-Identifier: Apache-2.0
"""Mutual nearest neighbours of places, with sub-cell read-out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gangealing_fast.congealing.features import places
from gangealing_fast.congealing.nearby import match_nearby
from gangealing_fast.congealing.sub_cell import cells_around, weighted_middle
from gangealing_fast.ops import mutual_nearest

TEMPERATURE = 0.03
LEAST = 8


class Matches(NamedTuple):
    """Matches of N pairs, padded to one number M.

    cell `[N, M]`, int64: the place's number in the first. source `[N, M, 2]`: its point. target `[N, M, 2]`: the point found in the
    second. weight `[N, M]`: the cosine, 0 for padding.
    """

    cell: Tensor
    source: Tensor
    target: Tensor
    weight: Tensor


def mutual_matches(
    first: Tensor, second: Tensor, first_inside: Tensor, second_inside: Tensor, grid: int, reach: float | None = None
) -> Matches:
    """Places of the first and of the second that are each other's nearest, for N pairs.

    first, second: unit vectors `[N, P, D]`, P = grid². inside: `[N, P]`, bool. reach: how far two places may lie apart along each
    axis of frames from -1 to 1; None for anywhere. Within a reach the places around two have a say too (`nearby`).
    """
    first, second = first * first_inside[..., None], second * second_inside[..., None]
    pairs = zip(first, second, first_inside, second_inside, strict=True)
    if reach is None:
        place, likeness = mutual_nearest(first, second)
        return join_matches([_anywhere(*pair, grid, *found) for pair, *found in zip(pairs, place, likeness, strict=True)])
    # One pair at a time, so that it stays in the cache.
    return join_matches([_nearby(*pair, grid, math.ceil(reach * grid / 2)) for pair in pairs])


def _nearby(first: Tensor, second: Tensor, first_inside: Tensor, second_inside: Tensor, grid: int, cells: int) -> Matches:
    """The matches `[1, M]` of one pair, of places at most `cells` apart along each axis. What does not count is 0."""
    cell, at, likeness = match_nearby(first, second, first_inside, second_inside, grid, cells)
    return Matches(cell[None], places(grid)[cell][None], ((at + 0.5) * 2 / grid - 1)[None], likeness[None])


def _anywhere(
    first: Tensor, second: Tensor, first_inside: Tensor, second_inside: Tensor, grid: int, place: Tensor, likeness: Tensor
) -> Matches:
    """The matches `[1, M]` of one pair, whose places are each other's nearest as `mutual_nearest` says."""
    cell = ((place >= 0) & first_inside & second_inside[place]).nonzero()[:, 0]
    target, points = place[cell], places(grid)
    near, inside = cells_around(target, grid)
    offset = weighted_middle((second[near] @ first[cell][..., None])[..., 0], inside, TEMPERATURE)
    at = points[target] + offset * 2 / grid
    return Matches(cell[None], points[cell][None], at[None], likeness[cell].clamp_min(0)[None])


def join_matches(parts: Sequence[Matches]) -> Matches:
    """Several groups of matches as one, padded to the largest of them and to 8."""
    most = max([LEAST, *(part.weight.shape[1] for part in parts)])
    return Matches(*(torch.cat([_pad(getattr(part, name), most) for part in parts]) for name in Matches._fields))


def _pad(values: Tensor, most: int) -> Tensor:
    return F.pad(values, (0, 0) * (values.ndim - 2) + (0, most - values.shape[1]))
