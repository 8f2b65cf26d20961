# SPDX-License-Identifier: Apache-2.0
"""What is known of pictures that lie on templates, and how pictures are registered to templates."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from gangealing_fast.congealing.joint import Aligned
from gangealing_fast.congealing.outliers import FRACTION
from gangealing_fast.congealing.pictures import Squares
from gangealing_fast.congealing.records import Registered
from gangealing_fast.congealing.registering import place, refine
from gangealing_fast.congealing.templates import Templates
from gangealing_fast.congealing.views import Views
from gangealing_fast.runtime.randomness import derived_seed
from gangealing_fast.runtime.side_by_side import side_by_side


class Found(NamedTuple):
    """What is known of some pictures, in squares and frames from -1 to 1."""

    matrix: Tensor
    flow: Tensor
    mirrored: Tensor
    cluster: Tensor
    explained: Tensor
    matches: Tensor
    outlier: Tensor

    @classmethod
    def joined(cls, parts: Sequence[Found], order: Sequence[Tensor]) -> Found:
        """All parts as one; order: the places of each part's pictures in it, from 0."""
        back = torch.cat(list(order)).argsort()
        return cls(*(torch.cat(values)[back] for values in zip(*parts, strict=True)))


def frame_from_pixels(side: int) -> Tensor:
    """`[3, 3]`, float64: from pixels of a square of `side` to the frame whose edges lie at -1 and 1."""
    scale, shift = 2 / side, 1 / side - 1
    return torch.tensor([[scale, 0, shift], [0, scale, shift], [0, 0, 1]], dtype=torch.float64)


def generator_of(seed: int, *parts: str | int) -> torch.Generator:
    return torch.Generator().manual_seed(derived_seed(seed, *parts) % 2**32)


def register_rows(views: Views, rows: Tensor, templates: Templates, flow: bool, seed: int, rough: Tensor | None = None) -> Found:
    """Pictures on the template of all clusters, and mirrored or not, that most of is found in them.

    rough `[n, 3, 3]`: where they lie roughly, from square to frame; then nothing else is tried.
    """
    # One by one, so that a picture's numbers do not depend on those beside it.
    one = partial(_register_one, views, templates, flow, seed)
    pictures = [(rows[k : k + 1], None if rough is None else rough[k : k + 1].float()) for k in range(len(rows))]
    found = side_by_side(one, pictures) if views.network.side_by_side else [one(picture) for picture in pictures]
    return Found(*(torch.cat(values) for values in zip(*found, strict=True)))


def _register_one(views: Views, templates: Templates, flow: bool, seed: int, picture: tuple[Tensor, Tensor | None]) -> Found:
    row, rough = picture
    best: tuple[Tensor, Aligned, int, bool] | None = None
    for number in range(len(templates)) if rough is None else (0,):
        template = templates.clusters[number]
        for mirror in (False, True) if templates.flips and rough is None else (False,):
            draws, flag = generator_of(seed, "place"), torch.tensor([mirror])
            tried = place(views, row, flag, template, templates.model, draws, flow=flow, rough=rough)
            share = tried.explained / max(template.usual, 1e-6)
            if best is None or share > best[0]:
                best = share, tried, number, mirror
    assert best is not None  # there is a template
    _, placed, number, mirror = best
    template, mirrored = templates.clusters[number], torch.tensor([mirror])
    aligned = refine(views, row, placed, mirrored, template, model=templates.model, flow=flow)
    outlier = aligned.explained < FRACTION * template.support
    return Found(aligned.matrix, aligned.flow, mirrored, torch.tensor([number]), aligned.explained, aligned.matches, outlier)


def join(views: Views, rows: Tensor, templates: Templates, flow: bool, seed: int) -> dict[str, Tensor]:
    return register_rows(views, rows, templates, flow, seed)._asdict()


def pixels_of(found: Found, squares: Squares, templates: Templates) -> tuple[Tensor, Tensor]:
    """Matrices from a picture's pixels to its square (after its mirror), and from there to the template's pixels."""
    mirror = torch.eye(3, dtype=torch.float64).repeat(len(found.matrix), 1, 1)
    mirror[found.mirrored, 0, 0] = -1
    to_template = torch.linalg.inv(frame_from_pixels(templates.side)) @ found.matrix.double()
    return mirror @ squares.placing, to_template


def registered_from(found: Found, squares: Squares, templates: Templates) -> Registered:
    to_square, to_template = pixels_of(found, squares, templates)
    matrix = to_template @ to_square
    confidence = _confidence(found, templates)
    return Registered(matrix / matrix[:, 2:, 2:], found.flow * (templates.side / 2), found.mirrored, found.cluster, confidence)


def _confidence(found: Found, templates: Templates) -> Tensor:
    """`[N]` in [0, 1]: how much of the template was found, beside what a middling member finds, which has 1 / 2."""
    usual = torch.tensor([template.support for template in templates.clusters])[found.cluster].clamp_min(1e-6)
    return (found.explained / (found.explained + usual)).clamp(0, 1)
