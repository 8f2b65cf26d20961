# SPDX-License-Identifier: Apache-2.0
"""The funnel: the distribution fields kept while a stack was congealed, which align new pictures (Learned-Miller, PAMI 2006).

A new picture goes through the fields in the order in which they arose, and makes at each the moves that a member would make,
without changing the field.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import get_args

import torch
from torch import Tensor

from gangealing_fast.congealing.fields import BINS, Field, Pixels
from gangealing_fast.congealing.moves import Model, Stage, sweep, warp
from gangealing_fast.congealing.records import Pictures, Registered
from gangealing_fast.congealing.stack import Look, as_values, blur, small_squares
from gangealing_fast.geometry.warps import compose, identity_matrix

DOUBTFUL = 3.5
"""Deviations of a share of the entropy above the median, at which confidence is one half; what lies above is an outlier."""
_PIXELS: tuple[Pixels, ...] = get_args(Pixels)
_MODELS: tuple[Model, ...] = get_args(Model)


@dataclass(frozen=True)
class Descent:
    """What a stack of `count` pictures went through in T sweeps.

    shares `[T + 1, C, K, S, S]`, float16: the fields before every sweep and after the last, as shares of the stack. common
    `[T, 2, 3]`: what was taken out of all transforms after each sweep. blurs, scales `[T]`, float64: of the pictures, in parts of
    their side, and of the steps. penalty: `entropy.PENALTY`.
    """

    model: Model
    pixels: Pixels
    count: int
    penalty: float
    shares: Tensor
    common: Tensor
    blurs: Tensor
    scales: Tensor

    def follow(self, stack: Tensor) -> Tensor:
        """Matrices `[N, 2, 3]` from template to picture, of new pictures `[N, C, S, S]` in [0, 1]."""
        matrices = identity_matrix(len(stack), device=stack.device)
        blurred, last = stack, 0.0
        for number, (width, scale) in enumerate(zip(self.blurs.tolist(), self.scales.tolist(), strict=True)):
            if width != last:
                blurred, last = blur(stack, width * stack.shape[2], self.pixels), width
            warped = warp(blurred, matrices[:, None], self.pixels)[:, :, 0]
            field = self.field(number)
            stage = Stage(self.model, self.pixels, scale, self.penalty * field.most())
            matrices, _ = sweep(blurred, matrices, warped, field, stage, members=False)
            matrices = compose(matrices, self.common[number].to(matrices).expand_as(matrices))
        return matrices

    def field(self, number: int) -> Field:
        """The field before sweep `number`; -1: after the last."""
        return Field(self.shares[number].float() * self.count, self.count)

    def bits(self, stack: Tensor, matrices: Tensor, *, members: bool) -> Tensor:
        """Each picture's share of the entropy under the last field, `[N]`, in bits a pixel."""
        field, found = self.field(-1), []
        for images, placed in zip(stack.split(128), matrices.split(128), strict=True):
            warped = warp(images, placed[:, None], self.pixels)
            found.append(field.share(warped, warped[:, :, 0] if members else None)[:, 0])
        return torch.cat(found) / (stack.shape[2] * stack.shape[3]) if found else stack.new_zeros(0)


@dataclass(frozen=True)
class Funnel:
    """Aligns new pictures to the template of a set that `congeal_entropy` aligned.

    look: how pictures are read. template_side: pixels of the template. typical, spread: median and deviation (`spread_of`) of the
    members' shares of the entropy, in bits a pixel.
    """

    descent: Descent
    look: Look
    template_side: int
    typical: float
    spread: float

    @torch.no_grad()
    def align(self, images: Tensor | Pictures | Sequence[Tensor], *, names: Sequence[str] | None = None) -> Registered:
        """How pictures lie on the template.

        Args:
            images: `[N, C, H, W]` in [-1, 1], or N pictures `[C, H, W]` of any sizes, with as many channels as the set; N may be 0.
            names: of the pictures, for messages.

        Raises UserError for another number of channels, other shapes, and values outside [-1, 1].
        """
        side = self.descent.shares.shape[-1]
        squares, placing = small_squares(images, side, names)
        if not len(squares):
            squares = squares.new_zeros(0, self.look.channels, side, side)
        stack = as_values(squares, self.look)
        matrices = self.descent.follow(stack)
        bits = self.descent.bits(stack, matrices, members=False)
        return registered(matrices, placing, self.template_side, self.confidence(bits))

    def confidence(self, bits: Tensor) -> Tensor:
        """In [0, 1], of shares of the entropy `[N]` in bits a pixel: one half at DOUBTFUL deviations above the members' median."""
        return torch.sigmoid(DOUBTFUL - (bits - self.typical) / self.spread)

    def state(self) -> dict[str, Tensor]:
        """All of it as tensors, for a file."""
        kept = {name: getattr(self.descent, name) for name in ("shares", "common", "blurs", "scales")}
        numbers = (
            self.descent.count,
            self.descent.penalty,
            self.template_side,
            self.typical,
            self.spread,
            _MODELS.index(self.descent.model),
            _PIXELS.index(self.descent.pixels),
            self.look.channels,
            self.look.inverted,
        )
        return kept | {"numbers": torch.tensor(numbers, dtype=torch.float64)}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> Funnel:
        """The funnel that `state()` was called on. Raises ValueError if something is missing or does not fit."""
        names = {field.name for field in fields(Descent)} & {"shares", "common", "blurs", "scales"} | {"numbers"}
        if missing := sorted(names - set(state)):
            raise ValueError(f"the funnel lacks {missing[0]}")
        kept, numbers = {name: state[name] for name in names - {"numbers"}}, state["numbers"]
        if numbers.shape != (9,) or not bool(numbers.isfinite().all()) or not bool((numbers >= 0).all()):
            raise ValueError("the funnel's numbers are damaged")
        count, penalty, side, typical, spread, model, pixels, channels, inverted = numbers.tolist()
        if int(model) >= len(_MODELS) or int(pixels) >= len(_PIXELS) or channels not in (1, 3) or min(count, side, spread) <= 0:
            raise ValueError("the funnel's numbers are damaged")
        kind = _PIXELS[int(pixels)]
        sweeps, planes = len(kept["blurs"]), 3 if kind == "colour" else 1
        shape = kept["shares"].shape
        if len(shape) != 5 or shape[:3] != (sweeps + 1, planes, BINS[kind]) or shape[3] != shape[4]:
            raise ValueError(f"the funnel's fields are {list(shape)}")
        if kept["common"].shape != (sweeps, 2, 3) or kept["scales"].shape != (sweeps,):
            raise ValueError("the funnel's sweeps do not agree in number")
        descent = Descent(_MODELS[int(model)], kind, int(count), penalty, **kept)
        return cls(descent, Look(int(channels), kind, bool(inverted)), int(side), typical, spread)


def registered(matrices: Tensor, placing: Tensor, side: int, confidence: Tensor) -> Registered:
    """A record of transforms `[N, 2, 3]` from template to square, of pictures that `placing` `[N, 3, 3]` puts into squares.

    side: of the template, in pixels.
    """
    count = len(matrices)
    whole = torch.eye(3, dtype=torch.float64).repeat(count, 1, 1)
    whole[:, :2] = matrices.double()
    pixels = torch.tensor([[side / 2, 0, side / 2 - 0.5], [0, side / 2, side / 2 - 0.5], [0, 0, 1]], dtype=torch.float64)
    return Registered(
        matrix=pixels @ torch.linalg.solve(whole, placing),
        flow=torch.zeros(count, 2, 2, 2),
        mirrored=torch.zeros(count, dtype=torch.bool),
        cluster=torch.zeros(count, dtype=torch.int64),
        confidence=confidence.float(),
    )


def spread_of(bits: Tensor) -> tuple[float, float]:
    """Median of shares `[N]`, and deviation: 1.4826 times the median of how far those above lie, at least 2 % of the first median.

    Only those above count, because shares are skewed: none lies far below.
    """
    typical = float(bits.median())
    above = (bits - typical)[bits >= typical]
    return typical, max(1.4826 * float(above.median()), 0.02 * typical, 1e-9)
