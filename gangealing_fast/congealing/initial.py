# SPDX-License-Identifier: Apache-2.0
"""The first stage: from pictures as they are to mirrors, clusters, and one similarity for each picture."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from gangealing_fast.congealing.clusters import components, split
from gangealing_fast.congealing.graph import Fitted, chance_score, choose_pairs, fit_pairs, solve_jointly, spanning_tree
from gangealing_fast.congealing.matching import Matches
from gangealing_fast.congealing.mirrors import choose_mirrored
from gangealing_fast.congealing.transforms import IDENTITY, similarity_matrix
from gangealing_fast.congealing.views import Views
from gangealing_fast.runtime.errors import UserError

LARGEST_LOG_SCALE = 1.4
"""A picture whose scale is beyond this ran away: it starts again at the identity."""


ABOVE_CHANCE = 1.25
"""Times what 99 % of shuffled pairs reach: pairs below it say nothing."""


class Start(NamedTuple):
    """`matrix [n, 3, 3]` from the square (after its mirror) to the frame of its cluster, `mirrored [n]`, `cluster [n]`."""

    matrix: Tensor
    mirrored: Tensor
    cluster: Tensor


def first_alignment(
    views: Views,
    rows: Tensor,
    *,
    flips: bool | Literal["auto"],
    clusters: int | Literal["auto"] | Tensor,
    generator: torch.Generator,
    tick: Callable[[], None],
) -> Start:
    """Align the pictures `rows` by matches between each and its nearest few.

    Raises UserError if hardly any pair agrees better than chance.
    """
    count = len(rows)
    level = views.network.coarse
    unmoved = torch.eye(3).repeat(count, 1, 1)
    none = torch.zeros(count, dtype=torch.bool)
    found = views.describe(rows, unmoved, none, level, generator)
    tick()
    vectors, inside = found.vectors, found.inside
    pairs = choose_pairs(vectors, inside, generator)
    fitted = fit_pairs(vectors, inside, vectors, inside, pairs, level[1], generator)
    mirrored = none
    tick()
    if flips:
        other = views.describe(rows, unmoved, ~none, level, found.bases)
        both = fit_pairs(vectors, inside, other.vectors, other.inside, pairs, level[1], generator)
        mirrored = choose_mirrored(pairs, fitted.score, both.score, count, generator, certain=flips is True)
        if bool(mirrored.any()):
            vectors = torch.where(mirrored[:, None, None], other.vectors, vectors)
            inside = torch.where(mirrored[:, None], other.inside, inside)
            fitted = fit_pairs(vectors, inside, vectors, inside, pairs, level[1], generator)
    tick()
    strength = _strength(fitted, generator)
    _check_common(pairs, strength, count)
    cluster = split(pairs, strength, count, clusters)
    matrix = unmoved.clone()
    for number in range(int(cluster.max()) + 1):
        members = (cluster == number).nonzero()[:, 0]
        matrix[members] = _solve(pairs, fitted, members, count)
    return Start(matrix, mirrored, cluster)


def _strength(fitted: Fitted, generator: torch.Generator) -> Tensor:
    """`[E]`: how far the supported share of a pair's matches is above what chance reaches, 0 if it is not."""
    share = fitted.score / fitted.matches.weight.sum(1).clamp_min(1e-6)
    return (share - ABOVE_CHANCE * chance_score(fitted, generator)).clamp_min(0) * (fitted.matches.weight > 0).sum(1)


def _check_common(pairs: Tensor, strength: Tensor, count: int) -> None:
    largest = int(torch.bincount(components(pairs, strength > 0, count)).max())
    if largest < max(3, 0.2 * count):
        raise UserError(
            "these pictures have nothing in common that could align them: hardly any two agree better than chance; "
            "give pictures of one kind of thing, larger in the picture, or cut out with --masks"
        )


def _solve(pairs: Tensor, fitted: Fitted, members: Tensor, count: int) -> Tensor:
    """`[m, 3, 3]`: the members of a cluster in its frame."""
    position = torch.full((count,), -1)
    position[members] = torch.arange(len(members))
    own = (position[pairs] >= 0).all(1)
    local = position[pairs[own]]
    matches = Matches(*(values[own] for values in fitted.matches))
    similarity = spanning_tree(local, fitted.similarity[own], fitted.score[own], len(members))
    similarity = solve_jointly(local, matches, similarity)
    wild = ~(similarity[:, :2].norm(dim=1).log().abs() <= LARGEST_LOG_SCALE)
    similarity[wild] = similarity.new_tensor(IDENTITY)
    return similarity_matrix(similarity)
