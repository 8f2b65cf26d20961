# SPDX-License-Identifier: Apache-2.0
"""The inverse of a sampling grid between its vertices: where, in template pixels, does the grid take the value `point`?

Between the vertices the grid is bilinear in each cell, so the inverse solves, for the cell (x, y) and (u, v) in [0, 1]²,

    (1 - v) ((1 - u) g[y, x] + u g[y, x + 1]) + v ((1 - u) g[y + 1, x] + u g[y + 1, x + 1]) = point

and the position is (x + u, y + v). A cell holds a point where a ray from the point in the direction of x crosses the
cell's four edges an odd number of times. Neighbouring cells judge their common edge by the same arithmetic (no fused
multiply-adds), so no point inside the grid's outline falls between two cells. Several cells hold a point where the grid
folds: the first in reading order is taken and the confidence is one over their number. A point that no cell holds, but
which lies within a thousandth of a cell around its nearest vertex, counts as held by that cell (points on the outline);
any other gets its nearest vertex and the confidence 0, as does one whose cell is degenerate. A cell with a corner that is
not finite holds nothing.

In a cell, with e and f its upper and left edge, h = g11 - g10 - f and d = point - g00, u solves the quadratic
`(d - u e) × (f + u h) = 0` (of both roots the one nearer to the cell's middle), and one Newton step polishes it. With
the Jacobian `J = [e + v h, f + u h]` the implicit function theorem gives `d(u, v)/d point = J⁻¹` and, for the corner
with the bilinear weight w, `d(u, v)/d corner = -w J⁻¹`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gangealing_fast.ops._dispatch import reference_wanted, run_reference
from gangealing_fast.ops._eager import eager, register_derivative
from gangealing_fast.ops.grid_sample import widest_dtype
from gangealing_fast.ops.nearest_grid_point import check_grid_and_points, nearest_grid_point_reference

MARGIN = 1e-3  # how far outside a cell, in cells, a point of the outline may lie
LARGEST_STEP = 1e-2  # of the Newton step, in cells; where the quadratic has no solution it is larger
SMALLEST_AREA = 1e-6  # of a cell, in squares of its longest edge, before it counts as degenerate


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def _crosses(start: Tensor, end: Tensor, point: Tensor) -> Tensor:
    """Whether the ray from `point` towards larger x crosses the edge from `start` to `end`."""
    side = _cross(end - start, point - start)
    upwards = end[..., 1] > start[..., 1]
    straddles = (start[..., 1] > point[..., 1]) != (end[..., 1] > point[..., 1])
    return straddles & torch.where(upwards, side > 0, side < 0)


def _cells(grid: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The corners 00, 10, 01, 11 (first x, then y) of all cells, each `[N, (H - 1) * (W - 1), 2]`."""
    below, above = grid[:, 1:], grid[:, :-1]
    first, right, lower, last = (
        part.flatten(1, 2) for part in (above[:, :, :-1], above[:, :, 1:], below[:, :, :-1], below[:, :, 1:])
    )
    return first, right, lower, last


def _solve(corners: tuple[Tensor, ...], point: Tensor) -> tuple[Tensor, Tensor]:
    """((u, v) `[..., 2]`, whether it solves the cell's equation and the cell is not degenerate there `[...]`)."""
    first, right, lower, last = corners
    e, f = right - first, lower - first
    h, d = last - right - f, point - first
    longest = torch.cat([e, f, h], -1).abs().amax(-1, keepdim=True)
    e, f, h, d = e / longest, f / longest, h / longest, d / longest
    a, b, c = -_cross(e, h), _cross(d, h) - _cross(e, f), _cross(d, f)
    q = -(b + torch.copysign((b * b - 4 * a * c).clamp(min=0).sqrt(), b)) / 2
    best, distance = torch.full_like(d, torch.nan), torch.full_like(a, torch.inf)
    for u in (c / q, q / a):
        w = f + u.unsqueeze(-1) * h
        v = ((d - u.unsqueeze(-1) * e) * w).sum(-1) / (w * w).sum(-1)
        found = torch.stack([u, v], -1)
        outside = (found - 0.5).abs().amax(-1)
        better = outside < distance
        best, distance = torch.where(better.unsqueeze(-1), found, best), torch.where(better, outside, distance)
    u, v = best[..., :1], best[..., 1:]
    across, down = e + v * h, f + u * h
    area = _cross(across, down)
    rest = d - u * e - v * f - u * v * h
    step = torch.stack([_cross(rest, down), _cross(across, rest)], -1) / area.unsqueeze(-1)
    solved = (area.abs() > SMALLEST_AREA) & (step.abs().amax(-1) < LARGEST_STEP)
    return best + step, solved


def _gather(grid: Tensor, cell: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The corners of the cells `[N, P, 2]` (x, y)."""
    sample = torch.arange(grid.shape[0], device=grid.device).unsqueeze(1)
    x, y = cell.unbind(-1)
    right, lower = (x + 1).clamp(max=grid.shape[2] - 1), (y + 1).clamp(max=grid.shape[1] - 1)
    return grid[sample, y, x], grid[sample, y, right], grid[sample, lower, x], grid[sample, lower, right]


def _locate(grid: Tensor, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(cell `[N, P, 2]` int64, (u, v) in it `[N, P, 2]`, confidence `[N, P]`)."""
    height, width = grid.shape[1:3]
    nearest = nearest_grid_point_reference(grid, points)
    lost = (nearest < 0).any(-1)
    nearest = nearest.clamp(min=0)
    cell, offset = nearest, torch.zeros_like(points)
    confidence = points.new_zeros(points.shape[:2])
    if height > 1 and width > 1:
        # on the outline: the cells around the nearest vertex, the first in reading order last
        for y, x in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
            other = nearest + torch.tensor((x, y), device=grid.device)
            exists = (other >= 0).all(-1) & (other[..., 0] < width - 1) & (other[..., 1] < height - 1)
            found, solved = _solve(_gather(grid, torch.where(exists.unsqueeze(-1), other, 0)), points)
            held = exists & solved & ((found - 0.5).abs().amax(-1) <= 0.5 + MARGIN)
            cell, offset = torch.where(held.unsqueeze(-1), other, cell), torch.where(held.unsqueeze(-1), found, offset)
            confidence = torch.where(held, 1.0, confidence)

        first, right, lower, last = (corner.unsqueeze(1) for corner in _cells(grid))  # [N, 1, cells, 2]
        point = points.unsqueeze(2)
        odd = _crosses(first, right, point) ^ _crosses(lower, last, point)
        odd = odd ^ _crosses(first, lower, point) ^ _crosses(right, last, point)  # [N, P, cells]
        odd = odd & torch.cat([first, right, lower, last], -1).isfinite().all(-1)
        count, index = odd.sum(-1), odd.int().argmax(-1)
        other = torch.stack([index % (width - 1), index // (width - 1)], -1)
        found, solved = _solve(_gather(grid, other), points)
        inside = count > 0
        use = inside & solved & ((found - 0.5).abs().amax(-1) <= 0.5 + MARGIN)
        cell = torch.where(inside.unsqueeze(-1), torch.where(use.unsqueeze(-1), other, nearest), cell)
        offset = torch.where(inside.unsqueeze(-1), torch.where(use.unsqueeze(-1), found, 0.0), offset)
        confidence = torch.where(inside, torch.where(use, 1 / count.to(points.dtype), 0.0), confidence)
    return cell, torch.where(lost.unsqueeze(-1), torch.nan, offset), torch.where(lost, 0.0, confidence).to(points.dtype)


def _jacobian(corners: tuple[Tensor, ...], offset: Tensor) -> tuple[Tensor, Tensor]:
    """The derivatives `[N, P, 2]` of the bilinear cell by u and by v."""
    first, right, lower, last = corners
    h = last - right - lower + first
    return right - first + offset[..., 1:] * h, lower - first + offset[..., :1] * h


def _weights(offset: Tensor) -> tuple[Tensor, ...]:
    """The bilinear weights `[N, P, 1]` of the corners 00, 10, 01, 11."""
    u, v = offset[..., :1], offset[..., 1:]
    return (1 - u) * (1 - v), u * (1 - v), (1 - u) * v, u * v


def invert_grid_reference(grid: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Plain torch version of `invert_grid`; holds every pair of a point and a cell. Differentiable seven times.

    The derivatives are those of Newton steps from the solution, each of which doubles the orders that are right, plus one.
    """
    dtype = widest_dtype(grid, points)
    grid, points = grid.to(dtype), points.to(dtype)
    cell, offset, confidence = _locate(grid.detach(), points.detach())
    held = (confidence > 0).unsqueeze(-1)
    inside = torch.where(held, offset, 0.0)
    # Whatever no cell holds is given the unit cell, whose solution is known: a NaN must not reach the gradients of the others.
    unit = torch.tensor(((0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0)), dtype=dtype, device=grid.device)
    corners = tuple(torch.where(held, corner, place) for corner, place in zip(_gather(grid, cell), unit, strict=True))
    wanted = torch.where(held, points, 0.0)
    for _ in range(3):
        across, down = _jacobian(corners, inside)
        rest = wanted - sum(weight * corner for weight, corner in zip(_weights(inside), corners, strict=True))
        step = torch.stack([_cross(rest, down), _cross(across, rest)], -1) / _cross(across, down).unsqueeze(-1)
        inside = inside + (step - step.detach())
    return cell + torch.where(held, inside, offset), confidence


def invert_grid_backward_reference(
    grad: Tensor, grid: Tensor, cell: Tensor, offset: Tensor, confidence: Tensor
) -> tuple[Tensor, Tensor]:
    """Plain torch gradients of grid and points from the cell and (u, v) of every point."""
    across, down = _jacobian(_gather(grid, cell), offset)
    held = (confidence > 0).unsqueeze(-1)
    area = torch.where(held, _cross(across, down).unsqueeze(-1), 1.0)
    grad_u, grad_v = grad[..., 0], grad[..., 1]
    x, y = grad_u * down[..., 1] - grad_v * across[..., 1], grad_v * across[..., 0] - grad_u * down[..., 0]
    grad_points = torch.where(held, torch.stack([x, y], -1) / area, 0.0)
    width, flat = grid.shape[2], torch.zeros_like(grid).flatten(1, 2)
    for weight, (right, lower) in zip(_weights(offset), ((0, 0), (1, 0), (0, 1), (1, 1)), strict=True):
        x, y = (cell[..., 0] + right).clamp(max=width - 1), (cell[..., 1] + lower).clamp(max=grid.shape[1] - 1)
        share = torch.where(held, -weight * grad_points, 0.0)
        flat = flat.scatter_add(1, (y * width + x).unsqueeze(-1).expand(-1, -1, 2), share)
    return flat.reshape(grid.shape), grad_points


@torch.library.custom_op("gangealing_fast::invert_grid", mutates_args=())
def _invert_grid(grid: Tensor, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _locate(grid, points)


@_invert_grid.register_fake
def _(grid: Tensor, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return (
        points.new_empty(points.shape, dtype=torch.int64),
        points.new_empty(points.shape),
        points.new_empty(points.shape[:2]),
    )


@torch.library.custom_op("gangealing_fast::invert_grid_backward", mutates_args=())
def _invert_grid_backward(grad: Tensor, grid: Tensor, cell: Tensor, offset: Tensor, confidence: Tensor) -> tuple[Tensor, Tensor]:
    return invert_grid_backward_reference(grad, grid, cell, offset, confidence)


@_invert_grid_backward.register_fake
def _(grad: Tensor, grid: Tensor, cell: Tensor, offset: Tensor, confidence: Tensor) -> tuple[Tensor, Tensor]:
    return grid.new_empty(grid.shape), offset.new_empty(offset.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    cell, offset, confidence = output
    ctx.mark_non_differentiable(cell, confidence)
    ctx.save_for_backward(inputs[0], cell, offset, confidence)


def _backward(ctx: Any, grad_cell: Tensor, grad_offset: Tensor, grad_confidence: Tensor) -> tuple[Tensor | None, ...]:
    return _invert_grid_backward(grad_offset, *ctx.saved_tensors)


def _double_backward(ctx: Any, *tangents: Tensor) -> tuple[Tensor | None, ...]:
    raise NotImplementedError("invert_grid has first derivatives only; its second derivative was asked for.")


register_derivative(_invert_grid, _backward, _setup_context)
register_derivative(_invert_grid_backward, _double_backward, None)
_call = eager(_invert_grid, _setup_context, _backward)


def invert_grid(grid: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Continuous grid positions at which `grid`, interpolated bilinearly, takes the values `points`.

    grid: `[N, H, W, 2]` of (x, y), H and W at least 1. points: `[N, P, 2]` in the grid's units. Both float64, float32,
    bfloat16 or float16, any strides; computed in float64 if one of them is, else in float32.
    Returns (position `[N, P, 2]`, confidence `[N, P]`) in the dtype computed in. The position is (x, y) in units of grid
    cells, (0, 0) at the first vertex. The confidence is 1 where exactly one cell holds the point, 1/k where the grid folds
    and k cells do (the first in reading order is returned), and 0 where none does or it is degenerate: then the position is
    the nearest vertex and passes no gradient on. A point that is not finite has the position NaN and the confidence 0.
    Differentiable once, in grid and points; the confidence has no derivative. Bit-identical between runs.
    Raises TypeError or ValueError for inputs that do not fit together, NotImplementedError for a second derivative.
    """
    check_grid_and_points("invert_grid", grid, points)
    if reference_wanted():
        return run_reference(invert_grid_reference, grid, points)
    dtype = widest_dtype(grid, points)
    cell, offset, confidence = _call(grid.to(dtype), points.to(dtype))
    return cell + offset, confidence
