# SPDX-License-Identifier: Apache-2.0
"""How well clusters agree with classes that nobody told them."""

from __future__ import annotations

import torch
from torch import Tensor


def cluster_purity(clusters: Tensor, labels: Tensor) -> float:
    """The share of pictures whose class is the commonest of their cluster; 1 is perfect.

    clusters, labels: integers `[N]`, not negative. Raises ValueError for other shapes or if N is 0.
    """
    if clusters.ndim != 1 or clusters.shape != labels.shape or not len(clusters):
        raise ValueError(f"clusters and labels must be [N] with N of 1 or more, got {list(clusters.shape)}, {list(labels.shape)}.")
    classes = int(labels.max()) + 1
    counts = torch.bincount(clusters.long() * classes + labels.long()).cpu()
    counts = torch.nn.functional.pad(counts, (0, -len(counts) % classes)).reshape(-1, classes)
    return counts.amax(1).sum().item() / len(clusters)


def majority(outputs: Tensor, classes: Tensor, categories: int) -> list[int]:
    """For each of a network's categories the class that most of the samples have for which it is the largest output.

    outputs, classes: int64 `[N]`. A category that no sample falls into gets the most frequent class.
    """
    kinds = int(classes.max()) + 1
    counts = torch.zeros(categories, kinds, dtype=torch.int64).index_put_(
        (outputs.cpu(), classes.cpu()), torch.ones(len(outputs), dtype=torch.int64), accumulate=True
    )
    empty = counts.sum(1) == 0
    counts[empty] = counts.sum(0)
    return counts.argmax(1).tolist()


def best_examples(probabilities: Tensor, classes: Tensor) -> list[int]:
    """For each category the class of the sample that is in it with the greatest probability (arXiv 1511.05644, section 6).

    probabilities: `[N, K]`. classes: int64 `[N]`. Raises ValueError for other shapes or if N is 0.
    """
    if probabilities.ndim != 2 or not len(classes) or len(probabilities) != len(classes):
        raise ValueError(f"probabilities must be [N, K] and classes [N], got {list(probabilities.shape)}, {list(classes.shape)}.")
    chosen: list[int] = classes[probabilities.argmax(0)].tolist()
    return chosen
