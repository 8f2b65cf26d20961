# SPDX-License-Identifier: Apache-2.0
"""Cases of bilinear_downsample for whatever implements it: strides, smallest images, odd sizes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """`shape` of x and the stride. small: a shape for finite differences."""

    shape: tuple[int, int, int, int]
    stride: int
    small: tuple[int, int, int, int]

    def image(self, dtype: torch.dtype = torch.float64, *, small: bool = False) -> Tensor:
        """The input, the same on every call."""
        generator = torch.Generator().manual_seed(0)
        return torch.randn(self.small if small else self.shape, dtype=torch.float64, generator=generator).to(dtype)


CASES = {
    "half": Case((2, 3, 9, 6), 2, (1, 2, 4, 5)),
    "smallest": Case((2, 3, 2, 3), 2, (2, 1, 2, 2)),
    "half of even sizes": Case((1, 3, 8, 40), 2, (1, 1, 4, 6)),
    "half of many channels": Case((2, 17, 6, 10), 2, (1, 2, 4, 4)),
    "quarter": Case((2, 3, 13, 17), 4, (1, 2, 6, 9)),
    "quarter of grey images": Case((2, 1, 12, 36), 4, (1, 1, 8, 8)),
    "sixth": Case((2, 3, 12, 7), 6, (1, 1, 8, 13)),
    "eighth": Case((2, 3, 16, 24), 8, (1, 1, 10, 9)),
}
