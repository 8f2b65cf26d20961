# SPDX-License-Identifier: Apache-2.0
"""What `Aligner` carries between pictures and their template, by a look at the pictures: points, and what is drawn on either."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gangealing_fast.applications.looks import Look
from gangealing_fast.applications.squares import to_square
from gangealing_fast.geometry import points as points_of
from gangealing_fast.geometry.points import PointRule
from gangealing_fast.geometry.warping import PaddingMode
from gangealing_fast.ops import invert_grid, mipmap_warp


class Located(NamedTuple):
    """points `[N, P, 2]`; confidence `[N, P]`: 1 where one place fits, less where the warp folds, 0 where it does not reach."""

    points: Tensor
    confidence: Tensor


def points_from_template(look: Look, points: Tensor, size: int, rule: PointRule) -> Tensor:
    """Points `[N, P, 2]` of a template of that side → pixels of the pictures, see `Aligner.from_template`."""
    square, _, mirrored, record, _ = look
    side = square.images.shape[3]
    if rule == "exact":
        found = points_of.from_template(record.grid, points, side)
    elif record.residual_flow is None and record.matrix is not None:
        shown = points_of.similarity_from_template(record.matrix, points.to(record.matrix.dtype), size, side)
        found = points_of.mirror_points(shown, mirrored, side)
    else:
        found = points_of.published_from_template(record.grid, points, side)
    return square.leave(found)


def points_to_template(look: Look, points: Tensor, size: int, rule: PointRule, dtype: torch.dtype) -> Located:
    """Pixels `[N, P, 2]` of the pictures → points of a template of that side, see `Aligner.locate`. Computed in `dtype`.

    Raises ValueError for a look at another size.
    """
    given, points = torch.promote_types(points.dtype, dtype), points.to(dtype)
    record = look.alignment
    if record.grid.shape[1] != size:
        raise ValueError(f"a look at the transformer's own size {size} is needed, got one of {record.grid.shape[1]}.")
    if rule == "exact" or record.residual_flow is None:
        return Located(*(found.to(given) for found in exact_location(look, points, size)))
    side = look.square.images.shape[3]
    seen = points_of.mirror_points(look.square.enter(points), look.mirrored, side)
    found = points_of.published_to_template(record.residual_flow, record.matrix, seen, side).to(given)
    return Located(found, torch.ones_like(found[..., 0]))


def exact_location(look: Look, points: Tensor, size: int) -> Located:
    """The exact rule of `points_to_template`, in the dtype of the points."""
    square, _, mirrored, record, _ = look
    side = square.images.shape[3]
    shifted = square.enter(points)
    if record.residual_flow is None and record.matrix is not None:  # a similarity has an exact inverse everywhere
        seen = points_of.mirror_points(shifted, mirrored, side)
        found = points_of.similarity_to_template(record.matrix, seen, size, side)
        inside = ((found > -0.5 - 1e-4) & (found < size - 0.5 + 1e-4)).all(-1)
        return Located(found, inside.to(found.dtype))
    return Located(*invert_grid(record.grid, points_of.normalize_points(shifted, side)))


def maps_to_template(look: Look, maps: Tensor, padding_mode: PaddingMode) -> Tensor:
    """What is drawn on the pictures, `[N, C, H, W]`, as it lies on the template, see `Aligner.maps_to_template`."""
    drawn = to_square(maps, padding_mode, nothing=0.0).images
    return mipmap_warp(drawn, look.alignment.grid, padding_mode=padding_mode)


def maps_from_template(
    look: Look, maps: Tensor, shape: tuple[int, int], rows: slice, size: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """What is drawn on a template of that side, `[N, C, R, R]`, on pictures of that (height, width), and how surely.

    Both in the rows asked for alone, see `Aligner.maps_from_template`.
    """
    n, (height, width) = maps.shape[0], shape
    first, last, _ = rows.indices(height)
    # The pixels above and below tell how coarsely a pixel reads the map.
    low, high = max(0, first - 1), min(height, last + 1)
    y, x = torch.meshgrid(torch.arange(low, high), torch.arange(width), indexing="ij")
    pixels = torch.stack([x, y], -1).reshape(1, -1, 2).to(look.alignment.grid.device, dtype).expand(n, -1, -1)
    place, confidence = exact_location(look, pixels, size)
    grid = ((2 * place + 1) / size - 1).reshape(n, high - low, width, 2)
    wanted = slice(first - low, last - low)
    confidence = confidence.reshape(n, 1, high - low, width)[:, :, wanted]
    drawn = mipmap_warp(maps, grid, padding_mode="border")[:, :, wanted]
    return torch.where(confidence > 0, drawn, 0.0), confidence
