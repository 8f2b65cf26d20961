# SPDX-License-Identifier: Apache-2.0
"""Pictures that are not square, padded to one: the networks see squares, points and edits belong to the pictures as given."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gangealing_fast.geometry.warping import PaddingMode


class Square(NamedTuple):
    """Pictures padded to a square `[N, C, S, S]`, and where the original begins in it (x, y) in pixels."""

    images: Tensor
    left: int
    top: int


# Beyond -1 and 1 resampling may overshoot a little; pictures in 0..255, or normalised by a mean and a deviation, reach further.
LARGEST = 1.5


def check_pictures(images: Tensor) -> None:
    """Raise ValueError or TypeError unless `images` are floating pictures `[N, 3, H, W]` in [-1, 1], with sides of 2 or more."""
    if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[1] != 3 or min(images.shape[2:]) < 2:
        shape = list(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(f"pictures must be [N, 3, H, W] with sides of 2 or more, got {shape}.")
    if not images.is_floating_point():
        raise TypeError(
            f"pictures must be floating numbers in [-1, 1], got {images.dtype}; images.float() / 127.5 - 1 makes them so."
        )
    if images.numel() and not torch.compiler.is_compiling():
        low, high = (float(value) for value in images.detach().aminmax())
        if max(-low, high) > LARGEST:
            raise ValueError(
                f"pictures must lie in [-1, 1], but reach from {low:g} to {high:g}; of 0..255 it is images / 127.5 - 1."
            )


def check_points(images: Tensor, points: Tensor) -> None:
    """Raise ValueError or TypeError unless `points` are real numbers `[N, P, 2]`, N as in `images` `[N, 3, H, W]`."""
    if not isinstance(points, Tensor) or points.is_complex() or points.dtype == torch.bool:
        kind = points.dtype if isinstance(points, Tensor) else type(points).__name__
        raise TypeError(f"points must be a tensor of numbers [N, P, 2], got {kind}.")
    if points.ndim != 3 or points.shape[2] != 2 or points.shape[0] != len(images):
        raise ValueError(f"points must be [N, P, 2] with N = {len(images)} as there are pictures, got {list(points.shape)}.")


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
    if 0 in images.shape[:2]:  # reflection padding refuses empty batches
        return Square(images.new_zeros(*images.shape[:2], side, side), left, top)
    wanted = (left, side - width - left, top, side - height - top)
    if padding_mode == "zeros":
        return Square(F.pad(images, wanted, value=nothing), left, top)
    if padding_mode == "reflection":  # a reflection reaches no further than the picture: the rest repeats its edge
        reach = tuple(min(pad, size - 1) for pad, size in zip(wanted, (width, width, height, height), strict=True))
        images = F.pad(images, reach, mode="reflect")
        rest = tuple(pad - done for pad, done in zip(wanted, reach, strict=True))
        return Square(F.pad(images, rest, mode="replicate"), left, top)
    return Square(F.pad(images, wanted, mode="replicate"), left, top)
