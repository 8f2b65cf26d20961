# SPDX-License-Identifier: Apache-2.0
"""Cases of grid_sample: sizes, channels, padding, corner conventions, and where the grid points lie."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from zlib import crc32

import torch
from torch import Tensor

MODES = ("zeros", "border", "reflection")
DIFFERENTIABLE = (0, 1)  # x and grid
# A coordinate of float32 is known to 1e-7 of the whole image only, which the slope of noise turns into 1e-6 of a texel.
TOLERANCE = {torch.float64: (1e-12, 1e-12), torch.float32: (1e-5, 5e-5)}


@dataclass(frozen=True)
class Case:
    """Noise of `size` (height, width) sampled at `out` points drawn evenly from [-reach, reach]."""

    name: str
    batch: int
    channels: int
    size: tuple[int, int]
    out: tuple[int, int]
    padding_mode: str = "zeros"
    align_corners: bool = False
    reach: float = 1.7

    @property
    def kwargs(self) -> dict[str, Any]:
        """Keyword arguments of the public function."""
        return {"padding_mode": self.padding_mode, "align_corners": self.align_corners}

    def tensors(self, dtype: torch.dtype = torch.float64) -> list[Tensor]:
        """[x, grid]; the same values in every run and, rounded, in every dtype."""
        generator = torch.Generator().manual_seed(crc32(self.name.encode()))
        x = torch.randn(self.batch, self.channels, *self.size, generator=generator, dtype=torch.float64)
        grid = torch.rand(self.batch, *self.out, 2, generator=generator, dtype=torch.float64) * 2 - 1
        return [x.to(dtype), (grid * self.reach).to(dtype)]


CASES = (
    *(
        Case(f"{mode}-{'corners' if corners else 'edges'}", 2, 3, (11, 8), (9, 17), mode, corners)
        for mode in MODES
        for corners in (False, True)
    ),
    *(Case(f"one-texel-{mode}-{corners}", 2, 2, (1, 1), (3, 5), mode, corners, 4.0) for mode in MODES for corners in (False, True)),
    Case("one-row", 2, 5, (1, 5), (6, 30), "reflection", True, 4.0),
    Case("one-column", 2, 5, (6, 1), (6, 30), "reflection", False, 4.0),
    Case("one-channel", 1, 1, (7, 9), (13, 4), "border"),
    Case("four-channels", 2, 4, (9, 6), (5, 33), "reflection"),
    Case("many-channels", 1, 67, (8, 8), (6, 7), "zeros"),
    Case("more-points-than-a-block", 2, 3, (17, 19), (31, 37), "zeros"),
    Case("no-points", 2, 3, (5, 5), (0, 4), "border"),
    Case("no-channels", 2, 0, (5, 5), (3, 4), "border"),
    Case("no-samples", 0, 3, (5, 5), (3, 4), "zeros"),
    Case("far-away", 2, 3, (12, 10), (8, 9), "reflection", False, 100.0),
    Case("all-inside", 2, 3, (12, 10), (8, 9), "zeros", False, 0.8),
)
# Small enough for gradcheck and gradgradcheck.
SMALL = tuple(Case(f"small-{mode}-{corners}", 1, 2, (4, 5), (2, 3), mode, corners) for mode in MODES for corners in (False, True))
