# SPDX-License-Identifier: Apache-2.0
"""A congealed set as what finds how pictures lie on its templates: its own by what was found, others by registering them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from gangealing_fast.applications.looks import Look
from gangealing_fast.applications.placed import placed_look
from gangealing_fast.applications.squares import Square, to_square
from gangealing_fast.congealing import FeatureNetwork
from gangealing_fast.congealing.folder import SavedSet, fingerprint
from gangealing_fast.congealing.newcomers import Register, joined_places, register_of
from gangealing_fast.congealing.records import Registered
from gangealing_fast.data.originals import Originals
from gangealing_fast.data.pictures import to_float, to_uint8
from gangealing_fast.geometry.warping import PaddingMode, Warping
from gangealing_fast.models.cluster_classifier import ClusterClassifier
from gangealing_fast.models.spatial_transformer import Alignment, SpatialTransformer
from gangealing_fast.runtime.errors import UserError


class Members:
    """The pictures of a set, and a template for each of its clusters that other pictures are registered to.

    A picture is a member if it has the pixels of one, whatever its name. Raises UserError if what registers new pictures cannot be
    made of the set's state. features: see `Aligner.load`.
    """

    classifier: ClusterClassifier | None = None
    cluster: int | None = None
    reads: int | None = None
    dtype = torch.float32

    def __init__(
        self, saved: SavedSet, path: Path, padding_mode: PaddingMode = "border", features: FeatureNetwork | str | Path | None = None
    ) -> None:
        self._saved, self._path = saved, path
        self.warping = Warping(padding_mode)
        self._register: Register = register_of(saved, path, features)
        self._number = {name: k for k, name in reversed(list(enumerate(saved.names)))}
        self._known = {mark: k for k, mark in reversed(list(enumerate(saved.fingerprints)))}
        self._sizes = {(int(width), int(height)) for width, height in saved.sizes}
        self._originals: Originals | None = None

    @property
    def size(self) -> int:
        return self._saved.side

    @property
    def clusters(self) -> int:
        return len(self._saved.found.template)

    @property
    def decides(self) -> bool:
        return self.clusters > 1 or self.flips

    @property
    def flips(self) -> bool:
        return bool(self._saved.found.mirrored.any())

    @property
    def names(self) -> tuple[str, ...]:
        return self._saved.names

    @property
    def transformer(self) -> SpatialTransformer:
        raise UserError(f"{self._path} is a set that was aligned jointly: it has templates, but no network")

    def check(self) -> None:
        """A set always knows the cluster of a picture."""

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
        """Raises ValueError for an assignment or a base_warp: a set finds clusters, mirrors and places by itself."""
        if assignment is not None or base_warp is not None:
            raise ValueError("an aligner of a set takes neither assignment nor base_warp: it finds a picture's place by itself.")
        return self._placed(self._find(images), square, output_resolution, alpha)

    def _placed(self, found: Registered, square: Square, output_resolution: int | None, alpha: float) -> Look:
        padding_mode, side = self.warping.padding_mode, self.size
        return placed_look(found, square, side, padding_mode=padding_mode, output_resolution=output_resolution, alpha=alpha)

    @torch.no_grad()
    def _find(self, images: Tensor) -> Registered:
        """How pictures `[N, 3, H, W]` lie on the templates."""
        found = [self._find_one(image) for image in images.detach()]
        return joined_places(found)

    def _find_one(self, image: Tensor) -> Registered:
        if (image.shape[2], image.shape[1]) in self._sizes:
            known = self._known.get(fingerprint(to_uint8(image)))
            if known is not None:
                return self._place(known)
        return self._register(image.float())

    def _place(self, number: int) -> Registered:
        found, row = self._saved.found, slice(number, number + 1)
        return Registered(found.matrix[row], found.flow[row], found.mirrored[row], found.cluster[row], found.confidence[row])

    def stages(
        self, images: Tensor, square: Square, *, output_resolution: int | None = None, alpha: float = 1.0
    ) -> list[Alignment]:
        """Without the flow, and then with it."""
        found = self._find(images)
        flat = Registered(found.matrix, torch.zeros_like(found.flow), found.mirrored, found.cluster, found.confidence)
        return [self._placed(stage, square, output_resolution, alpha).alignment for stage in (flat, found)]

    def assign(self, images: Tensor, square: Square) -> tuple[Tensor, Tensor]:
        found = self._find(images)
        return found.cluster, found.mirrored

    def member(self, name: str, *, pixels: bool, output_resolution: int | None = None, alpha: float = 1.0) -> tuple[Tensor, Look]:
        if name not in self._number:
            first = ", ".join(self.names[:3])
            raise UserError(f"{self._path} has no picture {name}: give a name as the set has it ({first}, ...), or pictures")
        number = self._number[name]
        width, height = self._saved.sizes[number].tolist()
        if min(width, height) < 2:
            raise UserError(f"{name} of {self._path} has a side of one pixel, on which no points are sought; leave it out")
        images = self._read(number) if pixels else torch.empty(1, 3, height, width, device="meta")
        square = to_square(images, self.warping.padding_mode)
        return images, self._placed(self._place(number), square, output_resolution, alpha)

    def _read(self, number: int) -> Tensor:
        """The picture `[1, 3, H, W]` from where the set's pictures were. Raises UserError if it is missing or another one."""
        name = self.names[number]
        if self._originals is None:
            self._originals = Originals(self._saved.source)
        picture = self._originals.read(name)
        if fingerprint(picture) != self._saved.fingerprints[number]:
            raise UserError(
                f"{name} in {self._saved.source} is another picture than when {self._path} was made: congeal again, or restore it"
            )
        return to_float(picture)[None]

    def export(self, path: Path, *, side: int | None, output_resolution: int | None) -> Path:
        raise UserError(
            f"{self._path} is a set that was aligned jointly, which is no network to export; "
            "train an aligner with python -m gangealing_fast.train and export that"
        )
