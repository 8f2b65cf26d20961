# SPDX-License-Identifier: Apache-2.0
"""New pictures against a template: a far step, near steps, and the flow."""

from __future__ import annotations

import torch
from torch import Tensor

from gangealing_fast.congealing.joint import NEAR, NEARER, Aligned, chosen, finer, first_fine
from gangealing_fast.congealing.searching import look_from, search
from gangealing_fast.congealing.template import match_new
from gangealing_fast.congealing.templates import Template
from gangealing_fast.congealing.transforms import Model
from gangealing_fast.congealing.views import Views

LOST = 0.6
"""Of what a middling member finds of the template: a new picture that finds less is looked for once more.

Less strict than for members, which a lost one may lead astray."""


def place(
    views: Views,
    rows: Tensor,
    mirrored: Tensor,
    template: Template,
    model: Model,
    generator: torch.Generator,
    *,
    flow: bool,
    rough: Tensor | None = None,
) -> Aligned:
    """Where pictures lie on the coarse template.

    rough `[n, 3, 3]`: where they lie roughly, from square to frame; otherwise they are looked for everywhere.
    """
    if rough is not None:
        return _settle(views, rows, rough, mirrored, template, model, flow)
    unmoved = torch.eye(3).repeat(len(rows), 1, 1)
    matrix, _ = look_from(views, rows, mirrored, template.coarse, unmoved, generator, model)
    found = _settle(views, rows, matrix, mirrored, template, model, flow)
    # What is found far away may be near enough to be settled by one more step; only then is it looked for from other poses.
    for attempt in ("once more", "from other poses"):
        lost = found.explained < LOST * template.usual
        if not bool(lost.any()):
            return found
        matrix = found.matrix.clone()
        if attempt == "from other poses":
            matrix[lost], _ = search(views, rows[lost], mirrored[lost], template.coarse, matrix[lost], generator, model)
        again = _settle(views, rows, matrix, mirrored, template, model, flow)
        found = chosen(lost & (again.explained > found.explained), again, found)
    return found


def _settle(views: Views, rows: Tensor, matrix: Tensor, mirrored: Tensor, template: Template, model: Model, flow: bool) -> Aligned:
    """As the members, the last step against the coarse template."""
    found = views.describe(rows, matrix, mirrored, views.network.coarse, template.coarse.bases)
    return first_fine(match_new(found.vectors, found.inside, template.coarse, NEAR), matrix, template.coarse, model, flow)


def refine(
    views: Views, rows: Tensor, placed: Aligned, mirrored: Tensor, template: Template, *, model: Model, flow: bool
) -> Aligned:
    """To the pixel: as the members, two steps against the templates in the window."""
    window, network, aligned = template.window, views.network, placed
    for size, level in ((network.coarse, template.near), (network.fine, template.fine)):
        found = views.describe(rows, aligned.matrix, mirrored, size, level.bases, aligned.flow, window)
        matches = window.framed_matches(match_new(found.vectors, found.inside, level, NEARER / window.half))
        aligned = finer(matches, aligned, level, model, flow)
    return aligned._replace(flow=aligned.flow - template.offset) if flow else aligned
