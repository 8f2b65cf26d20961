# SPDX-License-Identifier: Apache-2.0
"""What is known of pictures that lie on templates, and how pictures are registered to templates."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
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
    placed, cluster, mirrored = _place_anywhere(views, rows, templates, flow, seed, rough)
    parts, order = [], []
    for number in cluster.unique().tolist():
        own = (cluster == number).nonzero()[:, 0]
        template, part = templates.clusters[number], Aligned(*(value[own] for value in placed))
        aligned = refine(views, rows[own], part, mirrored[own], template, model=templates.model, flow=flow)
        outlier = aligned.explained < FRACTION * template.support
        parts.append(Found(aligned.matrix, aligned.flow, mirrored[own], cluster[own], aligned.explained, aligned.matches, outlier))
        order.append(own)
    return Found.joined(parts, order)


def _place_anywhere(
    views: Views, rows: Tensor, templates: Templates, flow: bool, seed: int, rough: Tensor | None
) -> tuple[Aligned, Tensor, Tensor]:
    """Where pictures lie on the coarse templates, on which one, and whether mirrored."""
    count = len(rows)
    numbers = range(len(templates)) if rough is None else (0,)
    mirrors = (False, True) if templates.flips and rough is None else (False,)
    tries = []
    for number, mirror in itertools.product(numbers, mirrors):
        template, flag = templates.clusters[number], torch.tensor([mirror])
        # One by one, so that a picture's numbers do not depend on those beside it.
        ones = []
        for k in range(count):
            near, draws = (None if rough is None else rough[k : k + 1].float()), generator_of(seed, "place")
            ones.append(place(views, rows[k : k + 1], flag, template, templates.model, draws, flow=flow, rough=near))
        tried = Aligned(*(torch.cat(values) for values in zip(*ones, strict=True)))
        tries.append((tried, tried.explained / max(template.usual, 1e-6), number, mirror))
    best = torch.stack([share for _, share, _, _ in tries]).argmax(0)
    rows_of = torch.arange(count)
    placed = Aligned(*(torch.stack(values)[best, rows_of] for values in zip(*(one[0] for one in tries), strict=True)))
    cluster, mirrored = (torch.tensor([one[k] for one in tries])[best] for k in (2, 3))
    return placed, cluster, mirrored


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
