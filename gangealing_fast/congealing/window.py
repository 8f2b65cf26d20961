# SPDX-License-Identifier: Apache-2.0
"""The part of the template's frame that the pictures have in common, which the fine steps look at more closely."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from gangealing_fast.congealing.features import places
from gangealing_fast.congealing.matching import Matches
from gangealing_fast.congealing.template import Level

DEVIATIONS = 1.7
"""Half the window's side, in standard deviations of where the saliency lies."""
SMALLEST = 0.5
"""Half the side of the smallest window: more enlarged, pictures hold nothing new."""


class Window(NamedTuple):
    """A square in a frame from -1 to 1: `x`, `y` of its middle, and half its side."""

    x: float
    y: float
    half: float

    def framed(self, points: Tensor) -> Tensor:
        """Points `[..., 2]` of the window, from -1 to 1, as points of the frame."""
        return points * self.half + points.new_tensor([self.x, self.y])

    def framed_matches(self, matches: Matches) -> Matches:
        """Matches of places in the window as matches of points of the frame."""
        return matches._replace(source=self.framed(matches.source), target=self.framed(matches.target))


WHOLE = Window(0.0, 0.0, 1.0)


def window_of(level: Level) -> Window:
    """The smallest square that holds what is more salient than half of the places, `DEVIATIONS` to each side; inside the frame."""
    if not bool(level.known.any()):
        return WHOLE
    share = (level.saliency - level.saliency[level.known].median()).clamp_min(0).square()
    if float(share.sum()) <= 0:
        return WHOLE
    share, points = share / share.sum(), places(level.grid)
    middle = share @ points
    half = float(DEVIATIONS * (share @ (points - middle).square()).sqrt().max())
    half = min(max(half, SMALLEST), 1.0)
    x, y = (float(value) for value in middle.clamp(half - 1, 1 - half))
    return Window(x, y, half)
