# SPDX-License-Identifier: Apache-2.0
"""Congealing: joint alignment of a stack by minimising its pixelwise entropy over one transform for each picture.

After Learned-Miller, "Data Driven Image Models through Continuous Joint Alignment", PAMI 28(2), 2006. Every picture x_i has a
transform W_i. The stack x_i∘W_i has at each pixel a distribution of values (`fields.py`), and the objective is the sum of their
entropies. Coordinate descent (`moves.py`): each elementary transform of each picture in turn is changed by a step if that lowers
the picture's share. As in the paper far transforms are penalised, the mean transform is taken out after every sweep, so that the
stack cannot lower its entropy by shrinking, and pictures start out blurred. The fields are kept: they are the funnel
(`funnel.py`).

Two liberties, both for speed and reach. All pictures move at the same time, each judged by its bits under the field as it stands
without that picture. The entropy is concave in the field, so that such bits, its tangent, bound from above what it becomes. And
steps fall from coarse to fine with the blur.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from gangealing_fast.congealing.fields import BINS, Field, Pixels
from gangealing_fast.congealing.funnel import DOUBTFUL, Descent, Funnel, registered, spread_of
from gangealing_fast.congealing.moves import MOVES, Model, Stage, common_transform, sweep, warp
from gangealing_fast.congealing.records import Congealed, Pictures
from gangealing_fast.congealing.stack import as_values, blur, check_stack, look_of, small_squares
from gangealing_fast.geometry.warps import compose, identity_grid, identity_matrix, transform_points
from gangealing_fast.runtime.errors import UserError

__all__ = ["BLURS", "Funnel", "congeal_entropy", "congeal_stack"]

BLURS = (0.1, 0.06, 0.03, 0.015, 0.0)
"""Standard deviations of the stages, in parts of the side."""
DECAY = 0.7
"""Of the steps over one stage."""
PENALTY = 0.01
"""What a transform costs at a turn of 45 degrees, or at a log scale, shear or shift of 0.35, in parts of the most that a picture
can cost. Without it an odd one out leaves its frame: an empty picture agrees with all others where they have no ink."""
SMALL, MIDDLE, LARGEST_TEMPLATE = 32, 48, 256
Progress = Callable[[str, int, int], None]


@torch.no_grad()
def congeal_entropy(
    images: Tensor | Pictures,
    *,
    model: Model = "similarity",
    pixels: Pixels | Literal["auto"] = "auto",
    side: int | None = None,
    sweeps: int = 10,
    penalty: float = PENALTY,
    names: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> tuple[Congealed, Funnel]:
    """Align a set jointly, and make the funnel that aligns new pictures to it. Deterministic.

    Args:
        images: `[N, C, H, W]` in [-1, 1], or N pictures `[C, H, W]` of any sizes; one or three channels, and perhaps a mask after
            them. N >= 3.
        model: what is found for each picture.
        pixels: what a pixel's entropy is of: ink or none ("binary"), grey values, or the values of each channel. "auto" looks.
        side: pixels of the squares that it works on, from 8 to 64. None: 32 if no picture is larger than 64 pixels, else 48.
        sweeps: over the elementary transforms at each of 5 blurs.
        penalty: what a far transform costs, see `PENALTY`.
        names: of the pictures, for messages.
        progress: called with a stage's name, the sweeps that are done, and all of them.

    The template's side is that of the largest picture, from `side` to 256 pixels. The confidence of a picture says how its share of
    the entropy lies among those of all; an outlier's lies 3.5 robust deviations above the median.

    Raises UserError for fewer than 3 pictures, empty ones, pictures that are all the same, and options out of range.
    """
    _check(model, side, sweeps, penalty)
    longest = max((max(images[k].shape[1:]) for k in range(len(images))), default=0)
    side = side or (SMALL if longest <= 64 else MIDDLE)
    squares, placing = small_squares(images, side, names)
    if len(squares) < 3:
        check_stack(squares, names)
    look = look_of(squares, pixels)
    stack = as_values(squares, look)
    del squares
    check_stack(stack, names)
    matrices, descent = congeal_stack(stack, sweeps, model=model, pixels=look.pixels, penalty=penalty, progress=progress)
    bits = descent.bits(stack, matrices, members=True)
    funnel = Funnel(descent, look, max(side, min(LARGEST_TEMPLATE, longest)), *spread_of(bits))
    found = registered(matrices, placing, funnel.template_side, funnel.confidence(bits))
    outlier = bits > funnel.typical + DOUBTFUL * funnel.spread
    template = _average(images, found.matrix, ~outlier, funnel.template_side)
    parts = {field.name: getattr(found, field.name) for field in dataclasses.fields(found)}
    return Congealed(**parts, outlier=outlier, template=template[None]), funnel


@torch.no_grad()
def congeal_stack(
    stack: Tensor,
    sweeps: int = 10,
    *,
    model: Model = "similarity",
    pixels: Pixels = "binary",
    blurs: Sequence[float] = BLURS,
    penalty: float = PENALTY,
    progress: Progress | None = None,
) -> tuple[Tensor, Descent]:
    """Align a stack; matrices `[N, 2, 3]` from template (output) to picture coordinates, and what it went through. Deterministic.

    Args:
        stack: `[N, C, H, W]` in [0, 1], N >= 1; binary pictures are dark (0) where there is nothing, and beyond their edges.
        sweeps: at each blur.
        blurs: standard deviations in parts of the larger side.

    The other arguments are as in `congeal_entropy`. Raises ValueError for other shapes, or values outside [0, 1].
    """
    if stack.dim() != 4 or stack.shape[0] == 0:
        raise ValueError(f"the stack must be a non-empty [N, C, H, W], got {tuple(stack.shape)}")
    stack = stack.detach().to(torch.float32)
    if not bool(((stack >= 0) & (stack <= 1)).all()):
        raise ValueError("the stack must lie in [0, 1] and be finite; map [-1, 1] there with (x + 1) / 2")
    matrices = identity_matrix(len(stack), device=stack.device)
    shares, common, scales = [], [], []
    for level, width in enumerate(blurs):
        blurred = blur(stack, width * max(stack.shape[2:]), pixels)
        for number in range(sweeps):
            scales.append(DECAY ** (level + number / sweeps))
            warped = warp(blurred, matrices[:, None], pixels)[:, :, 0]
            field = Field.of(warped, BINS[pixels])
            shares.append(_kept(field))
            stage = Stage(model, pixels, scales[-1], penalty * field.most())
            matrices, _ = sweep(blurred, matrices, warped, field, stage, members=True)
            common.append(common_transform(matrices))
            matrices = compose(matrices, common[-1].expand_as(matrices))
            if progress is not None:
                progress("congealing", len(scales), len(blurs) * sweeps)
    shares.append(_kept(Field.of(warp(stack, matrices[:, None], pixels)[:, :, 0], BINS[pixels])))
    widths = torch.tensor(blurs, dtype=torch.float64).repeat_interleave(sweeps)
    transforms = torch.cat(common) if common else stack.new_zeros(0, 2, 3)
    numbers = torch.tensor(scales, dtype=torch.float64)
    return matrices, Descent(model, pixels, len(stack), penalty, torch.stack(shares), transforms, widths, numbers)


def _kept(field: Field) -> Tensor:
    return (field.totals / field.count).half()


def _check(model: str, side: int | None, sweeps: int, penalty: float) -> None:
    if model not in MOVES:
        raise UserError(f"the entropy method finds a similarity or an affine map, not model={model}")
    if side is not None and not 8 <= side <= 64:
        raise UserError(f"side must lie from 8 to 64 pixels, got {side}")
    if sweeps < 1 or penalty < 0:
        raise UserError(f"sweeps must be at least 1 and penalty must not be negative, got {sweeps} and {penalty}")


def _average(images: Tensor | Pictures, matrix: Tensor, member: Tensor, side: int) -> Tensor:
    """The mean `[3, side, side]` in [-1, 1] on the template: at each place that of the members which show it, at their own size."""
    total, weight = torch.zeros(3, side, side), torch.zeros(1, side, side)
    for index in member.nonzero().flatten().tolist():
        picture = images[index].detach().float().cpu()
        height, width = picture.shape[1:]
        inside = torch.ones(1, height, width)
        if picture.shape[0] in (2, 4):
            picture, inside = picture[:-1], (picture[-1:] + 1) / 2
        inverse = torch.linalg.inv(matrix[index])
        to_pixels = torch.tensor([[side / 2, 0, side / 2 - 0.5], [0, side / 2, side / 2 - 0.5], [0, 0, 1]], dtype=torch.float64)
        normal = torch.tensor([[2 / width, 0, 1 / width - 1], [0, 2 / height, 1 / height - 1], [0, 0, 1]], dtype=torch.float64)
        reading = (normal @ inverse @ to_pixels)[None, :2].float()
        grid = transform_points(reading, identity_grid(side, side)[None])
        moved = F.grid_sample(
            torch.cat([picture.expand(3, -1, -1), inside])[None], grid, padding_mode="border", align_corners=False
        )[0]
        total += moved[:3] * moved[3:]
        weight += moved[3:]
    return torch.where(weight > 1e-3, total / weight.clamp(min=1e-3), -1.0).clamp(-1, 1)
