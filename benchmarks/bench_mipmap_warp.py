# SPDX-License-Identifier: Apache-2.0
"""The anti-aliased warp of the transformer: full-size pictures to its own side, shrinking more or less."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.case import BOTH, FORWARD, Case, Variant, compiled
from benchmarks.grids import warp_grid
from gangealing_fast.ops.mipmap_warp import mipmap_warp, mipmap_warp_reference

BATCH = 5
# Picture side, grid side, max_levels, zoom of the grid, name of the levels, target against the reference.
SHAPES = (
    (256, 128, 3.5, 1.6, "four levels", 10.0),
    (256, 128, 2.0, 0.8, "two levels", 6.5),
    (128, 128, 1.0, 0.8, "one level", 8.5),
)


def cases() -> list[Case]:
    result = []
    for size, points, levels, zoom, name, target in SHAPES:

        def inputs(device: torch.device, side: int = size, out: int = points, scale: float = zoom) -> tuple[Tensor, ...]:
            grid = warp_grid(BATCH, out, zoom=scale, wobble=0.02)
            return torch.randn(BATCH, 3, side, side).to(device).requires_grad_(), grid.to(device).requires_grad_()

        picture, grid, out = 4.0 * BATCH * 3 * size**2, 4.0 * BATCH * points**2 * 2, 4.0 * BATCH * 3 * points**2
        options: dict[str, Any] = {"padding_mode": "reflection", "max_levels": levels}
        reference = partial(mipmap_warp_reference, **options)
        result.append(
            Case(
                operator="mipmap_warp",
                name=f"[{BATCH}, 3, {size}, {size}] at {points}², {name}",
                inputs=inputs,
                variants=(
                    Variant("ours", partial(mipmap_warp, **options)),
                    Variant("reference", reference),
                    compiled(reference, passes=(BOTH,)),
                ),
                # The pyramid adds a third of the picture: written and read in forward, its gradient in backward.
                moved={FORWARD: 1.67 * picture + grid + out, BOTH: 5 * picture + 3 * grid + 2 * out},
                targets={"reference": target},
                kinks=0.002,
                peak=name == "four levels",
            )
        )
    return result
