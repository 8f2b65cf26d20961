# SPDX-License-Identifier: Apache-2.0
"""Divergences of discrete distributions, and the exact Wasserstein-1 distance on the line."""

from __future__ import annotations

import torch
from torch import Tensor


def jensen_shannon(p: Tensor, q: Tensor) -> Tensor:
    """KL(p ‖ m) / 2 + KL(q ‖ m) / 2 in nats, m = (p + q) / 2; p and q are probabilities `[K]`. Between 0 and log 2."""
    middle = (p + q) / 2
    return 0.5 * sum(torch.special.xlogy(r, r / middle.clamp_min(torch.finfo(r.dtype).tiny)).sum() for r in (p, q))


def total_variation(p: Tensor, q: Tensor) -> Tensor:
    """Half the sum of |p - q|, probabilities `[K]`. Between 0 and 1."""
    return 0.5 * (p - q).abs().sum()


def pearson_chi2(p: Tensor, q: Tensor) -> Tensor:
    """chi²(p ‖ q) = sum (q - p)² / p of two measures `[K]`; infinite if q has mass and p none."""
    squares = (q - p).square()
    return torch.where(squares > 0, squares / p, 0.0).sum()


def wasserstein_1d(x: Tensor, y: Tensor) -> Tensor:
    """Exact Wasserstein-1 distance of two equally large samples `[N]` on the line: the mean distance of their sorted values."""
    return (x.sort().values - y.sort().values).abs().mean()
