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
