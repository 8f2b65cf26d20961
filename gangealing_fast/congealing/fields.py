# SPDX-License-Identifier: Apache-2.0
"""Distribution fields: how often each value occurs at each pixel of a stack (Learned-Miller, PAMI 2006).

Values in [0, 1] fall into bins whose centres lie evenly from 0 to 1. A value between two centres counts for both in proportion,
which is a Parzen window of triangular shape. Two bins make the field of binary pictures: a value is then the chance of ink. Grey
pictures have eight bins, colours have eight for each channel, and a pixel's entropy is the sum over its channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Pixels = Literal["binary", "grey", "colour"]
BINS: dict[Pixels, int] = {"binary": 2, "grey": 8, "colour": 8}


@dataclass(frozen=True)
class Field:
    """How `count` pictures are distributed: totals `[C, K, H, W]`, which sum to count over the K bins."""

    totals: Tensor
    count: int

    @classmethod
    def of(cls, stack: Tensor, bins: int) -> Field:
        """The field of a stack `[N, C, H, W]` in [0, 1]."""
        if bins == 2:
            ink = stack.sum(0)
            return cls(torch.stack([stack.shape[0] - ink, ink], 1), stack.shape[0])
        place = stack * (bins - 1)
        return cls(torch.stack([(1 - (place - k).abs()).clamp(min=0).sum(0) for k in range(bins)], 1), stack.shape[0])

    def entropy(self) -> Tensor:
        """Mean over pixels of the entropy, summed over channels, in bits."""
        share = self.totals / self.count
        return -torch.xlogy(share, share).sum((0, 1)).mean() / math.log(2)

    def most(self) -> float:
        """Bits of the largest entropy that it could have."""
        channels, bins, height, width = self.totals.shape
        return channels * height * width * math.log2(bins)

    def share(self, values: Tensor, own: Tensor | None) -> Tensor:
        """Bits that pictures cost under this field, `[n, F]`: their shares of the stack's entropy, times the number of pictures.

        values: `[n, C, F, H, W]`, each of n pictures moved in F ways. own: `[n, C, H, W]`, what each of them has put into the
        field, which is taken out of it first; None if none of them is in it. A bin's chance is (times seen + 1/K) / (pictures + 1),
        so that nothing is impossible.
        """
        bins = self.totals.shape[1]
        prior, size = 1 / bins, self.count + (0 if own is None else -1) + 1
        if bins == 2:
            without, ink = ((self.totals[:, k] + prior)[None] for k in (0, 1))
            if own is not None:
                without, ink = without - (1 - own), ink - own
            slope = (without.log2() - ink.log2()).flatten(2)
            level = (math.log2(size) - without.log2()).flatten(1).sum(1)
            products = torch.einsum("ncfp,ncp->nf", values.flatten(3), slope.expand(values.shape[0], -1, -1))
            return level[:, None] + products
        return self._share_of_bins(values, own, bins, prior, size)

    def _share_of_bins(self, values: Tensor, own: Tensor | None, bins: int, prior: float, size: int) -> Tensor:
        place = values * (bins - 1)
        low = place.floor().clamp(max=bins - 2)
        upper = place - low
        index = low.long()
        channels, _, height, width = self.totals.shape
        table = self.totals.movedim(1, 0).reshape(-1)
        start = torch.arange(channels * height * width, device=values.device).view(channels, 1, height, width)
        at = index * (channels * height * width) + start
        seen = [table[at], table[at + channels * height * width]]
        if own is not None:
            distance = own[:, :, None] * (bins - 1) - low
            seen = [total - (1 - (distance - k).abs()).clamp(min=0) for k, total in enumerate(seen)]
        bits = torch.lerp((seen[0] + prior).log2(), (seen[1] + prior).log2(), upper)
        return (math.log2(size) - bits).sum((1, 3, 4))
