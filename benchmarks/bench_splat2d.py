# SPDX-License-Identifier: Apache-2.0
"""Splatting: key points and dense annotations onto pictures."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from benchmarks.case import BOTH, FORWARD, Case, Variant
from gangealing_fast.ops.splat2d import splat2d, splat2d_reference


def _axis(centre: Tensor, sigma: Tensor, size: int) -> Tensor:
    """The weights `[N, P, size]` along one axis, 0 out of reach."""
    pixel = torch.arange(size, dtype=centre.dtype, device=centre.device)
    centre = centre.unsqueeze(-1)
    reached = (pixel >= (centre - 2 * sigma).floor()) & (pixel <= (centre + 2 * sigma).ceil())
    inside = (centre >= 0) & (centre < size)
    return torch.where(reached & inside, torch.exp(-((pixel - centre) / sigma).square() / 2), 0.0)


def _products(background: Tensor, xy: Tensor, values: Tensor, sigma: Tensor) -> Tensor:
    batch, channels, height, width = background.shape
    across, down = (_axis(xy[..., i], sigma[:, None, None], size) for i, size in ((0, width), (1, height)))
    values = torch.cat([values, torch.ones_like(values[..., :1])], -1)
    left = (down.unsqueeze(-2) * values.unsqueeze(-1)).flatten(2)  # [N, P, (C + 1) * H]
    sums = (left.mT @ across).view(batch, channels + 1, height, width)
    return (background + sums[:, :-1]) / (sums[:, -1:].clamp(min=1) + 1e-8)


def cases() -> list[Case]:
    result = []
    for batch, size, points, sigma in ((5, 256, 1000, 1.2), (5, 256, 10_000, 1.2), (1, 512, 20_000, 2.0)):

        def inputs(
            device: torch.device, batch: int = batch, size: int = size, points: int = points, sigma: float = sigma
        ) -> tuple[Tensor, ...]:
            tensors = (
                torch.rand(batch, 3, size, size),
                torch.rand(batch, points, 2) * size,
                torch.randn(batch, points, 3),
                torch.full((batch,), sigma),
            )
            return tuple(tensor.to(device).requires_grad_() for tensor in tensors)

        picture = 4.0 * batch * 3 * size**2
        result.append(
            Case(
                operator="splat2d",
                name=f"{batch} x {points} points of sigma {sigma} on {size}²",
                inputs=inputs,
                variants=(
                    Variant("ours", partial(splat2d, soft=True)),
                    Variant("reference", partial(splat2d_reference, soft=True), note="scatter-add of windows"),
                    *([Variant("torch", _products, note="one matrix product of weights along y and x")] if points <= 1000 else []),
                ),
                moved={FORWARD: 2 * picture, BOTH: 5 * picture},
                targets={"reference": 5},
                tolerance=3e-4,
            )
        )
    return result
