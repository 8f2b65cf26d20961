# SPDX-License-Identifier: Apache-2.0
"""What a finder found, brought to the pixel: pictures are registered to a template of pictures that it had aligned before.

The template keeps the finder's frame, so that places of its template stay where they are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from gangealing_fast.applications.around import Around
from gangealing_fast.applications.looks import Finder, Look
from gangealing_fast.applications.placed import placed_look, starting_matrix
from gangealing_fast.applications.squares import Square, check_pictures, to_square
from gangealing_fast.congealing.newcomers import Register, joined_places, template_of
from gangealing_fast.congealing.placing import scaling
from gangealing_fast.congealing.records import Registered
from gangealing_fast.models.spatial_transformer import Alignment
from gangealing_fast.runtime.errors import UserError

FEWEST = 3
SIDE = 256
"""Pixels of a template a side while pictures are registered to it."""


def refined(base: Finder, images: Tensor | Sequence[Tensor], *, flow: bool = True, seed: int = 0) -> Refined:
    """Arguments and errors as `Aligner.refine`."""
    base.check()
    pictures: dict[int, list[Tensor]] = {}
    starts: dict[int, list[Tensor]] = {}
    for image in images:
        check_pictures(image[None])
        square = to_square(image[None].to(base.dtype), base.warping.padding_mode)
        look = base.look(image[None], square)
        cluster, start = int(look.cluster), scaling(base.size, SIDE) @ starting_matrix(look, base.size)[0]
        picture, mirror = _as_seen(image.float(), bool(look.mirrored))
        pictures.setdefault(cluster, []).append(picture)
        starts.setdefault(cluster, []).append(start @ mirror)
    registers = {
        cluster: template_of(shown, torch.stack(starts[cluster]), side=SIDE, flow=flow, seed=seed)
        for cluster, shown in sorted(pictures.items())
        if len(shown) >= FEWEST
    }
    if not registers:
        raise UserError(f"refining needs at least {FEWEST} pictures of a template, got {len(images)}; give more")
    return Refined(base, registers)


def _as_seen(image: Tensor, mirrored: bool) -> tuple[Tensor, Tensor]:
    """A picture `[3, H, W]`, mirrored if it is aligned so, and the matrix `[3, 3]` between both."""
    mirror = torch.eye(3, dtype=torch.float64)
    if not mirrored:
        return image, mirror
    mirror[0, 0], mirror[0, 2] = -1.0, image.shape[2] - 1.0
    return image.flip(2), mirror


class Refined(Around):
    """A finder, and for each of its clusters a template that pictures are registered to near the place that it finds.

    A picture of a cluster without such a template stays where the finder puts it.
    """

    def __init__(self, base: Finder, registers: Mapping[int, Register]) -> None:
        super().__init__(base)
        self._registers = registers

    def look(
        self,
        images: Tensor,
        square: Square,
        *,
        output_resolution: int | None = None,
        alpha: float = 1.0,
        assignment: tuple[Tensor, Tensor] | None = None,
        base_warp: Tensor | None = None,
    ) -> Look:
        first = self.base.look(images, square, assignment=assignment, base_warp=base_warp)
        return self._placed(self._find(images, first), square, output_resolution, alpha)

    @torch.no_grad()
    def _find(self, images: Tensor, first: Look) -> Registered:
        """How pictures `[N, 3, H, W]` lie on the refined templates, given the first look at them."""
        start = scaling(self.size, SIDE) @ starting_matrix(first, self.size)
        found = joined_places([self._find_one(images[k], first, start, k) for k in range(len(images))])
        matrix = scaling(SIDE, self.size) @ found.matrix
        return dataclasses.replace(found, matrix=matrix, flow=found.flow * (self.size / SIDE))

    def _find_one(self, image: Tensor, first: Look, start: Tensor, k: int) -> Registered:
        cluster, mirrored = first.cluster[k : k + 1], first.mirrored[k : k + 1]
        register = self._registers.get(int(cluster))
        if register is None:
            flow = torch.zeros(1, 2, 2, 2)
            return Registered(start[k : k + 1], flow, mirrored, cluster, torch.zeros(1))
        image, mirror = _as_seen(image.detach().float(), bool(mirrored))
        found = register(image, start=start[k] @ mirror)
        return dataclasses.replace(found, matrix=found.matrix @ mirror, mirrored=mirrored, cluster=cluster)

    def _placed(self, found: Registered, square: Square, output_resolution: int | None, alpha: float) -> Look:
        padding_mode = self.warping.padding_mode
        return placed_look(found, square, self.size, padding_mode=padding_mode, output_resolution=output_resolution, alpha=alpha)

    def stages(
        self, images: Tensor, square: Square, *, output_resolution: int | None = None, alpha: float = 1.0
    ) -> list[Alignment]:
        """What the finder finds, and then the same refined."""
        first = self.base.look(images, square, output_resolution=output_resolution, alpha=alpha)
        then = self.look(images, square, output_resolution=output_resolution, alpha=alpha)
        return [first.alignment, then.alignment]

    def assign(self, images: Tensor, square: Square) -> tuple[Tensor, Tensor]:
        return self.base.assign(images, square)

    def member(self, name: str, *, pixels: bool, output_resolution: int | None = None, alpha: float = 1.0) -> tuple[Tensor, Look]:
        raise UserError(f"a refined aligner knows no pictures by name, such as {name}: give pictures [N, 3, H, W]")

    def export(self, path: Path, *, side: int | None, output_resolution: int | None) -> Path:
        raise UserError("a refined aligner registers every picture, which is no network to export; export the aligner it refines")
