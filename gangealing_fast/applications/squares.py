# SPDX-License-Identifier: Apache-2.0
"""Pictures that are not square, padded to one: the networks see squares, points and edits belong to the pictures as given.

The square of a panorama would be many times as large as the panorama. So a picture is made smaller before it is padded, if its
square had more pixels than `LARGEST` and more than four times its own.
"""

from __future__ import annotations

import math
from collections.abc import Sized
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gangealing_fast.geometry.warping import PaddingMode

LARGEST = 1 << 25


class Square(NamedTuple):
    """Pictures padded to a square `[N, C, S, S]`, and where the original begins in it (x, y) in pixels.

    scale: (x, y), by how much the original was made smaller.
    """

    images: Tensor
    left: int
    top: int
    scale: tuple[float, float] = (1.0, 1.0)

    def enter(self, points: Tensor) -> Tensor:
        """Pixels `[..., 2]` of the original to those of the square."""
        corner = points.new_tensor([self.left, self.top])
        if self.scale == (1.0, 1.0):
            return points + corner
        return (points + 0.5) * points.new_tensor(self.scale) - 0.5 + corner

    def leave(self, points: Tensor) -> Tensor:
        """Pixels `[..., 2]` of the square to those of the original."""
        corner = points.new_tensor([self.left, self.top])
        if self.scale == (1.0, 1.0):
            return points - corner
        return (points - corner + 0.5) / points.new_tensor(self.scale) - 0.5


# Beyond -1 and 1 resampling may overshoot a little; pictures in 0..255, or normalised by a mean and a deviation, reach further.
LARGEST_VALUE = 1.5


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
        if max(-low, high) > LARGEST_VALUE:
            raise ValueError(
                f"pictures must lie in [-1, 1], but reach from {low:g} to {high:g}; of 0..255 it is images / 127.5 - 1."
            )


def check_points(images: Sized, points: Tensor) -> None:
    """Raise ValueError or TypeError unless `points` are real numbers `[N, P, 2]`, N the number of `images`, pictures or names."""
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
    most = math.isqrt(max(LARGEST, 4 * height * width))
    if max(height, width) <= most:
        return _padded(images, padding_mode, nothing)
    ratio = most / max(height, width)
    smaller = (max(2, round(height * ratio)), max(2, round(width * ratio)))
    reduced = F.interpolate(images, smaller, mode="bilinear", antialias=True)
    scale = (smaller[1] / width, smaller[0] / height)
    return _padded(reduced, padding_mode, nothing)._replace(scale=scale)


def _padded(images: Tensor, padding_mode: PaddingMode, nothing: float) -> Square:
    height, width = images.shape[2:]
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
