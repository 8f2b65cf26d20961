# SPDX-License-Identifier: Apache-2.0
"""Pictures of another domain, found by a finder that was made for this one: they are translated, and what is found holds for them.

A translation keeps where things are (arXiv 1804.04732 calls that content), so that a warp of the translation is one of the picture.
Every picture is translated in several styles, and each translation is looked at. The warp is their median, place by place, which a
few bad translations do not move. How far the styles are from it says how sure it is.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from gangealing_fast.applications.around import Around
from gangealing_fast.applications.looks import Finder, Look
from gangealing_fast.applications.squares import Square
from gangealing_fast.models.layers import resize_to
from gangealing_fast.models.spatial_transformer import Alignment
from gangealing_fast.ops import mipmap_warp
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.translation import Translator
from gangealing_fast.translation.translator import NAMES, DomainName

RANDOM = 5
"""Random styles that vote if none are given."""


class Through(Around):
    """A finder whose pictures are translated first, from domain `source` of the translator into `target`, which may be the same.

    codes: styles `[K, style_numbers]` that vote, the same for all pictures; five random ones if None. Cluster and mirror are those
    that most styles say, and only these styles vote on the warp. `Look.spread` `[N]`: mean distance of the styles' warps from the
    median one, in pixels of the template; 0 with one style. Raises ValueError for codes of another length, or another domain.
    """

    def __init__(
        self,
        base: Finder,
        translator: Translator,
        codes: Tensor | None = None,
        *,
        source: DomainName = "first",
        target: DomainName = "second",
    ) -> None:
        if source not in NAMES or target not in NAMES:
            raise ValueError(f'Through: source and target are "first" or "second", got {source!r} and {target!r}.')
        super().__init__(base)
        self.translator = translator.eval().requires_grad_(False)
        self.source, self.target = source, target
        self.codes = translator.random_styles(RANDOM) if codes is None else translator.styles_of(styles=codes)

    @torch.no_grad()
    def translated(self, square: Square) -> Tensor:
        """Translations `[N * K, 3, S, S]` of squares, style fastest, at the side that the translator was trained on."""
        images = resize_to(square.images.detach().float(), self.translator.size).clamp(-1, 1)
        made = self.translator.translate(images, styles=self.codes, source=self.source, target=self.target)
        return made.flatten(0, 1).to(square.images.dtype)

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
        count, made = len(self.codes), self.translated(square)
        wanted = None if assignment is None else (assignment[0].repeat_interleave(count), assignment[1].repeat_interleave(count))
        warp = None if base_warp is None else base_warp.repeat_interleave(count, 0)
        seen = self.base.look(
            made, Square(made, 0, 0), output_resolution=output_resolution, alpha=alpha, assignment=wanted, base_warp=warp
        )
        cluster, mirrored, voting = _majority(seen, count)
        alignment = self._voted(seen.alignment, voting, square)
        away = seen.alignment.grid.unflatten(0, (-1, count)) - alignment.grid[:, None]
        away = away.norm(dim=-1).flatten(2).mean(2) * voting
        spread = away.sum(1) / voting.sum(1) * (self.size / 2)
        return Look(square, cluster, mirrored, alignment, spread)

    def _voted(self, found: Alignment, voting: Tensor, square: Square) -> Alignment:
        grid = _median(found.grid, voting)
        flow = None if found.residual_flow is None else _median(found.residual_flow, voting)
        matrix = None if found.matrix is None else _median(found.matrix, voting)
        image = mipmap_warp(square.images, grid, padding_mode=self.warping.padding_mode)
        return Alignment(image, grid, flow, matrix)

    def stages(
        self, images: Tensor, square: Square, *, output_resolution: int | None = None, alpha: float = 1.0
    ) -> list[Alignment]:
        made = self.translated(square)
        found = self.base.stages(made, Square(made, 0, 0), output_resolution=output_resolution, alpha=alpha)
        _, _, voting = _majority(self.base.look(made, Square(made, 0, 0)), len(self.codes))
        return [self._voted(stage, voting, square) for stage in found]

    def assign(self, images: Tensor, square: Square) -> tuple[Tensor, Tensor]:
        return self.look(images, square)[1:3]

    def member(self, name: str, *, pixels: bool, output_resolution: int | None = None, alpha: float = 1.0) -> tuple[Tensor, Look]:
        raise UserError(f"an aligner that works through a translator knows no pictures by name, such as {name}: give the pictures")

    def export(self, path: Path, *, side: int | None, output_resolution: int | None) -> Path:
        raise UserError("an aligner that works through a translator is no one network: export the aligner and the translator")


def _majority(seen: Look, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """cluster `[N]` and mirror `[N]` that most of `count` looks at each picture say (the first of equals), and which looks do."""
    answers = (2 * seen.cluster + seen.mirrored.to(seen.cluster.dtype)).unflatten(0, (-1, count))
    agreeing = (answers[:, :, None] == answers[:, None]).sum(2)
    answer = answers.gather(1, agreeing.argmax(1, keepdim=True))
    return (answer // 2)[:, 0], (answer % 2).bool()[:, 0], answers == answer


def _median(values: Tensor, voting: Tensor) -> Tensor:
    """`[N, ...]`: of values `[N * K, ...]` the median over the styles that vote, `[N, K]` bool; of two middle ones the mean."""
    if not len(voting):
        return values
    several = values.unflatten(0, voting.shape)
    shown = voting.reshape(*voting.shape, *[1] * (several.ndim - 2))
    ordered = several.masked_fill(~shown, torch.inf).sort(1).values
    rows, count = torch.arange(len(voting), device=voting.device), voting.sum(1)
    return (ordered[rows, (count - 1) // 2] + ordered[rows, count // 2]) / 2
