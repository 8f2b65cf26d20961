# SPDX-License-Identifier: Apache-2.0
"""Coordinate descent over elementary transforms: one sweep of congealing, for a stack or for new pictures.

A transform is a matrix `[N, 2, 3]` from template to picture (`geometry/warps.py`). A similarity is moved by rotation, log scale,
x-shift and y-shift; an affine map by the seven of Learned-Miller, PAMI 2006: rotation, log x-scale, log y-scale, x-shear, y-shear,
x-shift and y-shift. Linear moves multiply from the right, so that they turn and stretch about the template's middle; shifts add.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from gangealing_fast.congealing.fields import Field, Pixels
from gangealing_fast.geometry.warps import identity_grid, transform_points

Model = Literal["similarity", "affine"]
MOVES: dict[Model, tuple[str, ...]] = {
    "similarity": ("rotation", "log scale", "x-shift", "y-shift"),
    "affine": ("rotation", "log x-scale", "log y-scale", "x-shear", "y-shear", "x-shift", "y-shift"),
}
FACTORS = (-1.0, -0.5, 0.5, 1.0)
"""The sizes of a move that are tried, in steps."""
TURN, STEP = math.radians(20.0), 0.16
"""Coarsest steps: of rotation in radians; of log scales, shears and shifts, in normalised units (the picture is 2 wide)."""
FAR_TURN, FAR = math.radians(45.0), 0.35
"""How far a rotation, and anything else, goes for one `penalty`."""
PICTURES = 128
"""That are moved at once, so that memory for trials does not grow with the stack."""


@dataclass(frozen=True)
class Stage:
    """What a sweep goes by. scale: of the steps. penalty: bits that a transform at FAR costs. pixels: of the stack."""

    model: Model
    pixels: Pixels
    scale: float
    penalty: float


def warp(images: Tensor, matrices: Tensor, pixels: Pixels) -> Tensor:
    """Pictures `[N, C, H, W]` under F transforms each, `[N, F, 2, 3]`: `[N, C, F, H, W]`.

    Beyond its edges a binary picture is 0, and any other goes on as at the edge.
    """
    count, moves = matrices.shape[:2]
    height, width = images.shape[2:]
    grid = transform_points(matrices.flatten(0, 1), identity_grid(height, width, dtype=images.dtype, device=images.device)[None])
    padding = "zeros" if pixels == "binary" else "border"
    moved = grid_sample(images, grid.view(count, moves * height, width, 2), padding_mode=padding, align_corners=False)
    return moved.view(count, images.shape[1], moves, height, width)


def sweep(images: Tensor, matrices: Tensor, warped: Tensor, field: Field, stage: Stage, *, members: bool) -> tuple[Tensor, Tensor]:
    """Make every move once, in each picture if that lowers its share of the entropy; the new matrices and warped pictures.

    images, warped: `[N, C, H, W]` in [0, 1], as they are and under `matrices` `[N, 2, 3]`. members: the field is that of `warped`,
    and follows it move by move; otherwise it stays as it is.
    """
    bins = field.totals.shape[1]
    for name in MOVES[stage.model]:
        parts = [
            _best(images[part], matrices[part], warped[part], field, stage, name, members)
            for part in torch.arange(len(images)).split(PICTURES)
        ]
        matrices, warped = (torch.cat(found) for found in zip(*parts, strict=True))
        if members:
            field = Field.of(warped, bins)
    return matrices, warped


def _best(
    images: Tensor, matrices: Tensor, warped: Tensor, field: Field, stage: Stage, name: str, members: bool
) -> tuple[Tensor, Tensor]:
    """Each picture under the best size of one move, or as it was if none is better."""
    tried = torch.cat([matrices[:, None], move(matrices, name, stage.scale)], 1)
    values = torch.cat([warped[:, :, None], warp(images, tried[:, 1:], stage.pixels)], 2)
    bits = field.share(values, warped if members else None) + stage.penalty * distance(tried)
    choice = bits.argmin(1)  # the first of equals, so that a picture stays if nothing is better
    row = torch.arange(len(images), device=images.device)
    return tried[row, choice], values[row, :, choice]


def move(matrices: Tensor, name: str, scale: float) -> Tensor:
    """Matrices `[N, 2, 3]` moved by every one of FACTORS times the step of this move times `scale`: `[N, F, 2, 3]`."""
    size = matrices.new_tensor(FACTORS) * ((TURN if name == "rotation" else STEP) * scale)
    one, none = torch.ones_like(size), torch.zeros_like(size)
    linear, shift = matrices[:, None, :, :2], matrices[:, None, :, 2:].expand(-1, len(FACTORS), -1, -1)
    if name in ("x-shift", "y-shift"):
        offset = torch.stack([size, none] if name == "x-shift" else [none, size], 1)
        return torch.cat([linear.expand(-1, len(FACTORS), -1, -1), shift + offset[..., None]], 3)
    entries = {
        "rotation": (size.cos(), -size.sin(), size.sin(), size.cos()),
        "log scale": (size.exp(), none, none, size.exp()),
        "log x-scale": (size.exp(), none, none, one),
        "log y-scale": (one, none, none, size.exp()),
        "x-shear": (one, size, none, one),
        "y-shear": (one, none, size, one),
    }[name]
    return torch.cat([linear @ torch.stack(entries, 1).view(-1, 2, 2), shift], 3)


def distance(matrices: Tensor) -> Tensor:
    """How far transforms `[..., 2, 3]` are from the identity: 1 at a turn of FAR_TURN, at a log scale, shear or shift of FAR.

    A linear map is the sum of a turn with a scale (a, b) and of a mirrored one (c, d), whose ratio measures shear and uneven scale.
    """
    (xx, xy, x), (yx, yy, y) = (row.unbind(-1) for row in matrices.unbind(-2))
    a, b, c, d = (xx + yy) / 2, (yx - xy) / 2, (xx - yy) / 2, (xy + yx) / 2
    even, uneven = (a.square() + b.square()).clamp(min=1e-12), c.square() + d.square()
    area = (even - uneven).clamp(min=1e-6)  # of a mirrored or flat map: next to nothing, so that it costs much
    far = (area.log() / 2).square() + uneven / even + x.square() + y.square()
    return (torch.atan2(b, a) / FAR_TURN).square() + far / FAR**2


def common_transform(matrices: Tensor) -> Tensor:
    """`[1, 2, 3]`: what to multiply transforms `[N, 2, 3]` with from the right, so that they have no transform in common.

    Afterwards the mean linear part is a multiple of the identity, the mean logarithm of the area and the mean shift are zero.
    """
    linear, shift = matrices[:, :, :2], matrices[:, :, 2].mean(0)
    mean = linear.mean(0)
    size = (torch.linalg.det(linear).log().mean() / 2).exp() / torch.linalg.det(mean).sqrt()
    inverse = torch.linalg.inv(mean)
    return torch.cat([inverse / size, -(inverse @ shift)[:, None]], 1)[None]
