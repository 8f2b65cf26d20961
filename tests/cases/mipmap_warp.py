# SPDX-License-Identifier: Apache-2.0
"""Cases of mipmap_warp: sizes (powers of two and not), zooms (how many levels are read), channels, padding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from zlib import crc32

import torch
from torch import Tensor

MODES = ("zeros", "border", "reflection")
DIFFERENTIABLE = (0, 1)  # x and grid
# A coordinate of float32 is known to 1e-7 of the whole image only, which the slope of noise turns into 1e-6 of a texel.
TOLERANCE = {torch.float64: (1e-12, 1e-12), torch.float32: (1e-5, 1e-4)}


@dataclass(frozen=True)
class Case:
    """Noise of `size` (height, width), read at every `zoom` x (size / out) pixels by a jittered similarity.

    The jitter keeps clear of ties between neighbours and of whole levels, where the derivative is a choice.
    """

    name: str
    batch: int
    channels: int
    size: tuple[int, int]
    out: tuple[int, int]
    padding_mode: str = "border"
    zoom: float = 1.0
    max_levels: float = 3.5

    @property
    def kwargs(self) -> dict[str, Any]:
        """Keyword arguments of the public function."""
        return {"padding_mode": self.padding_mode, "max_levels": self.max_levels}

    def tensors(self, dtype: torch.dtype = torch.float64) -> list[Tensor]:
        """[x, grid]; the same values in every run and, rounded, in every dtype."""
        generator = torch.Generator().manual_seed(crc32(self.name.encode()))
        matrix = torch.tensor([[1.0, 0.2, 0.05], [-0.2, 0.9, -0.1]], dtype=torch.float64) * self.zoom
        y, x = ((torch.arange(length, dtype=torch.float64) * 2 + 1) / length - 1 for length in self.out)
        points = torch.stack((x.expand(self.out), y[:, None].expand(self.out), torch.ones(self.out, dtype=torch.float64)), -1)
        grid = points @ matrix.T
        jitter = torch.randn(self.batch, *self.out, 2, generator=generator, dtype=torch.float64)
        x = torch.randn(self.batch, self.channels, *self.size, generator=generator, dtype=torch.float64)
        return [x.to(dtype), (grid + jitter * (0.3 * self.zoom / max(self.out))).to(dtype)]


CASES = (
    *(Case(f"power-of-two-{mode}", 2, 3, (16, 16), (9, 7), mode) for mode in MODES),
    *(Case(f"odd-{mode}", 2, 3, (13, 11), (9, 7), mode) for mode in MODES),
    *(Case(f"wide-{mode}", 2, 3, (8, 20), (9, 7), mode) for mode in MODES),
    *(Case(f"narrow-{mode}", 1, 3, (40, 12), (9, 7), mode) for mode in MODES),
    *(Case(f"zoom-{zoom}", 1, 3, (32, 32), (16, 16), "reflection", zoom) for zoom in (0.1, 0.6, 2.0, 20.0)),
    *(Case(f"levels-{levels}", 1, 2, (32, 32), (5, 6), "border", 1.0, levels) for levels in (1.0, 1.5, 2.0, 7.25)),
    *(Case(f"channels-{channels}", 2, channels, (16, 16), (6, 9)) for channels in (1, 4, 5, 9)),
    Case("one-texel", 2, 3, (1, 1), (3, 4)),
    Case("one-row", 2, 3, (1, 9), (3, 4)),
    Case("one-column", 2, 3, (9, 1), (3, 4)),
    Case("one-point", 2, 3, (16, 16), (1, 1)),
    Case("one-grid-row", 2, 3, (16, 16), (1, 9)),
    Case("one-grid-column", 2, 3, (16, 16), (9, 1)),
    Case("more-points-than-a-block", 1, 3, (24, 24), (5, 150), "zeros"),
    Case("no-points", 2, 3, (5, 5), (0, 4)),
    Case("no-channels", 2, 0, (5, 5), (3, 4)),
    Case("no-samples", 0, 3, (5, 5), (3, 4)),
)
# Small enough for gradcheck and gradgradcheck.
SMALL = tuple(
    Case(f"small-{size[0]}-{mode}", 1, 2, size, (2, 3), mode, 0.8) for size in ((8, 8), (6, 5), (4, 10)) for mode in MODES
)
