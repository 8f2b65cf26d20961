# SPDX-License-Identifier: Apache-2.0
"""Where between cells something lies: the softmax-weighted middle of the 3x3 cells around the best."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def cells_around(number: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """The 3x3 cells around cells `number` `[M]` of a square of `side` cells a side: `[M, 9]`, and which of them are inside.

    Those that are not are the nearest that are.
    """
    offset = _offsets()
    x, y = (number % side)[:, None] + offset[:, 0], (number // side)[:, None] + offset[:, 1]
    inside = (x >= 0) & (x < side) & (y >= 0) & (y < side)
    return y.clamp(0, side - 1) * side + x.clamp(0, side - 1), inside


def weighted_middle(value: Tensor, inside: Tensor, temperature: float) -> Tensor:
    """`[M, 2]` (x, y), in cells: how far the middle of the cells around is from the fifth. value: of `cells_around`, `[M, 9]`."""
    value = value.masked_fill(~inside, -1.0)
    share = F.softmax((value - value[:, 4:5]) / temperature, -1)
    return (share[..., None] * _offsets().float()).sum(-2)


def _offsets() -> Tensor:
    """`[9, 2]`: (x, y) of the 3x3 cells, row by row."""
    step = torch.arange(9)
    return torch.stack([step % 3 - 1, step // 3 - 1], -1)
