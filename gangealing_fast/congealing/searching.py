# SPDX-License-Identifier: Apache-2.0
"""Where pictures lie on a template, looked for from several poses: what a local search finds depends on where it begins."""

from __future__ import annotations

import torch
from torch import Tensor

from gangealing_fast.congealing.template import Level, explained_share, match_new, step
from gangealing_fast.congealing.transforms import Model, similarity_matrix
from gangealing_fast.congealing.views import Views

LOST = 0.7
"""Of what a middling picture finds of the template: one that finds less is looked for once more, from all `POSES`."""
BETTER = 1.1
"""Times what was found before: what is found from another pose must be clearly better."""
POSES = ((0.0, 1.0), (0.5, 1.0), (-0.5, 1.0), (0.0, 0.75), (0.0, 1.33))
"""Turns in radians and scales, from which is looked."""


def poses() -> Tensor:
    """`[5, 3, 3]`: the matrices of `POSES`."""
    turn, scale = torch.tensor(POSES).unbind(1)
    return similarity_matrix(torch.stack([scale * turn.cos(), scale * turn.sin(), 0 * turn, 0 * turn], 1))


def look_from(
    views: Views,
    rows: Tensor,
    mirrored: Tensor,
    level: Level,
    matrix: Tensor,
    far: torch.Generator | None,
    model: Model,
) -> tuple[Tensor, Tensor]:
    """One step from `matrix` `[n, 3, 3]`: matrices from square to frame, and the explained shares `[n]`."""
    found = views.describe(rows, matrix, mirrored, views.network.coarse, level.bases)
    stepped = step(match_new(found.vectors, found.inside, level), far=far, model=model)
    return stepped.matrix @ matrix, explained_share(stepped.support, level.saliency)


def search(
    views: Views, rows: Tensor, mirrored: Tensor, level: Level, current: Tensor, generator: torch.Generator, model: Model
) -> tuple[Tensor, Tensor]:
    """The best place of each picture among `current` `[n, 3, 3]` and those that are found from all `POSES`, and its share."""
    best, explained = look_from(views, rows, mirrored, level, current, None, model)
    other, most = current, torch.full((len(rows),), -1.0)
    for pose in poses():
        tried, share = look_from(views, rows, mirrored, level, pose.expand(len(rows), 3, 3), generator, model)
        other, most = torch.where((share > most)[:, None, None], tried, other), torch.maximum(share, most)
    other, most = look_from(views, rows, mirrored, level, other, None, model)
    better = most > BETTER * explained
    return torch.where(better[:, None, None], other, best), torch.where(better, most, explained)
