# SPDX-License-Identifier: Apache-2.0
"""Smoothing of the warps of a video in time, and the figure that says how much they tremble.

A matrix is smoothed as its angle, the logarithm of its size and its shift: what comes out is a similarity again. A residual flow is
smoothed exponentially. All filters look back only. The time between two frames is that of their time stamps.

one-euro   Casiez, Roussel and Vogel, "1 euro filter: a simple speed-based low-pass filter for noisy input" (CHI 2012). A
           first-order low-pass whose cutoff frequency grows with the speed: f = cutoff + beta |speed|. A motion of constant speed v
           is shown late by v / (2 pi f), which is less than 1 / (2 pi beta) at any speed.
kalman     A value that moves with a speed, both estimated; the speed changes by white noise. In the long run the filter is a
           low-pass of second order with the natural frequency `cutoff`: (q / r)^(1/4) = 2 pi cutoff, with q the density of that
           noise and r the variance of a measurement times a second. A motion of constant speed is shown without delay.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from gangealing_fast.geometry.warps import identity_grid, mirror_grid, similarity_matrix, transform_points
from gangealing_fast.models.spatial_transformer import Alignment

Filtering = Literal["none", "one-euro", "kalman"]


@dataclass(frozen=True)
class Smoothing:
    """How warps are smoothed; as it stands, not at all.

    matrices: the filter. cutoff: in hertz, of a warp at rest; the lower, the smoother. beta: of one-euro, how much the cutoff grows
    with the speed, in hertz for a speed of 1 a second (a radian, a factor of e, half a picture). flow: the weight of the flow
    before in that of this frame, from 0 (off) to below 1. Raises ValueError for other numbers.
    """

    matrices: Filtering = "none"
    cutoff: float = 1.0
    beta: float = 10.0
    flow: float = 0.0

    def __post_init__(self) -> None:
        if self.matrices not in ("none", "one-euro", "kalman"):
            raise ValueError(f"Smoothing: matrices must be none, one-euro or kalman, got {self.matrices!r}.")
        if not (self.cutoff > 0 and self.beta >= 0 and 0 <= self.flow < 1):
            raise ValueError("Smoothing: cutoff must be above 0, beta at least 0, flow at least 0 and below 1.")

    @property
    def active(self) -> bool:
        """Whether anything is smoothed."""
        return self.matrices != "none" or self.flow > 0


class Filter(Protocol):
    """Takes one row of values after the other, each `seconds` after the one before, and returns them smoothed."""

    def __call__(self, values: Tensor, seconds: float) -> Tensor: ...


class OneEuro:
    """The filter one-euro of values `[D]`, each by itself."""

    SPEED_CUTOFF = 1.0
    """Of the low-pass that the speed goes through, in hertz, as in the paper."""

    def __init__(self, cutoff: float, beta: float) -> None:
        self.cutoff, self.beta = cutoff, beta
        self._before: tuple[Tensor, Tensor, Tensor] | None = None

    def __call__(self, values: Tensor, seconds: float) -> Tensor:
        """The next values; `seconds` after the last ones."""
        if self._before is None:
            self._before = (values, values, torch.zeros_like(values))
            return values
        raw, shown, speed = self._before
        speed = torch.lerp(speed, (values - raw) / seconds, self._weight(torch.full_like(values, self.SPEED_CUTOFF), seconds))
        shown = torch.lerp(shown, values, self._weight(self.cutoff + self.beta * speed.abs(), seconds))
        self._before = (values, shown, speed)
        return shown

    @staticmethod
    def _weight(cutoff: Tensor, seconds: float) -> Tensor:
        """Of the new value: 1 / (1 + tau / seconds) with tau = 1 / (2 pi cutoff)."""
        return 1 / (1 + 1 / (2 * math.pi * cutoff * seconds))


class Kalman:
    """The filter kalman of values `[D]`: all have one gain, which depends on the times alone."""

    def __init__(self, cutoff: float) -> None:
        self._noise = (2 * math.pi * cutoff) ** 4
        self._state: Tensor | None = None
        self._covariance: Tensor | None = None

    def __call__(self, values: Tensor, seconds: float) -> Tensor:
        """The next values; `seconds` after the last ones."""
        if self._state is None:
            self._state = torch.stack([values, torch.zeros_like(values)])
            return values
        if self._covariance is None:  # as sure of the place as one measurement makes; of the speed nothing is known
            self._covariance = torch.tensor([[1 / seconds, 0.0], [0.0, 1e3 / seconds**3]], dtype=torch.float64)
        step = torch.tensor([[1.0, seconds], [0.0, 1.0]], dtype=torch.float64)
        # r is the unit, so that a measurement has the variance 1 / seconds.
        spread = torch.tensor([[seconds**3 / 3, seconds**2 / 2], [seconds**2 / 2, seconds]], dtype=torch.float64)
        state = step.to(values) @ self._state
        covariance = step @ self._covariance @ step.T + self._noise * spread
        gain = covariance[:, 0] / (covariance[0, 0] + 1 / seconds)
        self._state = state + gain.to(values)[:, None] * (values - state[0])
        self._covariance = covariance - gain[:, None] * covariance[0]
        return self._state[0]


class Smoother:
    """Smooths the alignment of one frame after the other; begins anew whenever the cluster or the mirror changes."""

    def __init__(self, smoothing: Smoothing) -> None:
        self.smoothing = smoothing
        self._begin()

    def _begin(self) -> None:
        smoothing = self.smoothing
        self._filter: Filter | None = None
        if smoothing.matrices == "one-euro":
            self._filter = OneEuro(smoothing.cutoff, smoothing.beta)
        elif smoothing.matrices == "kalman":
            self._filter = Kalman(smoothing.cutoff)
        self._flow: Tensor | None = None
        self._angle = 0.0
        self._of: tuple[int, bool, float] | None = None

    def __call__(self, alignment: Alignment, cluster: int, mirrored: bool, seconds: float) -> Alignment:
        """One frame's alignment (N = 1, at the template's own size) with matrix, residual flow and grid smoothed, image as it was.

        seconds: the frame's time stamp; a frame that is not later than the one before begins anew.
        """
        if self._of is not None and (self._of[:2] != (cluster, mirrored) or seconds <= self._of[2]):
            self._begin()
        passed = 0.0 if self._of is None else seconds - self._of[2]
        self._of = (cluster, mirrored, seconds)
        matrix, flow = alignment.matrix, alignment.residual_flow
        if matrix is not None and self._filter is not None:
            matrix = self._smooth_matrix(matrix, passed, self._filter)
        if flow is not None and self.smoothing.flow:
            flow = flow if self._flow is None else torch.lerp(flow, self._flow, self.smoothing.flow)
            self._flow = flow
        if matrix is alignment.matrix and flow is alignment.residual_flow:
            return alignment
        grid = identity_grid(*alignment.grid.shape[1:3], dtype=alignment.grid.dtype, device=alignment.grid.device)[None]
        grid = grid if flow is None else grid + flow
        grid = grid if matrix is None else transform_points(matrix, grid)
        grid = mirror_grid(grid, torch.tensor([mirrored], device=grid.device))
        return alignment._replace(grid=grid, matrix=matrix, residual_flow=flow)

    def _smooth_matrix(self, matrix: Tensor, passed: float, smooth: Filter) -> Tensor:
        rows = matrix[0].double()
        angle = math.atan2(float(rows[1, 0]), float(rows[0, 0]))
        # The turn that is nearest to the one before: from 179 to -179 degrees are two.
        self._angle += math.remainder(angle - self._angle, 2 * math.pi)
        log_size = torch.linalg.det(rows[:, :2]).abs().clamp(min=1e-12).log() / 2
        values = torch.stack([rows.new_tensor(self._angle), log_size, rows[0, 2], rows[1, 2]])
        return similarity_matrix(*smooth(values, passed))[None].to(matrix)


class Jitter:
    """How much points tremble: the standard deviation of the errors of their coordinates, if these were independent in time.

    The second difference in time of such errors has 6 times their variance, and of a motion at constant speed it is 0. So the
    figure is the root of the mean square of all second differences over 6, in pixels. It does not see errors that stay.
    """

    def __init__(self) -> None:
        self._last: list[Tensor] = []
        self._sum, self._count = 0.0, 0

    def add(self, points: Tensor) -> None:
        """The points `[P, 2]` of the next frame."""
        self._last = [*self._last[-2:], points.double()]
        if len(self._last) == 3:
            first, second, third = self._last
            self._sum += float((first - 2 * second + third).square().sum())
            self._count += points.numel()

    def restart(self) -> None:
        """The next points are others: no difference is taken to them."""
        self._last = []

    @property
    def value(self) -> float | None:
        """In pixels; None of fewer than three frames."""
        return math.sqrt(self._sum / self._count / 6) if self._count else None
