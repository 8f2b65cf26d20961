# SPDX-License-Identifier: Apache-2.0
"""Pictures of any sizes as a stack of small squares with values in [0, 1], which the entropy method works on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gangealing_fast.congealing.fields import Pixels
from gangealing_fast.congealing.records import Pictures
from gangealing_fast.runtime.errors import UserError

_ALIKE = 0.02
"""How far values in [0, 1] may lie apart and still count as equal."""


@dataclass(frozen=True)
class Look:
    """How pictures become values. channels: that they have, 1 or 3. inverted: binary pictures with ink darker than their paper."""

    channels: int
    pixels: Pixels
    inverted: bool


def small_squares(
    images: Tensor | Pictures | Sequence[Tensor], side: int, names: Sequence[str] | None = None
) -> tuple[Tensor, Tensor]:
    """Pictures in the middles of squares, `[N, C, side, side]` in [0, 1], and where they lie: `[N, 3, 3]` float64.

    The matrices map a picture's pixels to its square, whose edges lie at -1 and 1. Around a picture its edge goes on; what its mask
    (a second or fourth channel) leaves out is dark. Raises UserError for other shapes and for values outside [-1, 1].
    """
    rows: list[Tensor] = []
    places: list[Tensor] = []
    for index in range(len(images)):
        name = f"picture {index}" if names is None else str(names[index])
        picture, place = _square(images[index], side, name)
        if rows and picture.shape != rows[0].shape:
            raise UserError(
                f"{name} has {picture.shape[0]} channels, the first picture {rows[0].shape[0]}: give all the same number"
            )
        rows.append(picture)
        places.append(place)
    if not rows:
        return torch.zeros(0, 1, side, side), torch.zeros(0, 3, 3, dtype=torch.float64)
    return torch.stack(rows), torch.stack(places)


def _square(picture: Tensor, side: int, name: str) -> tuple[Tensor, Tensor]:
    if picture.ndim != 3 or picture.shape[0] not in (1, 2, 3, 4) or min(picture.shape[1:]) < 2:
        raise UserError(
            f"{name} is {list(picture.shape)}: pictures are [C, H, W] with 1 or 3 channels and perhaps one more, a mask"
        )
    picture = picture.detach().float().cpu()
    if not bool((picture.abs() <= 1.0001).all()):
        raise UserError(f"{name} has values outside [-1, 1]: for 0..255 give values / 127.5 - 1")
    picture = ((picture + 1) / 2).clamp(0, 1)
    if picture.shape[0] in (2, 4):
        picture = picture[:-1] * picture[-1:]
    height, width = picture.shape[1:]
    rows, columns = (max(1, round(length * side / max(height, width))) for length in (height, width))
    if (rows, columns) != (height, width):
        picture = F.interpolate(picture[None], (rows, columns), mode="bilinear", align_corners=False, antialias=True)[0]
    top, left = (side - rows) // 2, (side - columns) // 2
    placing = torch.eye(3, dtype=torch.float64)
    for axis, new, old, start in ((0, columns, width, left), (1, rows, height, top)):
        placing[axis, axis] = 2 * new / old / side
        placing[axis, 2] = (new / old + 2 * start) / side - 1
    room = (left, side - columns - left, top, side - rows - top)
    return F.pad(picture[None], room, mode="replicate")[0].clamp(0, 1), placing


def look_of(squares: Tensor, pixels: Pixels | str) -> Look:
    """How to read squares `[N, C, S, S]`. pixels: a kind, or "auto".

    Then pictures whose channels agree are binary if three quarters of their values are next to 0 or 1 and both occur, else grey.
    Raises UserError for colours of pictures with one channel.
    """
    channels = squares.shape[1]
    if pixels == "colour" and channels == 1:
        raise UserError("pixels='colour' needs pictures of 3 channels; these have 1: use pixels='grey'")
    if pixels == "auto":
        pixels = _kind(squares)
    if pixels not in ("binary", "grey", "colour"):
        raise UserError(f"pixels must be auto, binary, grey or colour, got {pixels}")
    edge = torch.cat([squares[..., (0, -1), :].flatten(), squares[..., (0, -1)].flatten()])
    return Look(channels, pixels, pixels == "binary" and bool(edge.median() > 0.5))  # type: ignore[arg-type]


def _kind(squares: Tensor) -> Pixels:
    if squares.shape[1] == 3 and float((squares.amax(1) - squares.amin(1)).max()) > _ALIKE:
        return "colour"
    dark, light = (float(near.float().mean()) for near in (squares < 0.15, squares > 0.85))
    return "binary" if dark + light >= 0.75 and min(dark, light) >= 0.01 else "grey"


def as_values(squares: Tensor, look: Look) -> Tensor:
    """The stack `[N, 1 or 3, S, S]` that the method works on. Raises UserError if the pictures have other channels than `look`."""
    if squares.shape[1] != look.channels:
        raise UserError(f"the pictures have {squares.shape[1]} channels, but the funnel was made with pictures of {look.channels}")
    values = squares if look.pixels == "colour" else squares.mean(1, keepdim=True)
    return 1 - values if look.inverted else values


def check_stack(stack: Tensor, names: Sequence[str] | None = None) -> None:
    """Raises UserError for fewer than 3 pictures, for empty ones, and if all are the same."""
    count = len(stack)
    if count < 3:
        raise UserError(f"there are {count} pictures: joint alignment needs 3 or more")
    flat = stack.flatten(1)
    empty = (flat.amax(1) - flat.amin(1) < _ALIKE).nonzero().flatten().tolist()
    if empty:
        shown = ", ".join(str(k if names is None else names[k]) for k in empty[:3]) + (", ..." if len(empty) > 3 else "")
        raise UserError(f"{len(empty)} of {count} pictures are empty, one value everywhere ({shown}): leave them out")
    if float((stack - stack[:1]).abs().max()) < _ALIKE:
        raise UserError(f"all {count} pictures are the same: there is nothing to align")


def blur(images: Tensor, sigma: float, pixels: Pixels) -> Tensor:
    """Pictures `[N, C, H, W]` under a Gaussian of `sigma` pixels. Beyond the edge binary ones are dark, others go on as there."""
    if sigma <= 0:
        return images
    radius = min(max(1, math.ceil(3 * sigma)), *images.shape[2:])
    kernel = torch.exp(-torch.arange(-radius, radius + 1, dtype=images.dtype).square() / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).to(images.device)
    padded = F.pad(images, (radius,) * 4, mode="constant" if pixels == "binary" else "replicate")
    flat = padded.reshape(-1, 1, *padded.shape[2:])
    return F.conv2d(F.conv2d(flat, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1)).view_as(images)
