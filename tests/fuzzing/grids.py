# SPDX-License-Identifier: Apache-2.0
"""Random calls of the operators on grids, flows and points."""

from __future__ import annotations

import torch
from cases import nearest_grid_point as points_cases
from torch import Tensor

from fuzzing import DTYPES, Draw, Drawn
from gangealing_fast import ops
from gangealing_fast.ops.grid_sample import pixel_coordinates
from gangealing_fast.ops.invert_grid import _cross, _gather, _jacobian, _locate
from gangealing_fast.ops.splat2d import _sums

MODES = ("zeros", "border", "reflection")
# How close to a kink, in pixels, a coordinate may come that is rounded in the dtype computed in.
CLOSE = {torch.float64: 1e-8, torch.float32: 1e-3}


def _wide(dtypes: list[torch.dtype]) -> torch.dtype:
    return torch.float64 if torch.float64 in dtypes else torch.float32


def _dtypes(draw: Draw) -> list[torch.dtype]:
    """Of image and grid: mostly the same."""
    dtype = draw.choice(*DTYPES)
    return [dtype, dtype if draw.integer(0, 2) else draw.choice(*DTYPES)]


def _on_a_kink(grid: Tensor, size: tuple[int, int], align_corners: bool, close: float) -> Tensor:
    """Where a coordinate is next to a pixel's centre or edge, at which the weights, the padding or the mirror have a kink."""
    places = pixel_coordinates(grid, size, align_corners)
    return ((2 * places - (2 * places).round()).abs() < 2 * close * (1 + places.abs())).any(-1)


def grid_sample(draw: Draw) -> Drawn:
    n, channels = draw.batch(), draw.choice(3, 1, 2, 4, 7, 0, 16, 21)
    size = draw.choice(8, 1, 2, 3, 11), draw.choice(8, 1, 2, 3, 13)
    out = draw.choice(3, 1, 7, 0), draw.choice(5, 1, 17, 0, 90)
    keywords = {"padding_mode": draw.choice(*MODES), "align_corners": draw.boolean()}
    dtypes = _dtypes(draw)
    grid = (2 * draw.uniform(n, *out, 2) - 1) * draw.choice(0.5, 1.1, 2.0, 20.0)
    reach = 1 + grid.abs().max().item() if grid.numel() else 1.0

    def floors(inputs: list[Tensor], weights: list[Tensor]) -> list[float]:
        # A coordinate is known to the last place of the whole image; the slope of noise turns that into an error.
        image = inputs[0].abs().max().item() if inputs[0].numel() else 0.0
        span, g = reach * max(size), weights[0].norm().item()
        return [span * image * weights[0].numel() ** 0.5, span * g, span**2 * image * g * channels**0.5]

    return Drawn(
        lambda *tensors: ops.grid_sample(*tensors, **keywords),
        lambda *tensors: ops.grid_sample_reference(*tensors, **keywords),
        [draw.signal(n, channels, *size), grid],
        dtypes,
        layouts=(0, 1),
        differentiable=(0, 1),
        kinks=lambda inputs, outputs: [
            _on_a_kink(inputs[1], size, keywords["align_corners"], CLOSE[_wide(dtypes)]).unsqueeze(1).expand(outputs[0].shape)
        ],
        floors=floors,
    )


def mipmap_warp(draw: Draw) -> Drawn:
    n, channels = draw.batch(), draw.choice(3, 1, 4, 0, 9)
    size = draw.choice(8, 1, 2, 5, 16, 24), draw.choice(8, 1, 3, 11, 16, 20)
    out = draw.choice(6, 1, 2), draw.choice(9, 1, 2, 70)
    keywords = {"padding_mode": draw.choice(*MODES), "max_levels": draw.choice(1, 1.5, 2.0, 3.5, 5.25)}
    zoom = draw.choice(0.1, 0.7, 1.3, 6.0)
    # A grid of half precision is full of ties between neighbours, on which the gradient depends.
    dtypes = [draw.choice(*DTYPES), draw.choice(torch.float64, torch.float32, torch.float32)]
    x, y = ((torch.arange(length, dtype=torch.float64) * 2 + 1) / length - 1 for length in (out[1], out[0]))
    grid = torch.stack(((x[None] + 0.2 * y[:, None]), (0.9 * y[:, None] - 0.2 * x[None])), -1) * zoom
    grid = grid + draw.normal(n, *out, 2) * (0.3 * zoom / max(out))
    reach = 1 + grid.abs().max().item() if grid.numel() else 1.0

    def kinks(inputs: list[Tensor], outputs: list[Tensor]) -> list[Tensor]:
        close, grid = CLOSE[_wide(dtypes)], inputs[1]
        places = pixel_coordinates(grid, size, True)
        padded = torch.nn.functional.pad(places.permute(0, 3, 1, 2), (1, 1, 1, 1), mode="replicate").permute(0, 2, 3, 1)
        neighbours = (padded[:, 1:-1, :-2], padded[:, 1:-1, 2:], padded[:, :-2, 1:-1], padded[:, 2:, 1:-1])
        squared = torch.stack([(other - places).square().sum(-1) for other in neighbours]).sort(0).values
        tie = (squared[3] < 1 + close) & (squared[3] > 1 - close)
        tie |= (squared[3] > 1) & (squared[3] - squared[2] < close * squared[3])
        level = squared[3].clamp(min=1).log2() / 2
        whole = level - level.round()
        bad = tie | (whole.abs() < close) | ((level - (keywords["max_levels"] - 1)).abs() < close)
        # Levels are read between texels that lie on multiples of their size: half pixels of level 0 are among their centres.
        for scale in (1, 2, 4, 8, 16, 32):
            bad |= _on_a_kink(grid, size, False, close) if scale == 1 else _between(grid, size, scale, close)
        return [bad.unsqueeze(1).expand(outputs[0].shape)]

    def floors(inputs: list[Tensor], weights: list[Tensor]) -> list[float]:
        image = inputs[0].abs().max().item() if inputs[0].numel() else 0.0
        span, g = reach * max(size), weights[0].norm().item()
        return [span * image * weights[0].numel() ** 0.5, span * g, span**2 * image * g * channels**0.5]

    return Drawn(
        lambda *tensors: ops.mipmap_warp(*tensors, **keywords),
        lambda *tensors: ops.mipmap_warp_reference(*tensors, **keywords),
        [draw.signal(n, channels, *size), grid],
        dtypes,
        layouts=(0, 1),
        differentiable=(0, 1),
        kinks=kinks,
        floors=floors,
    )


def _between(grid: Tensor, size: tuple[int, int], scale: int, close: float) -> Tensor:
    """Where a coordinate is next to a centre of a texel of a level, whose texels are `scale` pixels."""
    places = pixel_coordinates(grid, size, False) * 2 / scale
    return ((places - places.round()).abs() < 2 * close * (1 + places.abs())).any(-1)


def flow_regularizer(draw: Draw) -> Drawn:
    shape = draw.batch(), draw.choice(1, 2, 5, 13, 33), draw.choice(1, 2, 7, 20, 40), 2
    flow = draw.normal(*shape) * draw.choice(1.0, 0.01, 50.0)
    if draw.integer(0, 3) == 0:
        flow = flow.round()
    dtype = draw.choice(*DTYPES)

    def floors(inputs: list[Tensor], weights: list[Tensor]) -> list[float]:
        # The gradient of a point is the difference of those of its neighbours' differences.
        count = shape[1] * shape[2]
        gradient = 1 + (inputs[0].abs().max().item() if inputs[0].numel() else 0.0)
        return [0.0, 0.0, sum(w.norm().item() for w in weights) * gradient / count**0.5]

    return Drawn(
        ops.flow_regularizer, ops.flow_regularizer_reference, [flow], [dtype], floors=floors
    )  # fmt: skip


def convex_upsample(draw: Draw) -> Drawn:
    n, height, width, factor = draw.batch(), draw.choice(5, 1, 2, 0, 9), draw.choice(3, 1, 8, 0, 17), draw.integer(1, 5)
    flow = draw.signal(n, height, width, 2)
    mask = draw.normal(n, 9 * factor * factor, height, width) * draw.choice(0.0, 1.0, 5.0, 60.0)
    dtypes = _dtypes(draw)

    def floors(inputs: list[Tensor], weights: list[Tensor]) -> list[float]:
        # An exponential's error is in proportion to its argument; the mask's gradient is a difference that may vanish.
        logits = 1 + (inputs[1].abs().max().item() if inputs[1].numel() else 0.0)
        largest = inputs[0].abs().max().item() if inputs[0].numel() else 0.0
        g = weights[0].norm().item()
        return [logits * largest * factor * weights[0].numel() ** 0.5, logits * factor * g, logits * largest * factor * g]

    return Drawn(
        lambda flow, mask: ops.convex_upsample(flow, mask, factor),
        lambda flow, mask: ops.convex_upsample_reference(flow, mask, factor),
        [flow, mask],
        dtypes,
        layouts=(0, 1),
        differentiable=(0, 1),
        floors=floors,
    )


def splat2d(draw: Draw) -> Drawn:
    n, channels, points = draw.batch(), draw.choice(3, 1, 2, 4, 0, 9), draw.choice(5, 1, 40, 0)
    height, width = draw.choice(9, 1, 2, 17), draw.choice(8, 1, 3, 30)
    soft, dtype = draw.boolean(), draw.choice(torch.float64, torch.float32)
    background = draw.normal(n, channels, height, width) if soft else torch.zeros(n, channels, height, width)
    size = torch.tensor((width, height), dtype=torch.float64)
    xy = ((draw.uniform(n, points, 2) - 0.5) * draw.choice(0.8, 1.3, 3.0) + 0.5) * size
    # Multiples of 1/16 away from integers, and sigmas in odd multiples of 1/64: reaches that no dtype rounds differently.
    xy = (xy * 8).floor() / 8 + 1 / 16
    values = draw.normal(n, points, channels)
    sigma = draw.choice(0.3, 0.8, 2.0, 9.0, 40.0) * (1 + draw.uniform(n, points) / 2)
    sigma = (sigma if draw.boolean() else sigma[:, :1].expand(-1, points) if points else sigma) * 16
    sigma = sigma.ceil() / 16 + 1 / 64
    if draw.integer(0, 3) == 0 and points > 1:
        xy[:, ::5, 0], xy[:, 1::5, 1] = torch.nan, torch.inf
        sigma[:, 3::7], sigma[:, 4::7], sigma[:, 2::13] = torch.nan, 0.0, -1.0

    def kinks(inputs: list[Tensor], outputs: list[Tensor]) -> list[Tensor]:
        total = _sums(*inputs)[1]
        # soft: where the divisor begins to grow; hard: where a sum of the smallest weights is divided by another
        return [(((total - 1).abs() < 1e-3) if soft else total < 1e-3).expand(outputs[0].shape)]

    def floors(inputs: list[Tensor], weights: list[Tensor]) -> list[float]:
        # Hard normalisation divides by sums of small weights, which magnifies what is rounded.
        smallest = inputs[3][inputs[3] > 0].min().item() if (inputs[3] > 0).any() else 1.0
        largest = inputs[2].abs().max().item() if inputs[2].numel() else 0.0
        g = weights[0].norm().item() * (1 if soft else 1e3) * (1 + largest)
        moved = g * 8 / smallest
        return [(1 + largest) * weights[0].numel() ** 0.5, g, g, moved, moved]

    return Drawn(
        lambda *tensors: ops.splat2d(*tensors, soft=soft),
        lambda *tensors: ops.splat2d_reference(*tensors, soft=soft),
        [background.double(), xy, values, sigma],
        [dtype] * 4,
        layouts=range(4),
        differentiable=range(4),
        kinks=kinks,
        floors=floors,
        keeps_layout=True,
    )


KINDS = ("smooth", "mirrored", "random", "integers", "constant", "vertices", "broken")


def _grid_and_points(draw: Draw, *kinds: str) -> list[Tensor]:
    kind, sizes = draw.choice(*kinds), (5, 1, 2, 17, 33)
    case = points_cases.Case(
        str(draw.integer(0, 2**31)), draw.batch(), draw.choice(*sizes), draw.choice(*sizes), draw.choice(5, 1, 20, 0), kind,
        draw.integer(0, 80) / 10, draw.choice(0.9, 1.5),
    )  # fmt: skip
    return case.tensors()


def mutual_nearest(draw: Draw) -> Drawn:
    n, rows, columns, depth = draw.batch(), draw.choice(5, 1, 20, 0), draw.choice(7, 1, 16, 33, 0), draw.choice(3, 1, 2, 17, 0)
    first, second = draw.normal(n, rows, depth), draw.normal(n, columns, depth)
    # Whole numbers, whose products are exact in every dtype: many are equal.
    first, second = (first * draw.choice(0.5, 2.0)).round(), (second * draw.choice(0.5, 2.0)).round()
    if draw.integer(0, 3) == 0 and depth:
        first[:, ::4, 0], second[:, ::5, -1] = torch.nan, torch.inf
    dtype = draw.choice(*DTYPES)

    def whole(function):
        # NaN and infinity would spoil a sum of differences.
        return lambda *tensors: tuple(part.nan_to_num(-9.0, -8.0, -7.0) for part in function(*tensors))

    return Drawn(
        whole(ops.mutual_nearest),
        whole(ops.mutual_nearest_reference),
        [first, second],
        [dtype, dtype],
        layouts=(0, 1),
        differentiable=(),
        exact=True,
    )


def nearest_grid_point(draw: Draw) -> Drawn:
    scale, dtypes = draw.magnitude(-3, 2), _dtypes(draw)
    return Drawn(
        ops.nearest_grid_point,
        ops.nearest_grid_point_reference,
        [t * scale for t in _grid_and_points(draw, *KINDS)],
        dtypes,
        layouts=(0, 1),
        differentiable=(),
        exact=True,
    )


def invert_grid(draw: Draw) -> Drawn:
    dtype = draw.choice(torch.float64, torch.float32)

    def floors(inputs: list[Tensor], weights: list[Tensor]) -> list[float]:
        # In a cell of little area for its edges what a coordinate is rounded by becomes much of the cell.
        grid, points = inputs
        cell, offset, confidence = _locate(grid, points)
        held = confidence > 0
        across, down = (t[held] for t in _jacobian(_gather(grid, cell), torch.where(held.unsqueeze(-1), offset, 0.0)))
        if not held.any():
            return [0.0] * 4
        inverse = ((across.norm(dim=-1) + down.norm(dim=-1)) / _cross(across, down).abs()).max().item()
        steps = inverse * (1 + points[held].abs().max().item())
        g = weights[0].norm().item()
        return [steps * points.shape[1] ** 0.5, 0.0, g * inverse * (1 + steps) ** 2, g * inverse * (1 + steps) ** 2]

    return Drawn(
        ops.invert_grid,
        ops.invert_grid_reference,
        _grid_and_points(draw, *KINDS),
        [dtype, dtype],
        layouts=(0, 1),
        differentiable=(0, 1),
        floors=floors,
    )


OPERATORS = (
    grid_sample, mipmap_warp, flow_regularizer, convex_upsample, splat2d, mutual_nearest, nearest_grid_point, invert_grid
)  # fmt: skip
