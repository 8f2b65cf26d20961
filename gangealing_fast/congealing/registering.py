# SPDX-License-Identifier: Apache-2.0
"""New pictures against a template: a far step, near steps, and the flow."""

from __future__ import annotations

import torch
from torch import Tensor

from gangealing_fast.congealing.joint import NEAR, NEARER, Aligned, finer, first_fine
from gangealing_fast.congealing.searching import LOST, look_from, search
from gangealing_fast.congealing.template import match_new
from gangealing_fast.congealing.templates import Template
from gangealing_fast.congealing.transforms import Model
from gangealing_fast.congealing.views import Views


def place(
    views: Views, rows: Tensor, mirrored: Tensor, template: Template, model: Model, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Where pictures lie, looked for everywhere: matrices `[n, 3, 3]` from square to frame, and the explained shares `[n]`."""
    unmoved, coarse = torch.eye(3).repeat(len(rows), 1, 1), template.coarse
    matrix, _ = look_from(views, rows, mirrored, coarse, unmoved, generator, model)
    matrix, explained = look_from(views, rows, mirrored, coarse, matrix, None, model)
    lost = explained < LOST * template.usual
    if bool(lost.any()):
        matrix[lost], explained[lost] = search(views, rows[lost], mirrored[lost], coarse, matrix[lost], generator, model)
    return matrix, explained


def refine(
    views: Views, rows: Tensor, matrix: Tensor, mirrored: Tensor, template: Template, *, model: Model, flow: bool
) -> Aligned:
    """From roughly right to the pixel: as the members, three steps against their last templates. matrix: from square to frame."""
    coarse, window, network = template.coarse, template.window, views.network
    found = views.describe(rows, matrix, mirrored, network.coarse, coarse.bases)
    aligned = first_fine(match_new(found.vectors, found.inside, coarse, NEAR), matrix, coarse, model, flow)
    for size, level in ((network.coarse, template.near), (network.fine, template.fine)):
        found = views.describe(rows, aligned.matrix, mirrored, size, level.bases, aligned.flow, window)
        matches = window.framed_matches(match_new(found.vectors, found.inside, level, NEARER / window.half))
        aligned = finer(matches, aligned, level, model, flow)
    return aligned._replace(flow=aligned.flow - template.offset) if flow else aligned
