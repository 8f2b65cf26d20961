# SPDX-License-Identifier: Apache-2.0
"""The first alignment of a set: matches between pictures and their nearest few, and one similarity for each that explains them."""

from __future__ import annotations

import heapq
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gangealing_fast.congealing.matching import Matches, join_matches, mutual_matches
from gangealing_fast.congealing.transforms import (
    IDENTITY,
    median_gauge,
    move,
    nearest_similarity,
    sample_similarities,
    similarity_matrix,
)

ALL_PAIRS = 14
"""Sets of up to this number are matched all with all."""
SIGMA = 0.06
_PAIRS = 16


class Fitted(NamedTuple):
    """Matches of the pairs of a graph, the similarity of each from its first to its second picture, and its robust score."""

    matches: Matches
    similarity: Tensor
    score: Tensor


def choose_pairs(vectors: Tensor, inside: Tensor, generator: torch.Generator, *, nearest: int = 3, random: int = 1) -> Tensor:
    """`[E, 2]`: pairs i < j: each picture with its nearest by mean feature and some drawn ones, and a cycle through all.

    vectors: `[N, P, D]`, inside `[N, P]`.
    """
    count = len(vectors)
    if count <= ALL_PAIRS:
        return torch.combinations(torch.arange(count))
    pooled = F.normalize((vectors * inside[..., None]).sum(1), dim=-1)
    likeness = pooled @ pooled.T
    likeness.fill_diagonal_(-2)
    near = likeness.topk(nearest, dim=1).indices
    round_trip = torch.randperm(count, generator=generator)
    drawn = torch.randint(count, (count, random), generator=generator)
    first = torch.arange(count)[:, None]
    links = [torch.stack([first.expand_as(others).reshape(-1), others.reshape(-1)], 1) for others in (near, drawn)]
    links.append(torch.stack([round_trip, round_trip.roll(-1)], 1))
    pairs = torch.cat(links).sort(1).values
    return pairs[pairs[:, 0] != pairs[:, 1]].unique(dim=0)


def fit_pairs(
    first: Tensor, first_inside: Tensor, second: Tensor, second_inside: Tensor, pairs: Tensor, grid: int, generator: torch.Generator
) -> Fitted:
    """Match and fit the pairs `[E, 2]`: features of the pair's first picture are read in `first`, of its second in `second`."""
    found = []
    for part in pairs.split(_PAIRS):
        i, j = part.unbind(1)
        found.append(mutual_matches(first[i], second[j], first_inside[i], second_inside[j], grid))
    matches = join_matches(found)
    return Fitted(matches, *sample_similarities(matches.source, matches.target, matches.weight, SIGMA, generator))


def chance_score(fitted: Fitted, generator: torch.Generator, *, most: int = 64) -> float:
    """The score that 99 % of pairs stay below if their matches are shuffled: what chance alone reaches."""
    rows = torch.linspace(0, len(fitted.score) - 1, min(most, len(fitted.score))).round().long().unique()
    source, target, weight = (getattr(fitted.matches, name)[rows] for name in ("source", "target", "weight"))
    shuffled = torch.rand(weight.shape, generator=generator).masked_fill(weight == 0, 2).argsort(1)
    target = target.gather(1, shuffled[..., None].expand(-1, -1, 2))
    score = sample_similarities(source, target, weight, SIGMA, generator)[1]
    return float((score / fitted.matches.weight[rows].sum(1).clamp_min(1e-6)).quantile(0.99))


def spanning_tree(pairs: Tensor, similarity: Tensor, score: Tensor, count: int) -> Tensor:
    """`[N, 4]`: similarities to a common frame along the maximum spanning tree, in the frame of their median."""
    near: list[list[tuple[float, int]]] = [[] for _ in range(count)]
    for number, (i, j) in enumerate(pairs.tolist()):
        for end in (i, j):
            near[end].append((-float(score[number]), number))
    step = similarity_matrix(similarity)
    back = torch.linalg.inv(step)
    root = min(range(count), key=lambda node: sum(value for value, _ in near[node]))
    found: dict[int, Tensor] = {root: torch.eye(3)}
    heap = list(near[root])
    heapq.heapify(heap)
    while heap:
        _, number = heapq.heappop(heap)
        i, j = pairs[number].tolist()
        if i in found and j in found:
            continue
        new, matrix = (i, found[j] @ step[number]) if j in found else (j, found[i] @ back[number])
        found[new] = matrix
        for item in near[new]:
            heapq.heappush(heap, item)
    return nearest_similarity(median_gauge(torch.stack([found.get(node, torch.eye(3)) for node in range(count)])))


def solve_jointly(pairs: Tensor, matches: Matches, start: Tensor, *, rounds: int = 12, ridge: float = 1e-3) -> Tensor:
    """The similarities T `[N, 4]` that explain all matches: least sum of w GM(|T_i p - T_j q|² / (s_i s_j)).

    s are the scales. Reweighted linear least squares from `start`, sigma from 0.36 to 0.06, with the mean transform held at the
    identity meanwhile; the result is in the frame of the median.
    """
    count = len(start)
    found = start
    i, j = pairs.unbind(1)
    across, down = _rows(matches.source)
    across_there, down_there = _rows(matches.target)
    gauge = torch.eye(4, dtype=torch.float64).repeat(count, 1)
    for index in range(rounds):
        size = found[:, :2].norm(dim=1).clamp(0.05, 20)
        unit = (1 / (size[i] * size[j]))[:, None]
        sigma = SIGMA * max(1.0, 6 * 0.7**index)
        gap = (move(found[i], matches.source) - move(found[j], matches.target)).square().sum(-1)
        weight = matches.weight * unit / (1 + gap * unit / sigma**2) ** 2
        mixed = -_block(weight, across, across_there, down, down_there)
        own, theirs = _block(weight, across, across, down, down), _block(weight, across_there, across_there, down_there, down_there)
        blocks = torch.zeros(count, count, 4, 4)
        for a, b, block in ((i, i, own), (j, j, theirs), (i, j, mixed), (j, i, mixed.mT)):
            blocks.index_put_((a, b), block, True)
        normal = blocks.permute(0, 2, 1, 3).reshape(4 * count, 4 * count).double()
        level = float(normal.diagonal().mean())
        normal += ridge * level * torch.eye(4 * count) + 1e3 * level / count * gauge @ gauge.T
        right = ridge * level * found.reshape(-1).double() + 1e3 * level * (gauge @ torch.tensor(IDENTITY, dtype=torch.float64))
        found = torch.linalg.solve(normal, right).float().reshape(count, 4)
        found = found / found[:, :2].norm(dim=1).clamp_min(1e-3).log().mean().exp()
    return nearest_similarity(median_gauge(similarity_matrix(found)))


def _rows(points: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of the equations of both coordinates, `[E, M, 4]` each."""
    x, y = points.unbind(-1)
    one, none = torch.ones_like(x), torch.zeros_like(x)
    return torch.stack([x, -y, one, none], -1), torch.stack([y, x, none, one], -1)


def _block(weight: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    return (a * weight[..., None]).mT @ b + (c * weight[..., None]).mT @ d
