# SPDX-License-Identifier: Apache-2.0
"""Which pictures of a set are of one kind, from the graph of their pairs."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

SMALLEST_SHARE = 0.15
"""Of the set, and three pictures: smaller components are strangers, not clusters."""


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


def split(pairs: Tensor, strength: Tensor, count: int, wanted: int | Literal["auto"]) -> Tensor:
    """`[N]`, int64 from 0: the cluster of each picture; cluster 0 is the largest.

    strength `[E]`: how far a pair is above chance, 0 if it is not. auto: the components of the pairs that are, if they have at
    least three pictures and 15 % of the set; pictures of smaller ones go to cluster 0 as strangers. A number: normalised spectral
    clustering (Ng, Jordan, Weiss 2001).
    """
    if wanted == 1:
        return torch.zeros(count, dtype=torch.int64)
    if wanted == "auto":
        label = components(pairs, strength > 0, count)
        sizes = torch.bincount(label)
        large = sizes >= max(3, SMALLEST_SHARE * count)
        return torch.where(large[label], label, 0)
    affinity = torch.full((count, count), 1e-6, dtype=torch.float64)
    i, j = pairs.unbind(1)
    affinity[i, j] += strength.double()
    affinity = torch.maximum(affinity, affinity.T).fill_diagonal_(0)
    degree = affinity.sum(1).rsqrt()
    vectors = torch.linalg.eigh(degree[:, None] * affinity * degree)[1][:, -wanted:]
    return _by_size(_means(F.normalize(vectors, dim=1), wanted))


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
    sizes = torch.bincount(label)
    rank = torch.empty_like(sizes)
    rank[sizes.argsort(descending=True, stable=True)] = torch.arange(len(sizes))
    return rank[label]
