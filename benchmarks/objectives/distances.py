# SPDX-License-Identifier: Apache-2.0
"""Exact Wasserstein-1 distance and cheapest assignment, with scipy, and rank correlation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gangealing_fast.runtime.errors import UserError


def wasserstein(x: Tensor, y: Tensor) -> float:
    """Exact Wasserstein-1 distance of two samples `[N, D]`: the cheapest assignment, mean Euclidean distance."""
    cost = torch.cdist(x.double(), y.double(), compute_mode="donot_use_mm_for_euclid_dist")
    return float(cost[torch.arange(len(cost)), assignment(cost)].mean())


def assignment(cost: Tensor) -> Tensor:
    """The column of each row, int64 `[N]`, in the cheapest one-to-one assignment by costs `[N, N]`."""
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError:
        raise UserError("the cheapest assignment needs scipy: pip install scipy") from None
    return torch.from_numpy(linear_sum_assignment(cost.numpy())[1])


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman's rank correlation; equal values share their mean rank. 0 where one of them never changes."""
    ranks = [_ranks(torch.tensor(values, dtype=torch.float64)) for values in (a, b)]
    centred = [r - r.mean() for r in ranks]
    scale = centred[0].norm() * centred[1].norm()
    return float(centred[0] @ centred[1] / scale) if scale > 0 else 0.0


def _ranks(values: Tensor) -> Tensor:
    below = (values[:, None] > values[None, :]).sum(1)
    equal = (values[:, None] == values[None, :]).sum(1)
    return below + (equal - 1) / 2
