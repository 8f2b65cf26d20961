# SPDX-License-Identifier: Apache-2.0
"""The template in feature space: what a picture is registered to, and one step of doing so."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gangealing_fast.congealing.features import Bases
from gangealing_fast.congealing.matching import Matches, join_matches, mutual_matches
from gangealing_fast.congealing.transforms import (
    IDENTITY,
    Model,
    carry,
    move,
    refit_affine,
    refit_homography,
    refit_similarity,
    robust,
    sample_similarities,
    similarity_matrix,
)

SIGMA = 0.06
SALIENCY_POWER = 4
PULL = 0.02
_PICTURES = 8


class Level(NamedTuple):
    """A template at one resolution.

    mean `[P, D]`: the weighted mean of the members' unit vectors at every place; its length is the saliency. known `[P]`, bool:
    where enough members were. bases: how features became these vectors.
    """

    mean: Tensor
    known: Tensor
    bases: Bases

    @property
    def grid(self) -> int:
        return round(len(self.mean) ** 0.5)

    @property
    def saliency(self) -> Tensor:
        """`[P]` in [0, 1]."""
        return self.mean.norm(dim=-1) * self.known


class Accumulated(NamedTuple):
    """The sums that a template, and that of all others for each picture, are made from."""

    total: Tensor
    number: Tensor
    weight: Tensor
    known: Tensor
    agreement: Tensor


def accumulate(vectors: Tensor, inside: Tensor, use: Tensor) -> Accumulated:
    """Weighted sums over pictures; the weight of a picture is its agreement with the mean, found in two rounds.

    vectors `[N, P, D]`, inside `[N, P]`, use `[N]`: 0 keeps a picture out.
    """
    there = inside.float()
    weight = use
    for _ in range(2):
        total = torch.einsum("npc,np->pc", vectors, there * weight[:, None])
        count = there.T @ weight
        mean = total / count.clamp_min(1)[:, None]
        known = count > 0.3 * weight.sum()
        importance = (mean.norm(dim=-1) * known) ** 2 * there
        likeness = torch.einsum("npc,pc->np", vectors, F.normalize(mean, dim=-1))
        agreement = (likeness * importance).sum(1) / importance.sum(1).clamp_min(1e-6)
        weight = use * agreement.clamp_min(0)
        weight = weight / (weight.sum() / use.sum().clamp_min(1e-6)).clamp_min(1e-6)
    return Accumulated(total, count, there * weight[:, None], known, agreement)


def make_level(sums: Accumulated, bases: Bases) -> Level:
    """The template of all pictures."""
    return Level(sums.total / sums.number.clamp_min(1)[:, None], sums.known, bases)


def match_members(vectors: Tensor, inside: Tensor, sums: Accumulated, grid: int, reach: float | None = None) -> Matches:
    """Matches from the template of the others to every member: source in the template, target in the picture."""
    found = []
    for rows in torch.arange(len(vectors)).split(_PICTURES):
        weight = sums.weight[rows]
        own = vectors[rows] * weight[..., None]
        others = (sums.total - own) / (sums.number - weight).clamp_min(1)[..., None]
        found.append(_match(others, sums.known.expand(len(rows), -1), vectors[rows], inside[rows], grid, reach))
    return join_matches(found)


def match_new(vectors: Tensor, inside: Tensor, level: Level, reach: float | None = None) -> Matches:
    """Matches from a template to pictures that have no part in it."""
    count = len(vectors)
    return _match(level.mean.expand(count, -1, -1), level.known.expand(count, -1), vectors, inside, level.grid, reach)


def _match(mean: Tensor, known: Tensor, vectors: Tensor, inside: Tensor, grid: int, reach: float | None) -> Matches:
    matches = mutual_matches(F.normalize(mean, dim=-1), vectors, known, inside, grid, reach)
    saliency = mean.norm(dim=-1).gather(1, matches.cell)
    return matches._replace(weight=matches.weight * saliency**SALIENCY_POWER)


def explained_share(support: Tensor, saliency: Tensor) -> Tensor:
    """`[n]` in [0, 1]: of what the set has in common, how much was found in each picture.

    support `[n, M]`: robust weights of the matches. saliency `[P]`.
    """
    return (support.sum(1) / (saliency**SALIENCY_POWER).sum().clamp_min(1e-6)).clamp(0, 1)


class Stepped(NamedTuple):
    """What one step found: matrices `[N, 3, 3]` of the warped pictures to the template, and the robust weight of each match."""

    matrix: Tensor
    support: Tensor


def step(matches: Matches, *, far: torch.Generator | None, model: Model) -> Stepped:
    """Fit one transform a picture to its matches with the template.

    far: draws similarities from anywhere as well; one of them wins if its score is 1.15 times that of the local fit.
    """
    source, target, weight = matches.target, matches.source, matches.weight
    similarity = refit_similarity(source, target, weight, SIGMA)
    if far is not None:
        other = sample_similarities(source, target, weight, SIGMA, far)[0]
        better = _score(other, matches) > 1.15 * _score(similarity, matches)
        similarity = torch.where(better[:, None], other, similarity)
    size = similarity[:, :2].norm(dim=1)
    similarity[(size < 0.4) | (size > 2.5) | ~size.isfinite()] = similarity.new_tensor(IDENTITY)
    matrix = similarity_matrix(similarity)
    if model != "similarity" and far is None:
        matrix = refit_affine(source, target, weight, matrix, SIGMA, pull=PULL)
        if model == "homography":
            matrix = refit_homography(source, target, weight, matrix, SIGMA, pull=PULL)
    return Stepped(matrix, weight * robust(carry(matrix, source), target, SIGMA))


def _score(similarity: Tensor, matches: Matches) -> Tensor:
    return (matches.weight * robust(move(similarity, matches.target), matches.source, SIGMA)).sum(-1)
