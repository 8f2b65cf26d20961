# SPDX-License-Identifier: Apache-2.0
"""Cases of convex_upsample: sizes, factors, and how peaked the softmax is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from zlib import crc32

import torch
from torch import Tensor

DIFFERENTIABLE = (0, 1)  # flow and mask
TOLERANCE = {torch.float64: (1e-12, 1e-12), torch.float32: (2e-6, 1e-5)}


@dataclass(frozen=True)
class Case:
    """A flow of normal noise; logits of normal noise, `scale` their standard deviation."""

    name: str
    batch: int
    height: int
    width: int
    factor: int = 8
    scale: float = 2.0

    @property
    def kwargs(self) -> dict[str, Any]:
        """Keyword arguments of the public function."""
        return {"factor": self.factor}

    def tensors(self, dtype: torch.dtype = torch.float64) -> list[Tensor]:
        """[flow, mask]; the same values in every run and, rounded, in every dtype."""
        generator = torch.Generator().manual_seed(crc32(self.name.encode()))
        flow = torch.randn(self.batch, self.height, self.width, 2, generator=generator, dtype=torch.float64)
        shape = (self.batch, 9 * self.factor * self.factor, self.height, self.width)
        mask = torch.randn(shape, generator=generator, dtype=torch.float64) * self.scale
        return [flow.to(dtype), mask.to(dtype)]


CASES = (
    Case("factor-two", 2, 5, 7, 2),
    Case("factor-eight", 2, 16, 17),
    Case("square", 1, 16, 16),
    Case("one-row", 2, 1, 3, 3),
    Case("one-column", 2, 4, 1, 1),
    Case("one-cell", 2, 1, 1, 4),
    Case("factor-one", 1, 6, 9, 1),
    Case("large-factor", 1, 2, 3, 17),
    Case("more-cells-than-a-block", 1, 13, 31, 2),
    Case("equal-weights", 1, 5, 6, 4, 0.0),
    Case("peaked", 1, 5, 6, 4, 60.0),
    Case("no-cells", 1, 0, 6, 4),
    Case("no-samples", 0, 5, 6, 4),
)
# Small enough for gradcheck and gradgradcheck.
SMALL = (Case("small", 1, 2, 3, 2), Case("small-row", 1, 1, 3, 1))
