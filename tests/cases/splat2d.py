# SPDX-License-Identifier: Apache-2.0
"""Cases of splat2d: sizes, channels, wide and narrow Gaussians, points outside and not finite."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from zlib import crc32

import torch
from torch import Tensor

DIFFERENTIABLE = (0, 1, 2, 3)  # background, xy, values and sigma
# Hard normalisation divides by sums of small weights, which magnifies rounding.
TOLERANCE = {torch.float64: (1e-11, 1e-10), torch.float32: (5e-6, 5e-5)}


@dataclass(frozen=True)
class Case:
    """Points drawn in the image grown by `reach` (1: the image itself); sigmas in [sigma, 1.5 sigma].

    per_point: whether every point has a sigma of its own. broken: whether some points and sigmas are not finite or
    not positive. The background is zero without `soft`, where it is divided by sums that may be zero.
    """

    name: str
    batch: int
    channels: int
    height: int
    width: int
    points: int
    sigma: float = 1.0
    soft: bool = True
    per_point: bool = False
    reach: float = 1.2
    broken: bool = False

    @property
    def kwargs(self) -> dict[str, Any]:
        """Keyword arguments of the public function."""
        return {"soft": self.soft}

    def tensors(self, dtype: torch.dtype = torch.float64) -> list[Tensor]:
        """[background, xy, values, sigma]; the same values in every run and, rounded, in every dtype."""
        generator = torch.Generator().manual_seed(crc32(self.name.encode()))
        draw = lambda *shape: torch.rand(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
        background = torch.zeros(self.batch, self.channels, self.height, self.width, dtype=torch.float64)
        if self.soft:
            background = 2 * draw(*background.shape) - 1
        size = torch.tensor((self.width, self.height), dtype=torch.float64)
        xy = ((draw(self.batch, self.points, 2) - 0.5) * self.reach + 0.5) * size
        # Multiples of 1/64, away from integers, and sigmas in multiples of 1/16: reaches that no dtype rounds differently.
        xy = (xy * 8).floor() / 8 + 1 / 16
        values = torch.randn(self.batch, self.points, self.channels, generator=generator, dtype=torch.float64)
        shape = (self.batch, self.points) if self.per_point else (self.batch,)
        sigma = ((self.sigma * (1 + draw(*shape) / 2)) * 16).ceil() / 16 + 1 / 64
        if self.broken and self.points:
            xy[:, ::5, 0] = torch.nan
            xy[:, 1::5, 1] = torch.inf
            xy[:, 2::11] = -torch.inf
            if self.per_point:
                sigma[:, 3::7], sigma[:, 4::7], sigma[:, 5::13] = torch.nan, 0.0, -1.0
        return [t.to(dtype) for t in (background, xy, values, sigma)]


CASES = (
    Case("picture", 2, 3, 24, 20, 40),
    Case("hard", 2, 3, 24, 20, 300, 2.0, soft=False),
    Case("one-channel", 2, 1, 33, 17, 30),
    Case("seven-channels", 1, 7, 19, 40, 25),
    Case("forty-channels", 1, 40, 9, 21, 12),
    Case("own-sigmas", 2, 3, 40, 37, 35, 0.7, per_point=True),
    Case("narrow", 1, 3, 20, 20, 50, 0.2),
    Case("wide", 2, 3, 45, 50, 9, 12.0),
    Case("wider-than-the-image", 1, 2, 9, 7, 5, 30.0),
    Case("many", 1, 3, 40, 40, 700, 1.2, soft=False),
    Case("outside", 2, 3, 16, 16, 60, reach=3.0),
    Case("broken", 2, 3, 25, 23, 60, per_point=True, broken=True),
    Case("one-pixel", 2, 3, 1, 1, 4, 0.5),
    Case("one-row", 2, 3, 1, 30, 9),
    Case("no-points", 2, 3, 8, 9, 0),
    Case("no-channels", 2, 0, 8, 9, 5),
    Case("no-samples", 0, 3, 8, 9, 5),
)
# Small enough for gradcheck.
SMALL = (
    Case("small", 1, 2, 4, 5, 3, 0.8),
    Case("small-hard", 1, 1, 4, 4, 12, 1.5, soft=False, reach=0.8),
    Case("small-own-sigmas", 2, 1, 4, 3, 3, 0.6, per_point=True),
)
