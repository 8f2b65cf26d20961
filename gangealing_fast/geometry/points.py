# SPDX-License-Identifier: Apache-2.0
"""Maps of points between a picture and the template it is aligned to, by the grid that aligned it.

A grid says for every template pixel where to read the picture, so template → picture is a bilinear look-up. Picture → template is
the nearest grid point (arXiv 2112.05143, section 4.3) or, between the grid's points, the inverse of that look-up.

Points are pixels (x, y), 0 at the centre of the first pixel. Normalised they are `((p / (n - 1)) - 0.5) * 2 * (r - 1) / r`, which
for r = n puts pixel edges at -1 and 1, as `geometry/warps.py` does.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from gangealing_fast.geometry.warps import identity_grid, invert, transform_points
from gangealing_fast.ops import invert_grid, nearest_grid_point

Method = Literal["nearest", "subpixel"]
PointRule = Literal["exact", "published"]
"""Which map between picture and template: that of the warp itself, or that by which the published figures were made."""


def normalize_points(points: Tensor, size: int, resolution: int | None = None) -> Tensor:
    """Pixels of a picture of side `size` (2 or more) to grid coordinates; `resolution` is `size` if None."""
    resolution = size if resolution is None else resolution
    return (points / (size - 1) - 0.5) * (2 * (resolution - 1) / resolution)


def denormalize_points(points: Tensor, size: int, resolution: int | None = None) -> Tensor:
    """The inverse of `normalize_points`."""
    resolution = size if resolution is None else resolution
    return (points * (resolution / (2 * (resolution - 1))) + 0.5) * (size - 1)


def _check(grid: Tensor, points: Tensor) -> None:
    if grid.ndim != 4 or grid.shape[3] != 2 or points.ndim != 3 or points.shape[2] != 2 or points.shape[0] != grid.shape[0]:
        raise ValueError(f"grid must be [N, H, W, 2] and points [N, P, 2], got {list(grid.shape)} and {list(points.shape)}.")


def to_template(grid: Tensor, points: Tensor, image_size: int, *, method: Method = "nearest") -> Tensor:
    """Points `[N, P, 2]` of square pictures of side `image_size` to template pixels `[N, P, 2]`.

    "nearest": the template pixel, int64, whose grid point lies nearest to the point; the first of them in reading order
    if several do, (-1, -1) for a point that is not finite. "subpixel": the place in the template that `from_template`
    takes to the point, in the grid's dtype (at least float32) and differentiable once, by `ops.invert_grid`, which also
    tells how sure it is; if the grid does not reach the point, the pixel that "nearest" gives.
    """
    _check(grid, points)
    wanted = normalize_points(points.to(grid.dtype), image_size)
    if method == "nearest":
        return nearest_grid_point(grid, wanted)
    if method == "subpixel":
        return invert_grid(grid, wanted)[0]
    raise ValueError(f"the method to find points in the template is one of {', '.join(get_args(Method))}, not {method!r}.")


def from_template(grid: Tensor, points: Tensor, image_size: int) -> Tensor:
    """Template pixels `[N, P, 2]` to points of square pictures of side `image_size`: the grid, bilinearly sampled."""
    _check(grid, points)
    size = points.new_tensor([grid.shape[2], grid.shape[1]], dtype=grid.dtype)
    return _read(grid, (2 * points.to(grid.dtype) + 1) / size - 1, image_size)


def _read(grid: Tensor, place: Tensor, image_size: int) -> Tensor:
    """Pixels `[N, P, 2]` of pictures of side `image_size` that grids hold at `place` `[N, P, 2]`, bilinearly."""
    sampled = F.grid_sample(grid.permute(0, 3, 1, 2), place[:, None], mode="bilinear", padding_mode="border", align_corners=False)
    return denormalize_points(sampled[:, :, 0].mT, image_size)


def published_to_template(residual_flow: Tensor, matrix: Tensor | None, points: Tensor, image_size: int) -> Tensor:
    """Points `[N, P, 2]` of square pictures of side `image_size` to template pixels `[N, P, 2]`, int64, as the original finds them.

    The matrix `[N, 2, 3]`, if there is one, is inverted exactly; then the nearest point of the flow's own grid, identity and
    `residual_flow` `[N, F, F, 2]`, is taken. Raises ValueError if a matrix is singular or not finite.
    """
    flow = identity_grid(*residual_flow.shape[1:3], device=residual_flow.device) + residual_flow
    _check(flow, points)
    wanted = normalize_points(points.to(flow.dtype), image_size)
    return nearest_grid_point(flow, wanted if matrix is None else transform_points(invert(matrix), wanted))


def published_from_template(grid: Tensor, points: Tensor, image_size: int) -> Tensor:
    """As `from_template`, with pixels of the template normalised by the picture's size as the original does.

    `2 ((p / (F - 1)) - 1/2) (S - 1) / S` for a template of side F and pictures of side S; ours has (F - 1) / F for the last factor.
    Both are the same if S = F; else the outermost points differ by `1/F - 1/S`, up to half a pixel of the template.
    """
    _check(grid, points)
    place = normalize_points(points.to(grid.dtype), grid.shape[2], image_size)
    return _read(grid, place, image_size)


def transfer(
    grid_a: Tensor,
    grid_b: Tensor,
    points: Tensor,
    image_size_a: int,
    image_size_b: int,
    *,
    method: Method = "nearest",
) -> Tensor:
    """Points `[N, P, 2]` of pictures A to the matching points of pictures B, through the template; see `to_template`."""
    return from_template(grid_b, to_template(grid_a, points, image_size_a, method=method), image_size_b)


def similarity_from_template(matrix: Tensor, points: Tensor, template_size: int, image_size: int) -> Tensor:
    """Template pixels `[N, P, 2]` to picture pixels by similarity matrices `[N, 2, 3]` alone, without a grid."""
    return denormalize_points(transform_points(matrix, normalize_points(points, template_size)), image_size)


def similarity_to_template(matrix: Tensor, points: Tensor, template_size: int, image_size: int) -> Tensor:
    """The exact inverse of `similarity_from_template`. Raises ValueError if a matrix is singular or not finite."""
    return denormalize_points(transform_points(invert(matrix), normalize_points(points, image_size)), template_size)


def mirror_points(points: Tensor, mirrored: Tensor, image_size: int) -> Tensor:
    """Pixels `[N, P, 2]` of pictures of width `image_size` as they lie in `warps.mirror_pictures` of them: x becomes
    `image_size - 1 - x` if `mirrored` `[N]` (bool) says so."""
    return torch.where(mirrored[:, None, None], torch.stack([image_size - 1 - points[..., 0], points[..., 1]], -1), points)
