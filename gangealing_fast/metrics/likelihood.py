# SPDX-License-Identifier: Apache-2.0
"""The likelihood of pictures under samples, by a Parzen window (Goodfellow et al. 2014, arXiv 1406.2661, section 5).

A Gaussian of deviation sigma lies on every sample; the density is the mean of all. It is a poor measure (Theis et al. 2016, arXiv
1511.01844: real training pictures score lower than models do), but the one that papers state.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

ROWS = 250
"""Pictures whose distances to all samples are held at a time."""


@torch.no_grad()
def parzen_log_likelihood(pictures: Tensor, samples: Tensor, sigma: float) -> Tensor:
    """`[M]`, float64, in nats: log mean_j N(x_i; s_j, sigma² I) of pictures `[M, D]` under samples `[N, D]`, both as in [0, 1].

    Raises ValueError for other shapes, no samples, or a sigma that is not positive.
    """
    if pictures.ndim != 2 or samples.ndim != 2 or pictures.shape[1] != samples.shape[1] or not len(samples):
        raise ValueError(f"pictures and samples must be [M, D] and [N, D], got {list(pictures.shape)}, {list(samples.shape)}.")
    if not sigma > 0:
        raise ValueError(f"sigma must be positive, got {sigma}.")
    squares = samples.double().square().sum(1)
    found = []
    for part in pictures.split(ROWS):
        # In float32 the product's error, about 1e-4 of a squared distance of some tens, is far below a nat.
        cross = (part.float() @ samples.float().T).double()
        distances = (part.double().square().sum(1)[:, None] - 2 * cross + squares).clamp(min=0)
        found.append(torch.logsumexp(-distances / (2 * sigma**2), 1))
    constant = math.log(len(samples)) + pictures.shape[1] / 2 * math.log(2 * math.pi * sigma**2)
    return torch.cat(found) - constant if found else squares[:0]


def choose_sigma(validation: Tensor, samples: Tensor, candidates: Sequence[float] | None = None) -> float:
    """The deviation under which validation pictures `[M, D]` are the most likely; 20 from 0.05 to 1 are tried by default.

    Raises ValueError as `parzen_log_likelihood`, or if there are no candidates or no pictures.
    """
    tried = [0.05 * 20 ** (i / 19) for i in range(20)] if candidates is None else list(candidates)
    if not tried or not len(validation):
        raise ValueError("choosing sigma needs validation pictures and candidates.")
    means = [parzen_log_likelihood(validation, samples, sigma).mean().item() for sigma in tried]
    return tried[max(range(len(tried)), key=means.__getitem__)]
