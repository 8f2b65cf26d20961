# SPDX-License-Identifier: Apache-2.0
"""Anti-aliased grid sampling from a mip-map pyramid (GANgealing, arXiv 2112.05143).

1. Level. With grid points in pixels, `((W - 1) x / 2, (H - 1) y / 2)`, d² is the largest squared distance of a point to
   its four neighbours in the grid (replicated at the grid's border), each clamped to at least 1;
   `level = clamp(log2(d), 0, max_levels - 1)`.
2. Pyramid. Level i + 1 is level i reflect-padded by 1, filtered with [1, 3, 3, 1] ⊗ [1, 3, 3, 1] / 64 and halved (an
   axis of length 1 stays). Where the width is no power of two, both axes are first reflect-padded to the next power of
   two of the width, half of the padding (rounded down) on the left and top; an axis that is already longer is left as
   it is.
3. Every level, brought to full size by bilinear interpolation (`align_corners=False`) and cropped, is sampled
   bilinearly at the grid (`ops.grid_sample`, `align_corners=False`); the result interpolates linearly between
   floor(level) and ceil(level).

Gradients reach the image and the grid, the latter also through the level. A pixel is NaN, and passes no gradient on,
where its coordinate or its distance to a neighbour is not finite. The kernels never form the full-size levels: bilinear
sampling of a bilinearly enlarged level is a fixed combination of at most 3x3 texels of the small one.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from gangealing_fast.ops._common import magnitude
from gangealing_fast.ops._dispatch import reference_wanted, run_reference
from gangealing_fast.ops._sampling import register_sampler
from gangealing_fast.ops.grid_sample import (
    PADDING_MODES,
    check_image_and_grid,
    grid_sample_reference,
    pixel_coordinates,
    widest_dtype,
)


def mipmap_levels(grid: Tensor, size: tuple[int, int], max_levels: float) -> Tensor:
    """Pyramid level `[N, h, w]` of every point of `grid` `[N, h, w, 2]` in an image of `size` = (height, width)."""
    points = pixel_coordinates(grid, size, align_corners=True)
    neighbours = (
        torch.cat((points[:, :, :1], points[:, :, :-1]), 2),
        torch.cat((points[:, :, 1:], points[:, :, -1:]), 2),
        torch.cat((points[:, :1], points[:, :-1]), 1),
        torch.cat((points[:, 1:], points[:, -1:]), 1),
    )
    squared = torch.stack([(neighbour - points).square().sum(-1).clamp(min=1) for neighbour in neighbours])
    return (squared.max(0).values.log2() / 2).clamp(0.0, max_levels - 1)


def _reflect(index: Tensor, size: int) -> Tensor:
    if size == 1:
        return torch.zeros_like(index)
    folded = index.abs() % (2 * (size - 1))
    return torch.where(folded < size, folded, 2 * (size - 1) - folded)


def _reflect_pad(x: Tensor, left: int, right: int, top: int, bottom: int) -> Tensor:
    rows = _reflect(torch.arange(-top, x.shape[2] + bottom, device=x.device), x.shape[2])
    columns = _reflect(torch.arange(-left, x.shape[3] + right, device=x.device), x.shape[3])
    return x.index_select(2, rows).index_select(3, columns)


def _blur_and_halve(x: Tensor) -> Tensor:
    tent = torch.tensor((1.0, 3.0, 3.0, 1.0), dtype=x.dtype, device=x.device) / 8
    kernel = torch.outer(tent, tent).expand(x.shape[1], 1, 4, 4)
    # An axis of length 1 is padded to 4 equal texels and so keeps its value and its length.
    extra_width, extra_height = int(x.shape[3] == 1), int(x.shape[2] == 1)
    return F.conv2d(_reflect_pad(x, 1, 1 + extra_width, 1, 1 + extra_height), kernel, stride=2, groups=x.shape[1])


def mipmap_warp_reference(x: Tensor, grid: Tensor, *, padding_mode: str = "border", max_levels: float = 3.5) -> Tensor:
    """Plain torch version of `mipmap_warp`, differentiable to any order; forms every level at full size."""
    dtype = widest_dtype(x, grid)
    height, width = x.shape[2:]
    if x.numel() == 0 or grid.numel() == 0:
        return grid_sample_reference(x, grid, padding_mode=padding_mode)
    image, grid = x.to(dtype), grid.to(dtype)
    broken = ~pixel_coordinates(grid, (height, width), False).isfinite().all(-1)
    points = pixel_coordinates(grid, (height, width), True).detach()
    steps = [(points.diff(dim=axis).square().sum(-1).isfinite(), axis) for axis in (1, 2)]
    for finite, axis in steps:
        pad = (0, 0, 0, 1) if axis == 1 else (0, 1)
        broken = broken | F.pad(~finite, pad) | F.pad(~finite, pad[:-2] + (pad[-1], 0))
    # Squares of larger distances overflow; such points and their neighbours are broken, but must not poison gradients.
    safe = points.abs() < torch.finfo(dtype).max ** 0.5 / 4
    grid = torch.where(safe, grid, 0.0)
    level = mipmap_levels(grid, (height, width), max_levels).unsqueeze(1)

    padded, left, top = image, 0, 0
    if width & (width - 1):
        full = 1 << width.bit_length()
        left, top = (full - width) // 2, max(full - height, 0) // 2
        padded = _reflect_pad(image, left, full - width - left, top, max(full - height, 0) - top)
    small, size = padded, padded.shape[2:]
    result = grid_sample_reference(image, grid, padding_mode=padding_mode) * (1 - level).clamp(min=0)
    for index in range(1, math.ceil(max_levels - 1) + 1):
        small = _blur_and_halve(small)
        enlarged = F.interpolate(small, size, mode="bilinear", align_corners=False)
        enlarged = enlarged[:, :, top : top + height, left : left + width]
        sample = grid_sample_reference(enlarged, grid, padding_mode=padding_mode)
        result = result + sample * (1 - magnitude(level - index)).clamp(min=0)
    return torch.where(broken.unsqueeze(1), torch.nan, result).to(x.dtype)


def _by_number(x: Tensor, grid: Tensor, padding_mode: int, max_levels: float) -> Tensor:
    return mipmap_warp_reference(x, grid, padding_mode=PADDING_MODES[padding_mode], max_levels=max_levels)


def _pyramid_size(x: Tensor, max_levels: float) -> tuple[int, int, int]:
    """Size of the small levels of `x`, `[N, C, texels]`, level after level."""
    height, width = x.shape[2:]
    if width & (width - 1):
        width = 1 << int(width).bit_length()
        height = max(height, width)
    texels = 0
    for _ in range(math.ceil(max_levels - 1)):
        height, width = max(1, height // 2), max(1, width // 2)
        texels += height * width
    return x.shape[0], x.shape[1], texels


_mipmap_warp = register_sampler("mipmap_warp", "float max_levels", _by_number, _pyramid_size)


def mipmap_warp(x: Tensor, grid: Tensor, *, padding_mode: str = "border", max_levels: float = 3.5) -> Tensor:
    """Warp `x` by `grid`, reading a blurred, smaller copy of `x` where the grid is sparse.

    x: `[N, C, H, W]`, float64, float32, bfloat16 or float16, any strides, H and W at least 1.
    grid: `[N, h, w, 2]` of (x, y), normalised to [-1, 1] with pixel edges at ±1; any of these dtypes.
    padding_mode: "zeros", "border" or "reflection"; max_levels: levels are at most `max_levels - 1`, from 1 to 16.
    Returns `[N, C, h, w]` in x's dtype, contiguous; NaN where the grid is not finite. Differentiable to any order; the
    second and higher orders run through the plain reference. Results are bit-identical between runs.
    Raises TypeError or ValueError for inputs that do not fit together.
    """
    check_image_and_grid("mipmap_warp", x, grid, padding_mode)
    if not 1 <= max_levels <= 16:
        raise ValueError(f"mipmap_warp: max_levels must be between 1 and 16, not {max_levels!r}.")
    if reference_wanted():
        return run_reference(mipmap_warp_reference, x, grid, padding_mode=padding_mode, max_levels=max_levels)
    return _mipmap_warp(x, grid, PADDING_MODES.index(padding_mode), float(max_levels))
