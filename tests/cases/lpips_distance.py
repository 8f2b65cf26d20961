# SPDX-License-Identifier: Apache-2.0
"""Cases of lpips_distance for whatever implements it: one tap each, odd sizes, many channels, dead pixels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """`shape` of both feature maps. dead: share of the pixels whose channels are all 0 in the first map."""

    shape: tuple[int, int, int, int]
    dead: float = 0.0

    def tensors(self, dtype: torch.dtype = torch.float64) -> list[Tensor]:
        """[a, b, head], the same on every call; the features are not negative, as after a ReLU."""
        generator = torch.Generator().manual_seed(0)
        a, b = (torch.randn(self.shape, dtype=torch.float64, generator=generator).relu() for _ in range(2))
        alive = torch.rand(self.shape[0], 1, *self.shape[2:], dtype=torch.float64, generator=generator) >= self.dead
        head = torch.rand(self.shape[1], dtype=torch.float64, generator=generator)
        return [t.to(dtype) for t in (a * alive, b, head)]


CASES = {
    "two channels": Case((2, 2, 3, 5)),
    "odd": Case((3, 5, 4, 7)),
    "channels of 64": Case((2, 64, 5, 9)),
    "odd number of many channels": Case((1, 137, 3, 11)),
    "many pixels": Case((2, 19, 17, 41)),
    "dead pixels": Case((2, 7, 9, 8), dead=0.3),
    "one pixel": Case((5, 33, 1, 1)),
}
