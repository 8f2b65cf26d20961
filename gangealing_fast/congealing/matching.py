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
    if reach is None:
        return _anywhere(first, second, first_inside, second_inside, grid)
    # One pair at a time, so that it stays in the cache.
    cells, found = math.ceil(reach * grid / 2), []
    for a, b, there, here in zip(first, second, first_inside, second_inside, strict=True):
        found.append(_nearby(a * there[:, None], b * here[:, None], there, here, grid, cells))
    return join_matches(found)


def _nearby(first: Tensor, second: Tensor, first_inside: Tensor, second_inside: Tensor, grid: int, cells: int) -> Matches:
    """The same, of places at most `cells` apart along each axis."""
    cell, at, likeness = match_nearby(first, second, first_inside, second_inside, grid, cells)
    return Matches(cell[None], places(grid)[cell][None], ((at + 0.5) * 2 / grid - 1)[None], likeness[None])


def _anywhere(first: Tensor, second: Tensor, first_inside: Tensor, second_inside: Tensor, grid: int) -> Matches:
    """The same, of places wherever they lie."""
    place, likeness = mutual_nearest(first * first_inside[..., None], second * second_inside[..., None])
    points, found = places(grid), []
    for pair in range(len(first)):
        cell = ((place[pair] >= 0) & first_inside[pair] & second_inside[pair][place[pair]]).nonzero()[:, 0]
        target = place[pair][cell]
        near, inside = cells_around(target, grid)
        value = (second[pair][near] @ first[pair][cell][..., None])[..., 0]
        # The value of a place that does not count is that of a vector of zeros.
        offset = weighted_middle(value * second_inside[pair][near], inside, TEMPERATURE)
        at = points[target] + offset * 2 / grid
        found.append(Matches(cell[None], points[cell][None], at[None], likeness[pair][cell].clamp_min(0)[None]))
    return join_matches(found)


def join_matches(parts: Sequence[Matches]) -> Matches:
    """Several groups of matches as one, padded to the largest of them and to 8."""
    most = max([LEAST, *(part.weight.shape[1] for part in parts)])
    return Matches(*(torch.cat([_pad(getattr(part, name), most) for part in parts]) for name in Matches._fields))


def _pad(values: Tensor, most: int) -> Tensor:
    return F.pad(values, (0, 0) * (values.ndim - 2) + (0, most - values.shape[1]))
