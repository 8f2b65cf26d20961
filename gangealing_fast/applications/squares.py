# SPDX-License-Identifier: Apache-2.0
"""Pictures that are not square, padded to one: the networks see squares, points and edits belong to the pictures as given."""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from gangealing_fast.geometry.warping import PaddingMode


class Square(NamedTuple):
    """Pictures padded to a square `[N, C, S, S]`, and where the original begins in it (x, y) in pixels."""

    images: Tensor
    left: int
    top: int


def to_square(images: Tensor, padding_mode: PaddingMode, *, nothing: float = -1.0) -> Square:
    """Pictures `[N, C, H, W]` in the middle of a square; square ones as they are.

    padding_mode: "reflection" (beyond a whole reflection the edge is repeated), "border", or "zeros", which pads with the value
    `nothing`: -1 is black in a picture, 0 is nothing in a mask. Raises ValueError for another shape, or sides below 2.
    """
    if images.ndim != 4 or min(images.shape[2:]) < 2:
        raise ValueError(f"pictures must be [N, C, H, W] with sides of 2 or more, got {list(images.shape)}.")
    height, width = images.shape[2:]
    if height == width:
        return Square(images, 0, 0)
    side = max(height, width)
    left, top = (side - width) // 2, (side - height) // 2
    wanted = (left, side - width - left, top, side - height - top)
    if padding_mode == "zeros":
        return Square(F.pad(images, wanted, value=nothing), left, top)
    if padding_mode == "reflection":  # a reflection reaches no further than the picture: the rest repeats its edge
        reach = tuple(min(pad, size - 1) for pad, size in zip(wanted, (width, width, height, height), strict=True))
        images = F.pad(images, reach, mode="reflect")
        rest = tuple(pad - done for pad, done in zip(wanted, reach, strict=True))
        return Square(F.pad(images, rest, mode="replicate"), left, top)
    return Square(F.pad(images, wanted, mode="replicate"), left, top)
