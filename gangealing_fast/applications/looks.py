# SPDX-License-Identifier: Apache-2.0
"""What is found out about pictures, and what finds it: a trained transformer, a set that was aligned jointly, or both in turn.

`Aligner` carries points, masks and edits by what a finder found, and asks a finder nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from gangealing_fast.applications.squares import Square
from gangealing_fast.geometry.warping import Warping
from gangealing_fast.models.cluster_classifier import ClusterClassifier
from gangealing_fast.models.spatial_transformer import Alignment, SpatialTransformer


class Look(NamedTuple):
    """What an aligner found out about pictures, for everything that is then asked about them.

    square: the pictures as the network saw them. cluster `[N]`, mirrored `[N]`: whose template they belong to, and whether as their
    mirror images. alignment: see `Aligner.warp`. spread: `[N]`, how far several votes on the alignment are apart, in pixels of the
    template; None where there are none.
    """

    square: Square
    cluster: Tensor
    mirrored: Tensor
    alignment: Alignment
    spread: Tensor | None = None

    def without_pictures(self) -> Look:
        """The same for whoever needs no pixels of it any more: `square.images` keeps its shape alone."""
        shape = self.square.images.new_empty(1).expand(self.square.images.shape)
        return self._replace(square=self.square._replace(images=shape))


class Finder(Protocol):
    """Finds how pictures lie on templates of `size` pixels.

    warping: what is read beyond a picture's edge. reads: the side of the square that pictures are cut to if nothing else is said,
    None if they are taken whole. clusters: how many templates there are. decides: whether there is a cluster or a mirror to decide
    on. dtype: what it computes in. names: the pictures it knows already. transformer, classifier, flips, cluster: of a trained
    aligner, see `Aligner`.
    """

    warping: Warping

    @property
    def size(self) -> int: ...

    @property
    def reads(self) -> int | None: ...

    @property
    def clusters(self) -> int: ...

    @property
    def decides(self) -> bool: ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def names(self) -> tuple[str, ...]: ...

    @property
    def transformer(self) -> SpatialTransformer:
        """Raises UserError if there is none."""

    @property
    def classifier(self) -> ClusterClassifier | None: ...

    @property
    def flips(self) -> bool: ...

    @property
    def cluster(self) -> int | None: ...

    def check(self) -> None:
        """Raise UserError if there are several clusters and nothing to choose among them by."""

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
        """Pictures `[N, 3, H, W]` and their square; the other arguments as in `Aligner.warp`."""

    def stages(
        self, images: Tensor, square: Square, *, output_resolution: int | None = None, alpha: float = 1.0
    ) -> list[Alignment]:
        """As `Aligner.stages`."""

    def assign(self, images: Tensor, square: Square) -> tuple[Tensor, Tensor]:
        """As `Aligner.assign`."""

    def member(self, name: str, *, pixels: bool, output_resolution: int | None = None, alpha: float = 1.0) -> tuple[Tensor, Look]:
        """A known picture `[1, 3, H, W]` by its name, and the look at it. Without `pixels` both keep their shapes alone (device
        "meta"), and no file is read. Raises UserError if the picture is not known, or if its file is missing or another one."""

    def export(self, path: Path, *, side: int | None, output_resolution: int | None) -> Path:
        """As `Aligner.export`."""


def joined(looks: Sequence[Look]) -> Look:
    """One look of several at pictures of one size. Raises ValueError for none, or for several sizes."""
    shapes = {tuple(look.square.images.shape[1:]) for look in looks}
    placed = {(look.square.left, look.square.top, look.square.scale) for look in looks}
    if len(shapes) != 1 or len(placed) != 1:
        raise ValueError(
            f"looks at pictures of one size are joined, got {len(shapes)} sizes: ask for pictures of one size at a time."
        )
    alignments = [look.alignment for look in looks]
    spreads = [look.spread for look in looks if look.spread is not None]
    flows = [found.residual_flow for found in alignments if found.residual_flow is not None]
    matrices = [found.matrix for found in alignments if found.matrix is not None]
    return Look(
        looks[0].square._replace(images=torch.cat([look.square.images for look in looks])),
        torch.cat([look.cluster for look in looks]),
        torch.cat([look.mirrored for look in looks]),
        Alignment(
            torch.cat([found.image for found in alignments]),
            torch.cat([found.grid for found in alignments]),
            torch.cat(flows) if flows else None,
            torch.cat(matrices) if matrices else None,
        ),
        torch.cat(spreads) if spreads else None,
    )
