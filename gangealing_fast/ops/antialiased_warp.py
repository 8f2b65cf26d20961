# SPDX-License-Identifier: Apache-2.0
"""Warping a picture by a matrix or a grid without aliasing, in the terms of kornia's `warp_affine` and `warp_perspective`.

A matrix M, `[2, 3]` or `[3, 3]`, carries pixels of the picture to pixels of the output: (x, y), 0 the centre of the first pixel.
Output pixel q then shows the picture at inv(M) q. A plain sampler reads four texels there, however many the output pixel covers;
`ops.mipmap_warp` reads a level of a pyramid whose texels are as far apart as the places of neighbouring output pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gangealing_fast.ops._common import check_tensor, compute_dtype
from gangealing_fast.ops.mipmap_warp import mipmap_warp

FARTHEST = 1e4
"""Half sizes of the picture: where a pixel reads that no place of the picture is seen at, beyond the horizon of a homography."""


def antialiased_warp(
    image: Tensor,
    transform: Tensor,
    size: tuple[int, int] | None = None,
    *,
    padding_mode: str = "zeros",
    max_levels: float = 16.0,
) -> Tensor:
    """Warp pictures so that what is made smaller is averaged instead of aliased.

    Args:
        image: `[N, C, H, W]`, float64, float32, bfloat16 or float16, H and W at least 1.
        transform: matrices `[N, 2, 3]` or `[N, 3, 3]`, or one of them `[1, ...]` for all, from pixels of the picture to pixels of
            the output, as kornia's `warp_affine` and `warp_perspective` take them; or a grid `[N, h, w, 2]` of places (x, y) to
            read, normalised with pixel edges at -1 and 1 (`align_corners=False` of `torch.nn.functional.grid_sample`).
        size: (h, w) of the output; needed with matrices, and must be that of the grid, if it is given, with a grid.
        padding_mode: "zeros", "border" or "reflection", what is read beyond the picture's edge.
        max_levels: from 1 (plain bilinear sampling) to 16; scales down to 2^-(max_levels - 1) are averaged, smaller ones alias.

    Returns `[N, C, h, w]` in the picture's dtype. Differentiable to any order in picture and transform. The level follows the
    larger of the distances to the four neighbours, so that a picture that is made smaller along one axis alone is blurred along
    both. Where a homography shows nothing of the picture, it is read far beyond its edge.
    Raises TypeError or ValueError for inputs that do not fit together. A matrix without an inverse gives NaN.
    """
    check_tensor("antialiased_warp", "image", image, 4, "[N, C, H, W]")
    check_tensor("antialiased_warp", "transform", transform, (3, 4), "[N, 2, 3], [N, 3, 3] or [N, h, w, 2]")
    if transform.dim() == 4:
        if size is not None and tuple(size) != tuple(transform.shape[1:3]):
            raise ValueError(f"antialiased_warp: size is {tuple(size)}, but the grid is of {tuple(transform.shape[1:3])}.")
        return mipmap_warp(image, transform, padding_mode=padding_mode, max_levels=max_levels)
    if tuple(transform.shape[1:]) not in ((2, 3), (3, 3)):
        raise ValueError(f"antialiased_warp: transform must be [N, 2, 3], [N, 3, 3] or a grid, not {list(transform.shape)}.")
    if transform.shape[0] not in (1, image.shape[0]):
        raise ValueError(
            f"antialiased_warp: {transform.shape[0]} matrices for {image.shape[0]} pictures; give one for each, or one."
        )
    if size is None or len(size) != 2 or min(size) < 1:
        raise ValueError(f"antialiased_warp: with matrices size must be (height, width) of the output, got {size!r}.")
    if min(image.shape[2:]) < 1:
        raise ValueError(f"antialiased_warp: image must have at least one pixel, got {list(image.shape)}.")
    grid = _grid(transform, (image.shape[2], image.shape[3]), size).expand(image.shape[0], -1, -1, -1)
    return mipmap_warp(image, grid, padding_mode=padding_mode, max_levels=max_levels)


def _grid(matrix: Tensor, source: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Where the picture of `source` = (height, width) is read for every pixel of the output, normalised: `[N, h, w, 2]`."""
    matrix = matrix.to(compute_dtype(matrix.dtype))
    if matrix.shape[1] == 2:
        last = matrix.new_tensor([0.0, 0.0, 1.0]).expand(matrix.shape[0], 1, 3)
        matrix = torch.cat([matrix, last], 1)
    y = torch.arange(size[0], dtype=matrix.dtype, device=matrix.device)
    x = torch.arange(size[1], dtype=matrix.dtype, device=matrix.device)
    places = torch.stack([x.expand(size[0], -1), y[:, None].expand(-1, size[1]), matrix.new_ones(size)], -1)
    inverse, failed = torch.linalg.inv_ex(matrix)
    inverse = torch.where((failed == 0)[:, None, None], inverse, torch.nan)
    seen = places.flatten(0, 1) @ inverse.mT
    # A matrix and its negative are the same homography: in front is the side on which the middle of the picture lies.
    middle = matrix.new_tensor([(source[1] - 1) / 2, (source[0] - 1) / 2, 1.0])
    seen = seen * torch.sign(matrix[:, 2].detach() @ middle)[:, None, None]
    depth = seen[..., 2:]
    front = depth > torch.finfo(matrix.dtype).eps
    # What lies behind is divided by 1, so that its gradient, which nobody takes, is finite.
    place = seen[..., :2] / torch.where(front, depth, torch.ones_like(depth))
    height, width = source
    normalised = ((2 * place + 1) / matrix.new_tensor([width, height]) - 1).clamp(-FARTHEST, FARTHEST)
    behind = torch.where(depth.isnan(), depth, torch.full_like(depth, FARTHEST)).expand_as(normalised)
    return torch.where(front, normalised, behind).unflatten(1, size)
