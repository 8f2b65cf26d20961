# SPDX-License-Identifier: Apache-2.0
"""Cases of flow_regularizer: sizes, and magnitudes on both sides of the kink of the Huber function."""

from __future__ import annotations

from dataclasses import dataclass
from zlib import crc32

import torch
from torch import Tensor

DIFFERENTIABLE = (0,)  # flow
# Narrow flows give float32 sums, and gradients that are off by their own rounding alone.
TOLERANCE = {
    torch.float64: (1e-12, 1e-12),
    torch.float32: (2e-6, 1e-5),
    torch.bfloat16: (2e-6, 5e-3),
    torch.float16: (2e-6, 1e-3),
}


@dataclass(frozen=True)
class Case:
    """A flow of normal noise, `scale` its standard deviation."""

    name: str
    batch: int
    height: int
    width: int
    scale: float = 1.0

    def tensors(self, dtype: torch.dtype = torch.float64) -> list[Tensor]:
        """[flow]; the same values in every run and, rounded, in every dtype."""
        generator = torch.Generator().manual_seed(crc32(self.name.encode()))
        shape = (self.batch, self.height, self.width, 2)
        return [(torch.randn(shape, generator=generator, dtype=torch.float64) * self.scale).to(dtype)]


CASES = (
    Case("both-sides-of-the-kink", 3, 20, 13),
    Case("one-row", 2, 1, 7),
    Case("one-column", 2, 7, 1),
    Case("one-point", 1, 1, 1),
    Case("two-points", 2, 1, 2),
    Case("tall", 2, 70, 3),
    Case("wide", 1, 3, 75),
    Case("small-values", 2, 33, 40, 1e-2),
    Case("large-values", 2, 17, 19, 50.0),
    Case("square", 2, 64, 64, 0.5),
    Case("no-samples", 0, 4, 5),
)
# Small enough for gradcheck and gradgradcheck.
SMALL = (Case("small", 2, 4, 5), Case("small-row", 2, 1, 4), Case("small-column", 1, 5, 1))
