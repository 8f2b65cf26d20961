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

TEMPERATURE = 0.03
LEAST = 8
_PLACES = 256


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
    # One pair at a time, a part of its table of likenesses at a time, so that it stays in the cache.
    found = []
    for a, b, there, here in zip(first, second, first_inside, second_inside, strict=True):
        pair = (a * there[:, None], b * here[:, None], there, here, grid)
        found.append(_anywhere(*pair) if reach is None else _nearby(*pair, math.ceil(reach * grid / 2)))
    return join_matches(found)


def _nearby(first: Tensor, second: Tensor, first_inside: Tensor, second_inside: Tensor, grid: int, cells: int) -> Matches:
    """The same, of places at most `cells` apart along each axis."""
    cell, at, likeness = match_nearby(first, second, first_inside, second_inside, grid, cells)
    return Matches(cell[None], places(grid)[cell][None], ((at + 0.5) * 2 / grid - 1)[None], likeness[None])


def _anywhere(first: Tensor, second: Tensor, first_inside: Tensor, second_inside: Tensor, grid: int) -> Matches:
    """The matches `[1, M]` of one pair, without padding. Vectors of places that do not count are 0."""
    best, there, back = _nearest(first, second)
    # If a row's largest is its column's largest too, the places are each other's nearest. That is several times quicker to find out
    # than which place of a column is the largest.
    mutual = (best == back[there]) & first_inside & second_inside[there]
    cell = mutual.nonzero()[:, 0]
    target = there[cell]
    # Of places that are exactly alike, as those of an empty background are, the first one has the match.
    only = torch.full((len(second),), len(first)).scatter_reduce_(0, target, cell, "amin")[target] == cell
    cell, target = cell[only], target[only]
    points = places(grid)
    near, inside = cells_around(target, grid)
    offset = weighted_middle((second[near] @ first[cell][..., None])[..., 0], inside, TEMPERATURE)
    found = points[target] + offset * 2 / grid
    return Matches(cell[None], points[cell][None], found[None], best[cell].clamp_min(0)[None])


def _nearest(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`[P]` each: the largest likeness of each place of the first, where that is, and the largest of each place of the second."""
    best, there = [], []
    back = first.new_full((len(second),), -math.inf)
    for rows in first.split(_PLACES):
        table = rows @ second.T
        value, place = table.max(1)
        best.append(value)
        there.append(place)
        torch.maximum(back, table.amax(0), out=back)
    return torch.cat(best), torch.cat(there), back


def join_matches(parts: Sequence[Matches]) -> Matches:
    """Several groups of matches as one, padded to the largest of them and to 8."""
    most = max([LEAST, *(part.weight.shape[1] for part in parts)])
    return Matches(*(torch.cat([_pad(getattr(part, name), most) for part in parts]) for name in Matches._fields))


def _pad(values: Tensor, most: int) -> Tensor:
    return F.pad(values, (0, 0) * (values.ndim - 2) + (0, most - values.shape[1]))
