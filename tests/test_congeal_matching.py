# SPDX-License-Identifier: Apache-2.0
"""Matches of places of two pictures: from anywhere, and nearby, where what is around them has a say."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from gangealing_fast.congealing.features import places
from gangealing_fast.congealing.matching import mutual_matches
from gangealing_fast.congealing.nearby import LEAST_PEAK, NEIGHBOURHOOD, SLACK, match_nearby


def test_matches_are_mutual_and_of_sub_cell_accuracy():
    grid, source = 8, torch.Generator().manual_seed(0)
    vectors = F.normalize(torch.randn(1, grid * grid, 32, generator=source), dim=-1)
    inside = torch.ones(1, grid * grid, dtype=torch.bool)
    shifted = vectors.unflatten(1, (grid, grid)).roll(1, 2).flatten(1, 2)
    found = mutual_matches(vectors, shifted, inside, inside, grid)
    step = (found.target - found.source)[found.weight > 0]
    kept = step[step[:, 0] > 0]
    assert len(kept) == 56 and torch.allclose(kept, torch.tensor([0.25, 0.0]).expand_as(kept), atol=1e-3)


def test_matches_are_those_of_the_whole_table():
    """A part of the table at a time: nothing is lost by it."""
    grid, source = 20, torch.Generator().manual_seed(1)
    first, second = (F.normalize(torch.randn(1, grid * grid, 6, generator=source), dim=-1) for _ in range(2))
    here, there = (torch.rand(1, grid * grid, generator=source) < 0.8 for _ in range(2))
    found = mutual_matches(first, second, here, there, grid)
    table = (first[0] @ second[0].T).where(here[0][:, None] & there[0], -2.0)
    best, target = table.max(1)
    mutual = (table.argmax(0)[target] == torch.arange(grid * grid)) & (best > 0)
    assert torch.equal(found.cell[found.weight > 0], mutual.nonzero()[:, 0]) and mutual.sum() > 20
    at = (found.target - places(grid)[target[found.cell]])[found.weight > 0]
    assert at.abs().max() < 2 / grid


@pytest.mark.parametrize(("grid", "cells"), [(9, 2), (12, 3), (5, 4)])
def test_nearby_matches_are_those_of_averaged_likenesses(grid: int, cells: int):
    """Against the definition, one place and one displacement after the other."""
    source = torch.Generator().manual_seed(grid)
    first, second = (F.normalize(torch.randn(grid * grid, 6, generator=source), dim=-1) for _ in range(2))
    here, there = (torch.rand(grid * grid, generator=source) < 0.8 for _ in range(2))
    cell, at, cosine = match_nearby(first * here[:, None], second * there[:, None], here, there, grid, cells)
    averaged, table = torch.full((grid * grid, grid * grid), -1.0), (first @ second.T).tolist()
    every = [(row, column) for row in range(grid) for column in range(grid)]
    for (y, x), (v, u) in itertools.product(every, every):
        if max(abs(y - v), abs(x - u)) > cells or not (here[y * grid + x] and there[v * grid + u]):
            continue
        total = weights = 0.0
        for b, a in every:
            d, c = b + v - y, a + u - x  # as far from the place as that in the second from its counterpart
            near = max(abs(b - y), abs(a - x)) <= round(2 * NEIGHBOURHOOD) and 0 <= d < grid and 0 <= c < grid
            if near and here[b * grid + a] and there[d * grid + c]:
                weight = math.exp(-((a - x) ** 2 + (b - y) ** 2) / (2 * NEIGHBOURHOOD**2))
                total += weight * table[b * grid + a][d * grid + c]
                weights += weight
        averaged[y * grid + x, v * grid + u] = total / weights
    best, target = averaged.max(1)
    possible = averaged > -1
    mean = (averaged * possible).sum(1) / possible.sum(1).clamp_min(1)
    mutual = (best > mean + LEAST_PEAK) & (best >= averaged.amax(0)[target] - SLACK)
    assert torch.equal(cell, mutual.nonzero()[:, 0]) and len(cell) > 5
    middle = torch.stack([target % grid, target // grid], -1)[cell]
    assert (at - middle).abs().max() < 1
    assert torch.allclose(cosine, torch.tensor(table)[cell, target[cell]].clamp_min(0), atol=1e-5)


def test_nearby_matches_follow_a_shift_that_single_places_do_not_tell():
    """Noise as strong as what is in common: one place alone is often mistaken, those around it are not."""
    grid, source = 24, torch.Generator().manual_seed(3)
    common = torch.randn(grid, grid, 8, generator=source)
    noisy = [F.normalize(part + torch.randn(grid, grid, 8, generator=source), dim=-1) for part in (common, common.roll(2, 1))]
    first, second = (part.flatten(0, 1) for part in noisy)
    inside = torch.ones(grid * grid, dtype=torch.bool)
    cell, at, _ = match_nearby(first, second, inside, inside, grid, 4)
    right = (at - torch.stack([cell % grid + 2, cell // grid], -1)).norm(dim=-1) < 1
    assert len(cell) > 300 and right.float().mean() > 0.95
    assert (first @ second.T).argmax(1).eq(torch.arange(grid * grid) + 2).float().mean() < 0.5


def test_nearby_matches_are_points_of_the_frame():
    grid, source = 16, torch.Generator().manual_seed(4)
    vectors = F.normalize(torch.randn(1, grid * grid, 32, generator=source), dim=-1)
    shifted = vectors.unflatten(1, (grid, grid)).roll((1, 2), (1, 2)).flatten(1, 2)
    inside = torch.ones(1, grid * grid, dtype=torch.bool)
    found = mutual_matches(vectors, shifted, inside, inside, grid, 0.4)
    assert torch.equal(found.source[0], places(grid)[found.cell[0]])
    step = found.target - found.source
    right = (step - torch.tensor([2.0, 1.0]) * 2 / grid).norm(dim=-1) < 1 / grid
    assert right.float().mean() > 0.8


def test_nothing_near_is_matched_where_everything_is_alike():
    grid = 8
    vectors = torch.ones(grid * grid, 4) / 2
    inside = torch.ones(grid * grid, dtype=torch.bool)
    assert not len(match_nearby(vectors, vectors, inside, inside, grid, 2)[0])


def test_of_places_that_are_alike_one_is_matched():
    grid = 8
    vectors = torch.ones(1, grid * grid, 4) / 2
    inside = torch.ones(1, grid * grid, dtype=torch.bool)
    assert (mutual_matches(vectors, vectors, inside, inside, grid).weight > 0).sum() == 1
