# SPDX-License-Identifier: Apache-2.0
"""What joint alignment found out about pictures, in the terms of a look: grids of squares, not matrices of pictures; and back."""

from __future__ import annotations

import torch
from torch import Tensor

from gangealing_fast.applications.looks import Look
from gangealing_fast.applications.squares import Square
from gangealing_fast.congealing.placing import is_affine, reading_places
from gangealing_fast.congealing.records import Registered
from gangealing_fast.geometry.warping import PaddingMode
from gangealing_fast.geometry.warps import identity_grid, mirror_grid, resize_grid
from gangealing_fast.models.spatial_transformer import Alignment
from gangealing_fast.ops import mipmap_warp


def placed_look(
    found: Registered,
    square: Square,
    side: int,
    *,
    padding_mode: PaddingMode,
    output_resolution: int | None = None,
    alpha: float = 1.0,
) -> Look:
    """The look at pictures that lie on templates of `side` pixels as `found` says. square: the pictures, all of one size.

    Of pictures on the device "meta" the result has the aligned pictures' shape alone. Matrix and residual flow are those of the
    picture's mirror image if that was aligned, as `Aligner.warp` has them. Under a homography there is no matrix `[2, 3]`, and the
    residual flow is the whole warp.
    """
    dtype = square.images.dtype
    resolution = side if output_resolution is None else output_resolution
    grid = _grid(found, square, side, resolution).to(dtype)
    matrix, residual = _parts(found, square, side)
    if alpha != 1:
        base = identity_grid(resolution, resolution, dtype=dtype)[None]
        grid = base + alpha * (grid - base)
    if square.images.is_meta:
        image = torch.empty(len(grid), square.images.shape[1], resolution, resolution, dtype=dtype, device="meta")
    else:
        image = mipmap_warp(square.images, grid, padding_mode=padding_mode)
    alignment = Alignment(image, grid, residual.to(dtype), None if matrix is None else matrix.to(dtype))
    return Look(square, found.cluster, found.mirrored, alignment)


def starting_matrix(look: Look, side: int) -> Tensor:
    """`[N, 3, 3]`, float64: the similarities that a look found, from pixels of pictures to those of a template of `side` pixels.

    Raises ValueError if the look has no matrix.
    """
    if look.alignment.matrix is None:
        raise ValueError("a start needs a similarity, which this look does not have.")
    last = torch.tensor([[[0.0, 0.0, 1.0]]], dtype=torch.float64).expand(len(look.mirrored), -1, -1)
    shown = _mirror(look.mirrored) @ torch.cat([look.alignment.matrix.double(), last], 1)
    return torch.linalg.inv(torch.linalg.inv(_entering(look.square)) @ shown @ _normalizing(side))


def _grid(found: Registered, square: Square, side: int, resolution: int) -> Tensor:
    """Where the squares are read, `[N, R, R, 2]` normalised, in float64."""
    places = square.enter(reading_places(found.matrix, found.flow, side, resolution))
    return (2 * places + 1) / square.images.shape[3] - 1


def _parts(found: Registered, square: Square, side: int) -> tuple[Tensor | None, Tensor]:
    """Matrix `[N, 2, 3]` and residual flow `[N, side, side, 2]`, normalised, of the mirror images of those that are mirrored."""
    if not is_affine(found.matrix):
        whole = mirror_grid(_grid(found, square, side, side), found.mirrored)
        return None, whole - identity_grid(side, side, dtype=torch.float64)
    whole_matrix = _entering(square) @ torch.linalg.inv(found.matrix.double()) @ torch.linalg.inv(_normalizing(side))
    return (_mirror(found.mirrored) @ whole_matrix)[:, :2], resize_grid(found.flow.double(), side) * (2 / side)


def _mirror(mirrored: Tensor) -> Tensor:
    """`[N, 3, 3]`: normalised x changes its sign if the picture is mirrored."""
    made = torch.eye(3, dtype=torch.float64).repeat(len(mirrored), 1, 1)
    made[:, 0, 0] = torch.where(mirrored, -1.0, 1.0).double()
    return made


def _normalizing(side: int) -> Tensor:
    """`[3, 3]`: pixels of a square of `side` pixels to [-1, 1]."""
    return torch.tensor([[2 / side, 0.0, 1 / side - 1], [0.0, 2 / side, 1 / side - 1], [0.0, 0.0, 1.0]], dtype=torch.float64)


def _entering(square: Square) -> Tensor:
    """`[3, 3]`: pixels of a picture to the places of its square in [-1, 1]; see `Square.enter`."""
    x, y = square.scale
    enter = [[x, 0.0, x / 2 - 0.5 + square.left], [0.0, y, y / 2 - 0.5 + square.top], [0.0, 0.0, 1.0]]
    return _normalizing(square.images.shape[3]) @ torch.tensor(enter, dtype=torch.float64)
