# SPDX-License-Identifier: Apache-2.0
"""Cases of adain: ranks, sizes around the pieces that kernels work in, spreads and offsets of the channels."""

from __future__ import annotations

from dataclasses import dataclass
from zlib import crc32

import torch
from torch import Tensor

DIFFERENTIABLE = (0, 1, 2)  # x, scale and shift
# float32 x - mean loses the digits that x and its mean have in common; `offset` cases are compared looser.
TOLERANCE = {torch.float64: (1e-12, 1e-12), torch.float32: (2e-6, 1e-5)}
OFFSET_TOLERANCE = {torch.float64: (1e-9, 1e-9), torch.float32: (1e-3, 1e-2)}


@dataclass(frozen=True)
class Case:
    """x of normal noise, times `spread`, plus `offset` times each channel's number plus one."""

    name: str
    shape: tuple[int, ...]
    spread: float = 1.0
    offset: float = 0.0
    eps: float = 1e-5

    @property
    def tolerance(self) -> dict[torch.dtype, tuple[float, float]]:
        return OFFSET_TOLERANCE if abs(self.offset) > 10 * self.spread else TOLERANCE

    def tensors(self, dtype: torch.dtype = torch.float64) -> list[Tensor]:
        """[x, scale, shift]; the same values in every run and, rounded, in every dtype."""
        generator = torch.Generator().manual_seed(crc32(self.name.encode()))
        x = torch.randn(self.shape, generator=generator, dtype=torch.float64) * self.spread
        channel = torch.arange(1, self.shape[1] + 1, dtype=torch.float64).reshape(-1, *[1] * (len(self.shape) - 2))
        scale, shift = torch.randn(2, *self.shape[:2], generator=generator, dtype=torch.float64)
        return [t.to(dtype) for t in (x + self.offset * channel, scale, shift)]


CASES = (
    Case("image", (2, 5, 7, 9)),
    Case("sequence", (2, 3, 37)),
    Case("volume", (2, 3, 3, 4, 5)),
    Case("sixteen-channels", (2, 16, 8, 8)),
    Case("many-channels", (1, 131, 5, 6)),
    Case("many-positions", (1, 3, 67, 61)),
    Case("both", (2, 67, 33, 31)),
    Case("offset", (2, 4, 16, 16), 1.0, 100.0),
    Case("narrow", (2, 4, 9, 8), 1e-3, 0.0, 1e-3),
    Case("wide", (2, 4, 9, 8), 1e3),
    Case("one-channel", (3, 1, 6, 5)),
    Case("two-positions", (2, 3, 1, 2), eps=1.0),
    Case("no-samples", (0, 3, 4, 5)),
    Case("no-channels", (2, 0, 4, 5)),
)
# Small enough for gradcheck and gradgradcheck.
SMALL = (Case("small", (2, 2, 2, 3)), Case("small-sequence", (1, 2, 4)))
