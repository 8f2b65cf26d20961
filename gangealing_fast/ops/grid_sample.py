# SPDX-License-Identifier: Apache-2.0
"""Bilinear sampling of an image at the points of a grid.

A grid point (x, y) in [-1, 1] stands for the pixel coordinate `((x + 1) W - 1) / 2` (pixel edges at ±1) or, with
`align_corners`, `(x + 1)(W - 1) / 2` (pixel centres at ±1). A coordinate outside the image

- `zeros`: reads texels of value 0 there;
- `border`: is clamped to [0, W - 1];
- `reflection`: is mirrored at the pixel edges (`align_corners`: at the outermost pixel centres) until it lies inside.

The value is the bilinear interpolation of the four texels around the coordinate. A point whose pixel coordinate is not
finite yields NaN in every channel and passes no gradient on. Arithmetic is float64 where an input is float64, float32
otherwise, so that a half-precision image may be sampled at a float32 grid.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gangealing_fast.ops._common import check_device, check_tensor, magnitude
from gangealing_fast.ops._dispatch import reference_wanted, run_reference
from gangealing_fast.ops._sampling import register_sampler

PADDING_MODES = ("zeros", "border", "reflection")


def widest_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 if any of `tensors` is float64, else float32."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


def pixel_coordinates(grid: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    """Pixel coordinates `[..., 2]` (x, y) of normalised points in an image of `size` = (height, width)."""
    extent = torch.tensor((size[1], size[0]), dtype=grid.dtype, device=grid.device)
    return (grid + 1) * (extent - 1) / 2 if align_corners else ((grid + 1) * extent - 1) / 2


def _into_image(position: Tensor, size: int, padding_mode: str, align_corners: bool) -> Tensor:
    if padding_mode == "zeros":
        # Any coordinate beyond one pixel outside reads zeros only; moving it there keeps the index arithmetic bounded.
        return torch.where((position > -2) & (position < size + 1), position, -2.0)
    if padding_mode == "reflection":
        low, span = (0.0, size - 1) if align_corners else (-0.5, size)
        if span == 0:
            position = torch.zeros_like(position)
        else:
            folded = magnitude(position - low).remainder(2 * span)
            position = torch.where(folded > span, 2 * span - folded, folded) + low
    last = torch.full_like(position, size - 1)
    # Strict comparisons: on the border itself the derivative is 0, as in torch.nn.functional.grid_sample.
    return torch.where(position <= 0, torch.zeros_like(position), torch.where(position >= last, last, position))


def grid_sample_reference(x: Tensor, grid: Tensor, *, padding_mode: str = "zeros", align_corners: bool = False) -> Tensor:
    """Plain torch version of `grid_sample`, differentiable to any order."""
    dtype = widest_dtype(x, grid)
    batch, channels, height, width = x.shape
    out_height, out_width = grid.shape[1:3]
    texels, points = x.to(dtype).flatten(2), pixel_coordinates(grid.to(dtype), (height, width), align_corners)
    finite = points.isfinite().all(-1)
    points = torch.where(finite.unsqueeze(-1), points, 0.0)
    horizontal = _into_image(points[..., 0], width, padding_mode, align_corners)
    vertical = _into_image(points[..., 1], height, padding_mode, align_corners)
    left, top = horizontal.floor().detach(), vertical.floor().detach()
    result = texels.new_zeros(())
    for column, weight_x in ((left, 1 - (horizontal - left)), (left + 1, horizontal - left)):
        for row, weight_y in ((top, 1 - (vertical - top)), (top + 1, vertical - top)):
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            index = row.clamp(0, height - 1).long() * width + column.clamp(0, width - 1).long()
            index = index.view(batch, 1, out_height * out_width).expand(-1, channels, -1)
            weight = torch.where(inside, weight_x * weight_y, 0.0).unsqueeze(1)
            result = result + texels.gather(2, index).view(batch, channels, out_height, out_width) * weight
    return torch.where(finite.unsqueeze(1), result, torch.nan).to(x.dtype)


def _by_number(x: Tensor, grid: Tensor, padding_mode: int, align_corners: bool) -> Tensor:
    return grid_sample_reference(x, grid, padding_mode=PADDING_MODES[padding_mode], align_corners=align_corners)


_grid_sample = register_sampler("grid_sample", "bool align_corners", _by_number)


def check_image_and_grid(operator: str, x: Tensor, grid: Tensor, padding_mode: str) -> None:
    """Raise TypeError or ValueError, in one sentence, where `x` and `grid` cannot be sampled together."""
    check_tensor(operator, "x", x, 4, "[N, C, H, W]")
    check_tensor(operator, "grid", grid, 4, "[N, h, w, 2]")
    check_device(operator, x, grid=grid)
    (batch, _, height, width), (grid_batch, _, _, last) = x.shape, grid.shape
    if last != 2:
        raise ValueError(f"{operator}: the last axis of grid must be 2 (x, y), but its shape is {list(grid.shape)}.")
    if batch != grid_batch:
        raise ValueError(f"{operator}: x has batch size {batch} and grid {grid_batch}; they must be equal.")
    if height == 0 or width == 0:
        raise ValueError(f"{operator}: x has no pixels to sample; its shape is {list(x.shape)}.")
    if padding_mode not in PADDING_MODES:
        raise ValueError(f"{operator}: padding_mode must be one of {', '.join(PADDING_MODES)}, not {padding_mode!r}.")


def grid_sample(x: Tensor, grid: Tensor, *, padding_mode: str = "zeros", align_corners: bool = False) -> Tensor:
    """Sample `x` bilinearly at the points of `grid`.

    x: `[N, C, H, W]`, float64, float32, bfloat16 or float16, any strides, H and W at least 1.
    grid: `[N, h, w, 2]` of (x, y), normalised to [-1, 1]; any of these dtypes, also another one than x's.
    padding_mode: "zeros", "border" or "reflection"; align_corners: whether ±1 are pixel centres (else pixel edges).
    Returns `[N, C, h, w]` in x's dtype, contiguous; NaN where a grid point is not finite. Differentiable to any order;
    the second and higher orders run through the plain reference. Results are bit-identical between runs.
    Raises TypeError or ValueError for inputs that do not fit together.
    """
    check_image_and_grid("grid_sample", x, grid, padding_mode)
    if reference_wanted():
        return run_reference(grid_sample_reference, x, grid, padding_mode=padding_mode, align_corners=align_corners)
    return _grid_sample(x, grid, PADDING_MODES.index(padding_mode), bool(align_corners))
