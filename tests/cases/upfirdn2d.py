# SPDX-License-Identifier: Apache-2.0
"""Cases of upfirdn2d for whatever implements it: filters, factors, paddings, odd sizes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """`shape` of x, taps of the filter (`[fh, fw]`, or `[n]` for a separable one) and the operator's keywords.

    small: a shape for finite differences.
    """

    shape: tuple[int, int, int, int]
    taps: tuple[float, ...] | tuple[tuple[float, ...], ...]
    keywords: dict[str, Any] = field(default_factory=dict)
    small: tuple[int, int, int, int] = (1, 2, 5, 4)

    def image(self, dtype: torch.dtype = torch.float64, *, small: bool = False) -> Tensor:
        """The input, the same on every call."""
        generator = torch.Generator().manual_seed(0)
        return torch.randn(self.small if small else self.shape, dtype=torch.float64, generator=generator).to(dtype)

    def filter(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The filter `[fh, fw]`."""
        taps = torch.tensor(self.taps, dtype=torch.float64)
        return (torch.outer(taps, taps) if taps.dim() == 1 else taps).to(dtype)


BINOMIAL = (0.125, 0.375, 0.375, 0.125)
# Of rank two: no outer product.
MIXED = ((0.5, -1.0, 0.25, 2.0, 1.0), (1.5, 0.75, -0.5, 1.0, 0.0), (-2.0, 0.25, 1.0, -0.75, 0.5))
TWISTED = ((1.0, 2.0, -1.0, 0.5), (0.0, 1.0, 3.0, 1.0), (0.5, -2.0, 1.0, 1.0), (2.0, 0.0, 0.25, -1.0))

CASES = {
    "blur": Case((2, 3, 11, 8), BINOMIAL, {"padding": (2, 1)}),
    "blur-crop": Case((2, 3, 11, 8), BINOMIAL, {"padding": (-1, 1), "gain": 2.0}),
    "blur after an up-convolution": Case((2, 5, 9, 17), BINOMIAL, {"padding": (1, 1), "gain": 4.0}),
    "wide blur": Case((1, 32, 6, 37), BINOMIAL, {"padding": (2, 2)}),
    "blur of long rows": Case((2, 517, 5, 9), BINOMIAL, {"padding": (2, 1)}),
    "blur of long rows, cropped": Case(
        (1, 1030, 9, 11), (1.0, 2.0, -0.5, 0.25), {"padding": (-2, 1, -3, 4), "gain": 0.5}, (1, 1, 9, 7)
    ),
    "blur of fewer rows than taps": Case((2, 1400, 1, 3), BINOMIAL, {"padding": (2, 1)}, (1, 1, 1, 4)),
    "blur of one row": Case((2, 4, 1, 6), BINOMIAL, {"padding": (2, 1)}, (1, 1, 1, 4)),
    "up": Case((2, 3, 11, 8), BINOMIAL, {"up": 2, "padding": (2, 1), "gain": 4.0}),
    "up of colours": Case((2, 3, 5, 33), BINOMIAL, {"up": 2, "padding": (2, 1), "gain": 4.0}),
    "down": Case((2, 3, 11, 8), BINOMIAL, {"down": 2, "padding": (1, 1)}),
    "down of many channels": Case((1, 24, 9, 21), BINOMIAL, {"down": 2, "padding": (2, 1)}),
    "up-down": Case((2, 3, 11, 8), BINOMIAL, {"up": 3, "down": 2, "padding": (4, -1, 0, 3)}),
    "not separable": Case((2, 3, 11, 8), MIXED, {"up": 2, "padding": (3, 1)}),
    "not separable blur": Case((2, 3, 11, 8), TWISTED, {"padding": (2, 1)}),
    "asymmetric": Case((2, 3, 11, 8), (1.0, 2.0, 0.5), {"down": 2, "padding": (1, 2)}),
    "one tap": Case((2, 3, 11, 8), ((2.0,),), {"up": 2, "down": 3, "padding": (0, 2)}),
    "larger than the image": Case((1, 2, 2, 3), (1.0, -2.0, 0.5, 3.0, 1.0, 0.25), {"padding": (4, 3)}, (1, 1, 2, 3)),
    "cropped from both sides": Case((1, 3, 12, 14), BINOMIAL, {"padding": (-2, -1, -3, -2)}, (1, 1, 9, 7)),
}
