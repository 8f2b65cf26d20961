# SPDX-License-Identifier: Apache-2.0
"""Cases of nearest_grid_point and invert_grid: smooth, folded and random grids, ties, values that are not finite."""

from __future__ import annotations

from dataclasses import dataclass
from zlib import crc32

import torch
from torch import Tensor


def _identity(height: int, width: int) -> Tensor:
    y, x = torch.meshgrid(
        (2 * torch.arange(height, dtype=torch.float64) + 1) / height - 1,
        (2 * torch.arange(width, dtype=torch.float64) + 1) / width - 1,
        indexing="ij",
    )
    return torch.stack([x, y], -1)


@dataclass(frozen=True)
class Case:
    """A grid of a `kind` and points drawn within `reach` times its square.

    Kinds: "smooth" (a rotation and waves of `strength` cells), "mirrored" (smooth, with x negated), "random" (normal
    noise), "integers" (vertices and points at few integer places: many ties), "constant" (all vertices alike),
    "broken" (smooth, with NaN and infinite vertices and points), "vertices" (smooth; the points are its vertices).
    """

    name: str
    batch: int
    height: int
    width: int
    points: int
    kind: str = "smooth"
    strength: float = 0.5
    reach: float = 0.9

    def tensors(self, dtype: torch.dtype = torch.float64) -> list[Tensor]:
        """[grid, points]; the same values in every run and, rounded, in every dtype."""
        generator = torch.Generator().manual_seed(crc32(self.name.encode()))
        draw = lambda *shape: torch.rand(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
        base = _identity(self.height, self.width)
        angle = draw(self.batch, 1, 1) - 0.5
        x = base[..., 0] * angle.cos() - base[..., 1] * angle.sin()
        y = base[..., 0] * angle.sin() + base[..., 1] * angle.cos()
        phase = 6 * draw(2, self.batch, 1, 1)
        x = x + self.strength * 2 / self.width * torch.sin(5 * y + phase[0])
        y = y + self.strength * 2 / self.height * torch.cos(4 * x + phase[1])
        grid = torch.stack([x, y], -1)
        points = (2 * draw(self.batch, self.points, 2) - 1) * self.reach
        if self.kind == "mirrored":
            grid[..., 0] *= -1
        elif self.kind == "random":
            grid = torch.randn(grid.shape, generator=generator, dtype=torch.float64)
        elif self.kind == "integers":
            grid, points = (grid * 3).round(), (points * 3).round()
        elif self.kind == "constant":
            grid = torch.full_like(grid, 0.25)
        elif self.kind == "vertices":
            order = torch.randint(self.height * self.width, (self.points,), generator=generator)
            points = grid.flatten(1, 2)[:, order]
        elif self.kind == "broken":
            flat, bad = grid.view(-1), torch.tensor([torch.nan, torch.inf, -torch.inf], dtype=torch.float64)
            flat[::7] = bad[torch.arange(flat[::7].numel()) % 3]
            spoiled = points.view(-1)[::5]
            spoiled.copy_(bad[torch.arange(spoiled.numel()) % 3])
        return [grid.to(dtype), points.to(dtype)]


CASES = (
    Case("smooth", 2, 16, 16, 40),
    Case("odd", 3, 19, 37, 25),
    Case("wide", 1, 5, 90, 33),
    Case("large", 1, 64, 48, 130, strength=1.5),
    Case("folded", 2, 24, 24, 60, strength=12.0),
    Case("mirrored", 2, 17, 20, 31, "mirrored"),
    Case("outside", 2, 9, 12, 40, reach=3.0),
    Case("random", 2, 21, 18, 40, "random"),
    Case("integers", 2, 33, 21, 50, "integers"),
    Case("constant", 1, 18, 7, 5, "constant"),
    Case("broken", 2, 23, 18, 40, "broken"),
    Case("vertices", 2, 20, 35, 40, "vertices"),
    Case("one-vertex", 2, 1, 1, 3),
    Case("one-row", 2, 1, 17, 9),
    Case("one-column", 2, 17, 1, 9),
    Case("two-by-two", 2, 2, 2, 9),
    Case("one-point", 1, 40, 40, 1),
    Case("no-points", 2, 5, 4, 0),
    Case("no-samples", 0, 5, 4, 6),
)
# Small enough for gradcheck (of invert_grid).
SMALL = (Case("small", 2, 4, 5, 4, strength=0.3, reach=0.5), Case("small-mirrored", 1, 3, 4, 3, "mirrored", 0.2, 0.4))
