# SPDX-License-Identifier: Apache-2.0
"""Which pictures of a set are of one kind, from the graph of their pairs."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

SMALLEST_SHARE = 0.15
"""Of the set, and three pictures: smaller components are strangers, not clusters."""
KIND_SHARE, KIND_LEAST, KIND_PAIRS = 0.2, 6, 8
"""More than this share of the set, and so many pictures and pairs within, make a kind if chance pairs join it to the others."""
WEAK = 0.25
"""Times the mean strength of pairs within either of two kinds: pairs between them are weaker on average.

Measured between faces and cats: 0.02 to 0.23, between halves of sets of one kind 0.34 and more.
"""
_PEELED = 5


def components(pairs: Tensor, holds: Tensor, count: int) -> Tensor:
    """`[N]`, int64: numbers of the connected components of the pairs `[E, 2]` that hold, the largest first."""
    label = list(range(count))

    def root(node: int) -> int:
        while label[node] != node:
            label[node] = label[label[node]]
            node = label[node]
        return node

    for (i, j), kept in zip(pairs.tolist(), holds.tolist(), strict=True):
        if kept:
            label[root(i)] = root(j)
    names, members = torch.tensor([root(node) for node in range(count)]).unique(return_inverse=True)
    sizes = torch.bincount(members, minlength=len(names))
    rank = torch.empty_like(sizes)
    rank[sizes.argsort(descending=True, stable=True)] = torch.arange(len(names))
    return rank[members]


def split(pairs: Tensor, strength: Tensor, count: int, wanted: int | Literal["auto"] | Tensor) -> Tensor:
    """`[N]`, int64 from 0: the cluster of each picture; cluster 0 is the largest.

    strength `[E]`: how far a pair is above chance, 0 if it is not. auto: the components of the pairs that are, if they have at
    least three pictures and 15 % of the set; pictures of smaller ones go to cluster 0 as strangers. A component is divided again if
    its pairs are far weaker between two parts than within either. A number: normalised spectral clustering.
    Labels `[N]` are taken as they are.
    """
    if isinstance(wanted, Tensor):
        return _by_size(wanted)
    if wanted == 1:
        return torch.zeros(count, dtype=torch.int64)
    if wanted != "auto":
        return _by_size(_spectral(pairs, strength, torch.arange(count), wanted))
    label = components(pairs, strength > 0, count)
    sizes = torch.bincount(label)
    large = sizes >= max(3, SMALLEST_SHARE * count)
    label = torch.where(large[label], label, 0)
    waiting = label.unique().tolist()
    while waiting:
        members = (label == waiting.pop()).nonzero()[:, 0]
        other = _other_kind(pairs, strength, members, max(KIND_LEAST, int(KIND_SHARE * count) + 1))
        if len(other):
            waiting += [int(label[members[0]]), int(label.max()) + 1]
            label[other] = waiting[-1]
    return _by_size(label)


def _other_kind(pairs: Tensor, strength: Tensor, members: Tensor, least: int) -> Tensor:
    """The members of a cluster that are of another kind than most are; none if all are of one.

    Few pictures that hang on by little are set aside first, as nothing can be told of two kinds while they make one of the parts.
    """
    for _ in range(_PEELED):
        if len(members) < 2 * least:
            break
        label = _by_size(_spectral(pairs, strength, members, 2))
        other = members[label == 1]
        if len(other) >= least:
            return other if _are_two(pairs, strength, members[label == 0], other) else other[:0]
        members = members[label == 0]
    return members[:0]


def _are_two(pairs: Tensor, strength: Tensor, first: Tensor, second: Tensor) -> bool:
    inside = torch.stack([torch.isin(pairs, part) for part in (first, second)])
    own = [strength[part.all(1)] for part in inside]
    between = strength[inside[0].any(1) & inside[1].any(1)]
    if min(map(len, own)) < KIND_PAIRS or not len(between):
        return False
    return bool(between.mean() < WEAK * min(part.mean() for part in own))


def _spectral(pairs: Tensor, strength: Tensor, members: Tensor, wanted: int) -> Tensor:
    """`[m]`: normalised spectral clustering of the members (Ng, Jordan, Weiss 2001)."""
    position = torch.full((int(max(pairs.max(), members.max())) + 1,), -1)
    position[members] = torch.arange(len(members))
    i, j = position[pairs].unbind(1)
    own = (i >= 0) & (j >= 0)
    affinity = torch.full((len(members), len(members)), 1e-6, dtype=torch.float64)
    affinity[i[own], j[own]] += strength[own].double()
    affinity = torch.maximum(affinity, affinity.T).fill_diagonal_(0)
    degree = affinity.sum(1).rsqrt()
    vectors = torch.linalg.eigh(degree[:, None] * affinity * degree)[1][:, -wanted:]
    return _means(F.normalize(vectors, dim=1), wanted)


def _means(points: Tensor, wanted: int) -> Tensor:
    """Lloyd's k-means from the points that are farthest from those before them."""
    centres = [points[0]]
    for _ in range(wanted - 1):
        distance = torch.cdist(points, torch.stack(centres)).min(1).values
        centres.append(points[int(distance.argmax())])
    middle = torch.stack(centres)
    label = torch.cdist(points, middle).argmin(1)
    for _ in range(50):
        middle = torch.stack([points[label == k].mean(0) if bool((label == k).any()) else middle[k] for k in range(wanted)])
        label = torch.cdist(points, middle).argmin(1)
    return label


def _by_size(label: Tensor) -> Tensor:
    label = label.unique(return_inverse=True)[1]
    sizes = torch.bincount(label)
    rank = torch.empty_like(sizes)
    rank[sizes.argsort(descending=True, stable=True)] = torch.arange(len(sizes))
    return rank[label]
