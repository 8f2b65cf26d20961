# SPDX-License-Identifier: Apache-2.0
"""New pictures against a template: one far step, one near step, and the flow."""

from __future__ import annotations

import torch
from torch import Tensor

from gangealing_fast.congealing.joint import Aligned, first_fine, second_fine
from gangealing_fast.congealing.template import explained_share, match_new, step
from gangealing_fast.congealing.templates import Template
from gangealing_fast.congealing.transforms import Model
from gangealing_fast.congealing.views import Views


def place(
    views: Views, rows: Tensor, mirrored: Tensor, template: Template, model: Model, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Where pictures lie, looked for everywhere: matrices `[n, 3, 3]` from square to frame, and the explained shares `[n]`."""
    unmoved = torch.eye(3).repeat(len(rows), 1, 1)
    coarse = template.coarse
    found = views.describe(rows, unmoved, mirrored, views.network.coarse, coarse.bases)
    stepped = step(match_new(found.vectors, found.inside, coarse), far=generator, model=model)
    return stepped.matrix, explained_share(stepped.support, coarse.saliency)


def refine(
    views: Views, rows: Tensor, matrix: Tensor, mirrored: Tensor, template: Template, *, model: Model, flow: bool
) -> Aligned:
    """From roughly right to the pixel: a coarse step, a fine one, and the flow. matrix `[n, 3, 3]`: from square to frame."""
    coarse, fine = template.coarse, template.fine
    found = views.describe(rows, matrix, mirrored, views.network.coarse, coarse.bases)
    matrix = step(match_new(found.vectors, found.inside, coarse), far=None, model=model).matrix @ matrix
    found = views.describe(rows, matrix, mirrored, views.network.fine, fine.bases)
    aligned, first = first_fine(match_new(found.vectors, found.inside, fine), matrix, fine, model)
    if not flow:
        return aligned
    found = views.describe(rows, aligned.matrix, mirrored, views.network.fine, fine.bases, first)
    aligned = second_fine(match_new(found.vectors, found.inside, fine), aligned.matrix, first, fine)
    return aligned._replace(flow=aligned.flow - template.offset)
