# SPDX-License-Identifier: Apache-2.0
"""Percentage of correct key points (PCK) of points that were carried from one picture to another, with bootstrap intervals.

A point is correct if it lies no further than `alpha` times a size from the place that was marked. The size is the longer side of a
box around the marked points, of the object's box, or of the picture ("Articulated Human Detection with Flexible Mixtures of Parts",
Yang and Ramanan 2013; arXiv 1908.10543, section 5). Points that are not marked in both pictures are not counted.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

CHUNK = 1 << 20
"""Weights of pairs that are held at a time while intervals are drawn."""


class Expected(NamedTuple):
    """points `[M, P, 2]`: where M pairs' points belong in the second picture. counted `[M, P]` bool: marked in both pictures."""

    points: Tensor
    counted: Tensor


class Shares(NamedTuple):
    """Numerator and denominator `[..., M]` of a share of M pairs: their sums over the pairs, divided, are the figure."""

    correct: Tensor
    counted: Tensor

    def value(self) -> Tensor:
        """The figure `[...]`, NaN if nothing is counted."""
        return self.correct.sum(-1) / self.counted.sum(-1)


def keypoint_box_size(points: Tensor, visible: Tensor) -> Tensor:
    """Longer side `[N]` of the box around the visible ones of points `[N, P, 2]`; NaN if none is. visible: `[N, P]` bool."""
    hidden = ~visible[..., None]
    span = points.masked_fill(hidden, -torch.inf).amax(1) - points.masked_fill(hidden, torch.inf).amin(1)
    return torch.where(visible.any(1), span.amax(1), torch.nan)


def expected_points(
    pairs: Tensor, points: Tensor, visible: Tensor, *, mirrored: Tensor | None = None, mirror: Tensor | None = None
) -> Expected:
    """Where each point of the first pictures belongs in the second ones, and whether it is marked in both.

    pairs `[M, 2]`: indices of first and second pictures. points `[N, P, 2]`, visible `[N, P]` bool. mirrored `[M]` bool: pairs
    whose second picture shows the mirror image of the first one's object. mirror `[N, P]`: the point that each point of a picture
    becomes in its mirror image (left eye: right eye). In such a pair point k belongs to point mirror[k] of the second picture, and
    is counted if that one is visible. Without both arguments point k belongs to point k.
    """
    first, second = pairs.unbind(1)
    index = torch.arange(points.shape[1]).expand(len(pairs), -1)
    if mirrored is not None and mirror is not None:
        index = torch.where(mirrored[:, None], mirror[first], index)
    there = torch.gather(points[second], 1, index[..., None].expand(-1, -1, 2))
    return Expected(there, visible[first] & torch.gather(visible[second], 1, index))


def correct_points(found: Tensor, expected: Expected, size: Tensor, alphas: Tensor) -> Tensor:
    """`[A, M, P]` bool: whether found points `[M, P, 2]` lie within alphas `[A]` times size `[M]` of where they belong.

    The border counts as correct. A point that is not finite is wrong, and so is one that is not counted.
    """
    distance = torch.linalg.vector_norm(found.double() - expected.points.double(), dim=2)
    limit = alphas.double()[:, None, None] * size.double()[:, None]
    return (distance <= limit) & expected.counted


def per_point(correct: Tensor, counted: Tensor) -> Shares:
    """Every point counts the same. correct `[..., M, P]` bool, counted `[M, P]` bool; a pair without points adds nothing."""
    return Shares(correct.sum(-1).double(), counted.sum(-1).double().expand(correct.shape[:-1]))


def per_image(correct: Tensor, counted: Tensor) -> Shares:
    """Every pair counts the same, whatever the number of its points. Arguments as in `per_point`."""
    many = counted.sum(-1).double()
    share = torch.where(many > 0, correct.sum(-1).double() / many.clamp(min=1), 0.0)
    return Shares(share, (many > 0).double().expand(share.shape))


def bootstrap(shares: Shares, pairs: Tensor, pictures: int, *, resamples: int = 1000, seed: int = 0) -> Tensor:
    """The figures `[..., resamples]` of sets of pictures that are drawn anew, with replacement, from the `pictures` that there are.

    Pairs that have a picture in common are not independent, so that pictures are drawn, not pairs. A pair counts as often as its
    first picture was drawn, times as often as its second was. Equal seeds draw equal sets, so that results of two methods on the
    same pairs can be subtracted. NaN for a draw without any pair that counts ("Bootstrapping data arrays of arbitrary order", Owen
    and Eckles 2012). shares: `[..., M]`; pairs: `[M, 2]`.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = shares.correct.shape[:-1]
    correct, counted = shares.correct.reshape(-1, len(pairs)), shares.counted.reshape(-1, len(pairs))
    found = []
    step = max(1, CHUNK // max(1, len(pairs)))
    for begin in range(0, resamples, step):
        many = min(step, resamples - begin)
        drawn = torch.randint(pictures, (many, pictures), generator=generator)
        times = torch.zeros(many, pictures, dtype=torch.float64).scatter_add_(
            1, drawn, torch.ones(drawn.shape, dtype=torch.float64)
        )
        weight = times[:, pairs[:, 0]] * times[:, pairs[:, 1]]
        found.append((correct @ weight.T) / (counted @ weight.T))
    return torch.cat(found, 1).reshape(*shape, resamples) if found else correct.new_zeros(*shape, 0)


def interval(values: Tensor, confidence: float = 0.95) -> tuple[Tensor, Tensor]:
    """Lowest and highest value `[...]` of the middle share `confidence` of values `[..., B]`; NaN among them is left out."""
    rest = (1 - confidence) / 2
    return torch.nanquantile(values, rest, dim=-1), torch.nanquantile(values, 1 - rest, dim=-1)
