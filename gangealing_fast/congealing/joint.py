# SPDX-License-Identifier: Apache-2.0
"""The joint alignment of the core of a set: steps against the template of the others, coarse to fine, and the flow."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gangealing_fast.congealing.matching import Matches
from gangealing_fast.congealing.outliers import EARLY, FRACTION, doubtful
from gangealing_fast.congealing.residual import residual_flow
from gangealing_fast.congealing.searching import LOST, search
from gangealing_fast.congealing.template import (
    SALIENCY_POWER,
    Accumulated,
    Level,
    accumulate,
    explained_share,
    make_level,
    match_members,
    step,
)
from gangealing_fast.congealing.transforms import Model, carry, robust
from gangealing_fast.congealing.views import Described, Views
from gangealing_fast.congealing.window import Window, window_of
from gangealing_fast.geometry.warps import compose_flows, read_flow

COARSE_STEPS, FINE_STEPS = 3, 3
SEARCH_AFTER = 1
SIGMA = 0.06
COARSE_SIGMA, FINE_SIGMA = 0.12, 0.06
"""What residuals count as near to one another when a flow is made of them."""
NEAR, NEARER = 0.35, 0.1
"""How far from its place anything is still looked for in the last three steps, along each axis of a frame from -1 to 1."""
FLOW_GRID = 56
"""Places a side of the flows that are found: what is spread as widely as in `residual_flow` needs no more."""
REPORTED = 32


class Aligned(NamedTuple):
    """How n pictures lie on their template.

    matrix `[n, 3, 3]`: from the square, after its mirror, to the frame. flow `[n, g, g, 2]`: in the frame.
    explained `[n]`: what share of the template's saliency was found in the picture.
    matches `[n, 32, 5]`: the best of the last step, (x, y) in the square after its mirror, (x, y) in the frame, and the weight, 0
    for padding.
    """

    matrix: Tensor
    flow: Tensor
    explained: Tensor
    matches: Tensor


def chosen(which: Tensor, first: Aligned, second: Aligned) -> Aligned:
    """Row by row of the first if `which` `[n]`, bool, says so, else of the second."""
    rows = [(which.view(-1, *[1] * (a.ndim - 1)), a, b) for a, b in zip(first, second, strict=True)]
    return Aligned(*(torch.where(*row) for row in rows))


class Core(NamedTuple):
    """The members of a cluster that make its template. outlier `[n]`: those left out of it, and those that the last step doubts.

    coarse: the template in the frame. near, fine: in the window, as finely and more finely. usual: the median of what the members
    find of the coarse template.
    """

    aligned: Aligned
    outlier: Tensor
    coarse: Level
    near: Level
    fine: Level
    window: Window
    usual: float


def align_core(
    views: Views,
    rows: Tensor,
    matrix: Tensor,
    mirrored: Tensor,
    *,
    model: Model,
    flow: bool,
    generator: torch.Generator,
    tick: Callable[[], None],
    far: bool = True,
) -> Core:
    """Align pictures to the template that they make, from `matrix` `[n, 3, 3]`, in 6 ticks.

    far: whether the start may be far off; else one coarse step is made instead of three.
    """
    steps = COARSE_STEPS if far else 1
    use = torch.ones(len(rows))
    seen = look(views, rows, matrix, mirrored, use, generator)
    for index in range(steps):
        matches = match_members(seen.found.vectors, seen.found.inside, seen.sums, views.network.coarse[1])
        stepped = step(matches, far=generator if far and index == 0 else None, model=model)
        moved = stepped.matrix @ matrix
        explained = explained_share(stepped.support, make_level(seen.sums, seen.found.bases).saliency)
        if far and index == SEARCH_AFTER:
            lost = explained < LOST * explained.median()
            if bool(lost.any()):
                sure = make_level(accumulate(seen.found.vectors, seen.found.inside, use * ~lost), seen.found.bases)
                moved[lost], explained[lost] = search(views, rows[lost], mirrored[lost], sure, moved[lost], generator, model)
        use = 1 - doubtful(explained, EARLY if index + 1 < steps else FRACTION).float()
        if far:  # a frame that is known stays
            moved = gauge(moved, use)
        matrix, seen = moved, look(views, rows, moved, mirrored, use, generator)
        tick()
    return align_finely(views, rows, matrix, mirrored, seen, model=model, flow=flow, generator=generator, tick=tick)


class Look(NamedTuple):
    """Pictures in the frame at the coarse level, and the sums of those in use `[n]`."""

    found: Described
    sums: Accumulated
    use: Tensor


def look(views: Views, rows: Tensor, matrix: Tensor, mirrored: Tensor, use: Tensor, generator: torch.Generator) -> Look:
    """Describe pictures that `matrix` carries."""
    found = views.describe(rows, matrix, mirrored, views.network.coarse, generator)
    return Look(found, accumulate(found.vectors, found.inside, use), use)


def align_finely(
    views: Views,
    rows: Tensor,
    matrix: Tensor,
    mirrored: Tensor,
    seen: Look,
    *,
    model: Model,
    flow: bool,
    generator: torch.Generator,
    tick: Callable[[], None],
) -> Core:
    """The last transform and a first flow, and twice more, in the window, against the template that became sharper by them."""
    network, (found, sums, use) = views.network, seen
    matches = match_members(found.vectors, found.inside, sums, network.coarse[1], NEAR)
    coarse = make_level(sums, found.bases)
    aligned = first_fine(matches, matrix, coarse, model, flow)
    usual = float(aligned.explained[use > 0].median())
    window, levels = window_of(coarse), []
    tick()
    for level in (network.coarse, network.fine):
        found = views.describe(rows, aligned.matrix, mirrored, level, generator, aligned.flow, window)
        sums = accumulate(found.vectors, found.inside, use)
        matches = window.framed_matches(match_members(found.vectors, found.inside, sums, level[1], NEARER / window.half))
        levels.append(make_level(sums, found.bases))
        aligned = finer(matches, aligned, levels[-1], model, flow)
        tick()
    near, fine = levels
    return Core(aligned, (use == 0) | doubtful(aligned.explained), coarse, near, fine, window, usual)


def first_fine(matches: Matches, matrix: Tensor, level: Level, model: Model, flow: bool) -> Aligned:
    """How pictures carried by `matrix` lie by their matches. flow: whether what is left over becomes one."""
    stepped = step(matches, far=None, model=model)
    points = carry(torch.linalg.inv(matrix), matches.target)
    none = torch.zeros(len(matrix), level.grid, level.grid, 2)
    return Aligned(
        stepped.matrix @ matrix,
        residual_flow(matches, stepped.matrix, level.grid, COARSE_SIGMA) if flow else none,
        explained_share(stepped.support, level.saliency),
        _best(points, matches, stepped.support),
    )


def finer(matches: Matches, before: Aligned, level: Level, model: Model, flow: bool) -> Aligned:
    """How pictures that were carried as `before` lie by their matches after that, `level`'s cells; by their flows, if flow."""
    if not flow:
        return first_fine(matches, before.matrix, level, model, flow)
    unmoved = torch.eye(3).expand(len(before.matrix), -1, -1)
    support = matches.weight * robust(matches.target, matches.source, SIGMA)
    points = carry(torch.linalg.inv(before.matrix), matches.target + read_flow(before.flow, matches.target))
    # What is in common was decisive for the transform; a flow is drawn by everything that matches.
    even = matches.weight / level.saliency[matches.cell].clamp_min(0.01) ** (SALIENCY_POWER - 1)
    left = residual_flow(matches._replace(weight=even), unmoved, FLOW_GRID, FINE_SIGMA)
    return Aligned(
        before.matrix, compose_flows(before.flow, left), explained_share(support, level.saliency), _best(points, matches, support)
    )


def _best(points: Tensor, matches: Matches, support: Tensor) -> Tensor:
    """`[n, 32, 5]`: the matches of most support; points `[n, M, 2]`: their targets in the square."""
    rows = torch.cat([points, matches.source, support[..., None]], -1)
    rows = F.pad(rows, (0, 0, 0, max(0, REPORTED - rows.shape[1])))
    order = rows[..., 4].argsort(dim=1, descending=True, stable=True)[:, :REPORTED]
    return rows.gather(1, order[..., None].expand(-1, -1, 5))


def gauge(matrix: Tensor, use: Tensor) -> Tensor:
    """Matrices `[n, 3, 3]` in the frame whose median is the identity: a mean is carried off by one runaway picture.

    use `[n]`: 0 for pictures that have no say.
    """
    kept = matrix[use > 0]
    return torch.linalg.inv((kept / kept[:, 2:, 2:]).quantile(0.5, dim=0)) @ matrix
