# SPDX-License-Identifier: Apache-2.0
"""Drawn pictures in known poses, and a network without weights that tells their places apart."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gangealing_fast.congealing import FeatureNetwork
from gangealing_fast.congealing.features import Tap, places
from gangealing_fast.congealing.transforms import carry, similarity_matrix

SIDE = 96
COUNT = 5


class Colours(nn.Module):
    """A network without weights of stride 4: the mean colour of a cell, and how it differs between sides."""

    def forward(self, x: Tensor) -> Tensor:
        mean = F.avg_pool2d(x, 4)
        wide = F.avg_pool2d(x, 12, 4, 4, count_include_pad=False)
        across = F.avg_pool2d(x - x.roll(5, 3), 12, 4, 4)
        down = F.avg_pool2d(x - x.roll(5, 2), 12, 4, 4)
        return torch.cat([mean, wide, across, down], 1)


def colours() -> FeatureNetwork:
    run = Colours()
    return FeatureNetwork(
        "colours", lambda x: [Tap(run(x), 4.0, 1.5, x.shape[-1])], coarse=(64, 16), fine=(80, 20), side_by_side=True
    )


def scene(seed: int = 0) -> Tensor:
    """A picture `[3, 96, 96]` of smooth blotches, most of them in its middle."""
    source = torch.Generator().manual_seed(seed)
    noise = F.interpolate(torch.randn(1, 3, 9, 9, generator=source), size=SIDE, mode="bicubic")[0]
    along = torch.linspace(-1, 1, SIDE)
    return (noise * torch.exp(-2 * (along.square() + along[:, None].square()))).clamp(-1, 1)


def posed(picture: Tensor, count: int = COUNT, seed: int = 1) -> tuple[Tensor, Tensor]:
    """The picture in `count` poses `[n, 3, 96, 96]`, and the matrices `[n, 3, 3]` that put it there, in pixels."""
    source = torch.Generator().manual_seed(seed)
    turn, size, x, y = ((torch.rand(count, generator=source) * 2 - 1) * most for most in (0.45, 0.2, 0.2, 0.2))
    scale = size.exp()
    matrix = similarity_matrix(torch.stack([scale * turn.cos(), scale * turn.sin(), x, y], 1))
    grid = F.affine_grid(torch.linalg.inv(matrix)[:, :2], [count, 3, SIDE, SIDE], align_corners=False)
    seen = F.grid_sample(picture.expand(count, -1, -1, -1), grid, padding_mode="border", align_corners=False)
    pixel = torch.tensor([[SIDE / 2, 0, SIDE / 2 - 0.5], [0, SIDE / 2, SIDE / 2 - 0.5], [0, 0, 1]], dtype=torch.float64)
    return seen, pixel @ matrix.double() @ torch.linalg.inv(pixel)


def pair_error(found: Tensor, true: Tensor) -> float:
    """Mean distance in pixels by which middle points of one picture are carried to a wrong place of another."""
    middle = places(4).double()[None] * SIDE / 5 + SIDE / 2
    there = carry(true, middle.expand(len(true), -1, -1))
    common = carry(found, there)
    wrong = [
        carry(torch.linalg.inv(found), common[row].expand(len(found), -1, -1)).sub(there).norm(dim=-1).mean()
        for row in range(len(found))
    ]
    return float(torch.stack(wrong).mean())
