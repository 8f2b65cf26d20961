# SPDX-License-Identifier: Apache-2.0
"""Whether codes are distributed as their prior: a two-sample test, and a search for holes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class TwoSampleTest(NamedTuple):
    """statistic: the squared maximum mean discrepancy. p_value: how often samples of one distribution differ by as much."""

    statistic: float
    p_value: float


@torch.no_grad()
def mmd_test(first: Tensor, second: Tensor, *, permutations: int = 500, seed: int = 0) -> TwoSampleTest:
    """Whether samples `[N, D]` and `[N, D]` are of one distribution (Gretton et al., JMLR 13, 2012).

    The biased estimate of the squared discrepancy (eq. 5) with a Gaussian kernel as wide as the median distance, and its place
    among those of random divisions of all samples into two halves. N of 1 000 to 2 000 is a good size: the work grows as N².
    Raises ValueError for other shapes or fewer than two samples.
    """
    if first.ndim != 2 or first.shape != second.shape or len(first) < 2:
        raise ValueError(f"the two samples must be [N, D] with N of 2 or more, got {list(first.shape)} and {list(second.shape)}.")
    both = torch.cat([first, second]).double()
    squared = torch.cdist(both, both).square()
    off_diagonal = squared[~torch.eye(len(both), dtype=torch.bool, device=both.device)]
    kernel = torch.exp(-squared / off_diagonal.median().clamp(min=torch.finfo(torch.float64).tiny))
    count = len(first)
    signs = torch.ones(len(both), permutations + 1, dtype=torch.float64)
    signs[count:] = -1
    generator = torch.Generator().manual_seed(seed)
    for column in range(1, permutations + 1):
        signs[:, column] = signs[torch.randperm(len(both), generator=generator), 0]
    signs = signs.to(both.device)
    statistics = (signs * (kernel @ signs)).sum(0) / count**2
    p_value = (1 + (statistics[1:] >= statistics[0]).sum().item()) / (permutations + 1)
    return TwoSampleTest(statistics[0].item(), p_value)


@torch.no_grad()
def neighbour_error(known: Tensor, known_classes: Tensor, codes: Tensor, classes: Tensor, *, neighbours: int = 5) -> float:
    """The share of codes `[N, D]` of another class than most of their nearest neighbours among `known` `[M, D]` have.

    classes: int64 `[M]` and `[N]`. Of classes that are equally frequent the smallest counts. Raises ValueError for other shapes.
    """
    if known.ndim != 2 or codes.ndim != 2 or known.shape[1] != codes.shape[1] or not 1 <= neighbours <= len(known):
        shapes = f"{list(known.shape)} and {list(codes.shape)}"
        raise ValueError(f"codes must be [M, D] and [N, D] with M of {neighbours} or more, got {shapes}.")
    if len(known_classes) != len(known) or len(classes) != len(codes):
        raise ValueError(f"each code needs a class, got {len(known_classes)} for {len(known)} and {len(classes)} for {len(codes)}.")
    wrong = 0
    for part, true in zip(codes.split(1000), classes.split(1000), strict=True):
        nearest = known_classes[torch.cdist(part, known).topk(neighbours, largest=False).indices]
        wrong += int((nearest.mode(1).values != true).sum())
    return wrong / max(1, len(codes))


@torch.no_grad()
def emptiest_place(codes: Tensor, prior: Tensor, places: Tensor, *, expected: int = 20) -> int:
    """The fewest codes `[N, D]` in a ball in which the prior expects `expected` of N; 0 is a hole.

    The balls lie around `places` `[P, D]`, other samples of the prior than `prior` `[N, D]`, which tell how large each must be.
    Raises ValueError for other shapes, or if N is smaller than `expected`.
    """
    if codes.ndim != 2 or codes.shape != prior.shape or places.ndim != 2 or places.shape[1] != codes.shape[1]:
        raise ValueError(
            f"codes and prior must be [N, D] and places [P, D], got {list(codes.shape)}, {list(prior.shape)}, {list(places.shape)}."
        )
    if not 1 <= expected <= len(codes):
        raise ValueError(f"expected must be 1 to {len(codes)}, the number of codes, got {expected}.")
    fewest = len(codes)
    for part in places.split(256):
        radius = torch.cdist(part, prior).kthvalue(expected, dim=1).values
        inside = (torch.cdist(part, codes) <= radius[:, None]).sum(1)
        fewest = min(fewest, int(inside.min()))
    return fewest
