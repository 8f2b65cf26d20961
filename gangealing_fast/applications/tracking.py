# SPDX-License-Identifier: Apache-2.0
"""Points of a template followed through pictures: where they lie, and painted in colours."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gangealing_fast.applications.squares import Square
from gangealing_fast.geometry import points as points_of
from gangealing_fast.geometry.warps import identity_grid
from gangealing_fast.report.pictures import flow_pictures

Colours = Literal["edit", "place"]

CHUNK = 1 << 20
"""Points that are carried and painted at a time: memory does not grow with their number."""
_WHEEL = 256


class Marks(NamedTuple):
    """Points `[P, 2]` in pixels of a template of side 1 at the origin (edges at -1 and 1), their colours `[P, 3]` in [-1, 1] and
    opacities `[P]` in [0, 1]."""

    places: Tensor
    colours: Tensor
    opacity: Tensor


def lattice(side: int, rows: slice = slice(None)) -> Tensor:
    """`[side² (or less rows), 2]`: the centres of the squares into which a template is cut, row by row, its edges at -1 and 1."""
    first, last, _ = rows.indices(side)
    x = (torch.arange(side) * 2 + 1) / side - 1
    y = x[first:last]
    return torch.stack([x.expand(len(y), -1), y[:, None].expand(-1, side)], -1).reshape(-1, 2)


def in_picture(square: Square, grid: Tensor, places: Tensor) -> Tensor:
    """Where points `[P, 2]` of the template, its edges at -1 and 1, lie in a picture: `[P, 2]` in its pixels.

    square, grid `[1, F, F, 2]`: of the look at that picture (`Aligner.look`).
    """
    size = grid.shape[1]
    pixels = ((places + 1) * (size / 2) - 0.5)[None].to(grid.device)
    return square.leave(points_of.from_template(grid, pixels, square.images.shape[3]))[0]


def marks(edit: Tensor, side: int, colours: Colours) -> Iterator[Marks]:
    """The points of a lattice of `side`² that an edit `[1, 4, R, R]` covers (see `read_edit`), `CHUNK` at a time.

    colours: those of the edit, or one for each place: direction from the template's middle is hue, distance is saturation.
    """
    rows = max(1, CHUNK // side)
    wheel = flow_pictures(identity_grid(_WHEEL, _WHEEL)[None])
    for top in range(0, side, rows):
        places = lattice(side, slice(top, top + rows)).to(edit.device)
        drawn = _read(edit, places)
        seen = drawn[:, 3] > 1 / 512
        places, drawn = places[seen], drawn[seen]
        if colours == "place":
            painted = _read(wheel.to(edit.device), places)
        else:
            painted = 2 * drawn[:, :3] / drawn[:, 3:] - 1
        yield Marks(places, painted, drawn[:, 3].clamp(max=1))


def _read(maps: Tensor, places: Tensor) -> Tensor:
    """`[P, C]`: what maps `[1, C, R, R]` hold at places `[P, 2]`."""
    return F.grid_sample(maps, places[None, None], mode="bilinear", padding_mode="border", align_corners=False)[0, :, 0].mT


def paint(
    picture: Tensor, square: Square, grid: Tensor, edit: Tensor, *, side: int, radius: float, colours: Colours
) -> tuple[Tensor, float]:
    """A picture `[1, 3, H, W]` in [-1, 1] with the points of `marks` splatted onto it, and the share of it that they cover.

    A point is a Gaussian of standard deviation `radius` pixels, at most as opaque as the edit is there. square, grid: as in
    `in_picture`. Points are added up in chunks: the result is that of all of them at once.
    """
    height, width = picture.shape[2:]
    sums, total = picture.new_zeros(1, 4, height, width), picture.new_zeros(1, 1, height, width)
    nothing, sigma = torch.zeros_like(sums), picture.new_full((1,), radius)
    for chunk in marks(edit.to(picture), side, colours):
        if not len(chunk.places):
            continue
        places = in_picture(square, grid, chunk.places)[None].to(picture)
        values = torch.cat([chunk.colours, chunk.opacity[:, None]], 1)[None].to(picture)
        spread = sigma[:, None].expand(places.shape[:2])
        # The operator's registered form returns the sum of weights too, by which chunks are joined.
        mean, weight = torch.ops.gangealing_fast.splat2d(nothing, places, values, spread, True)
        sums += mean * (weight.clamp(min=1) + 1e-8)
        total += weight
    mean = sums / total.clamp(min=1e-6)
    opacity = mean[:, 3:] * total.clamp(max=1)
    return torch.lerp(picture, mean[:, :3], opacity), float(opacity.mean())
