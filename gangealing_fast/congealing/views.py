# SPDX-License-Identifier: Apache-2.0
"""Pictures as a template sees them: mirrored, carried into its frame, and described by features."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from gangealing_fast.congealing.features import Bases, FeatureNetwork, places, read_places
from gangealing_fast.congealing.pictures import Squares
from gangealing_fast.congealing.transforms import carry
from gangealing_fast.congealing.window import WHOLE, Window
from gangealing_fast.geometry.warps import read_flow
from gangealing_fast.ops import grid_sample

_PICTURES = 8
_TO_LEARN_FROM = 64


class Described:
    """Unit vectors `[n, P, D]` of n pictures, which places lie inside the picture `[n, P]`, and the bases they are written in."""

    def __init__(self, vectors: Tensor, inside: Tensor, bases: Bases) -> None:
        self.vectors, self.inside, self.bases = vectors, inside, bases


class Views:
    """A set of pictures and the network that describes them."""

    def __init__(self, squares: Squares, network: FeatureNetwork) -> None:
        self.squares, self.network = squares, network

    def pictures(
        self, rows: Tensor, matrix: Tensor, mirrored: Tensor, size: int, flow: Tensor | None = None, window: Window = WHOLE
    ) -> tuple[Tensor, Tensor]:
        """Pictures `[n, 3, size, size]` and masks in a window of the frame.

        matrix `[n, 3, 3]`: from the square, after its mirror, to the frame. flow `[n, g, g, 2]`: in the frame.
        """
        at = window.framed(places(size)).expand(len(rows), -1, -1)
        if flow is not None:
            at = at + read_flow(flow, at)
        at = carry(torch.linalg.inv(matrix), at).unflatten(1, (size, size))
        # To read a mirror image is to read the picture from the other side.
        at = at * torch.where(mirrored[:, None], at.new_tensor([-1.0, 1.0]), at.new_tensor([1.0, 1.0]))[:, None, None]
        images, masks = at.new_empty(len(rows), 3, size, size), at.new_empty(len(rows), 1, size, size)
        for places_of, values in self.squares.stored(rows):
            values, here = values.float(), at[places_of]
            images[places_of] = grid_sample(values[:, :3], here, padding_mode="reflection")
            masks[places_of] = grid_sample(values[:, 3:], here)
        return images.div_(127.5).sub_(1), masks.div_(255)

    def describe(
        self,
        rows: Tensor,
        matrix: Tensor,
        mirrored: Tensor,
        level: tuple[int, int],
        bases: Bases | torch.Generator,
        flow: Tensor | None = None,
        window: Window = WHOLE,
    ) -> Described:
        """Features of pictures in a window of the frame.

        level: pixels and cells a side of the window. bases: known ones, or what draws places to learn.
        """
        size, grid = level
        taps: list[list[Tensor]] = []
        insides, middle = [], self._middle(grid)
        for part in torch.arange(len(rows)).split(_PICTURES):
            moved = self.pictures(rows[part], matrix[part], mirrored[part], size, None if flow is None else flow[part], window)
            taps.append([read_places(tap, size, grid) for tap in self.network.features(moved[0])])
            insides.append(((F.adaptive_avg_pool2d(moved[1], grid) > 0.9) & middle).flatten(1))
        inside = torch.cat(insides)
        together = [torch.cat(parts) for parts in zip(*taps, strict=True)]
        if isinstance(bases, torch.Generator):
            bases = Bases.fit([tap[:_TO_LEARN_FROM] for tap in together], inside[:_TO_LEARN_FROM], bases)
        return Described(bases.apply(together), inside, bases)

    def _middle(self, grid: int) -> Tensor:
        """`[grid, grid]`, bool: the places that the network's padding does not disturb."""
        rim = round(self.network.rim * grid)
        there = torch.zeros(grid, grid, dtype=torch.bool)
        there[rim : grid - rim, rim : grid - rim] = True
        return there
