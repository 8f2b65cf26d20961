# SPDX-License-Identifier: Apache-2.0
"""Use a trained aligner: align pictures, carry points to the template and back, from one picture to another."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from gangealing_fast.alignment import points as points_of
from gangealing_fast.alignment.clustering import align_assigned
from gangealing_fast.errors import UserError
from gangealing_fast.foreign.reading import read
from gangealing_fast.models.cluster_classifier import ClusterClassifier
from gangealing_fast.models.spatial_transformer import Alignment, SpatialTransformer

EXPORT_KIND = "aligner"


class Aligner:
    """A trained transformer, the classifier of its clusters where it has several, and how it treats the picture's border.

    Pictures are `[N, 3, S, S]` in [-1, 1] of any side; points are `[N, P, 2]`, (x, y) in pixels, 0 the centre of the first
    pixel.
    """

    def __init__(
        self,
        transformer: SpatialTransformer,
        padding_mode: str = "border",
        iters: int = 1,
        classifier: ClusterClassifier | None = None,
    ) -> None:
        self.transformer = transformer.eval().requires_grad_(False)
        self.classifier = None if classifier is None else classifier.eval().requires_grad_(False)
        self.padding_mode, self.iters = padding_mode, iters

    @classmethod
    def load(cls, path: str | Path) -> Aligner:
        """From a results folder, its aligner.safetensors, or any checkpoint with an aligner (`foreign.reading.read`).

        Raises UserError where there is none.
        """
        parts = read(path)
        if parts.transformer is None:
            raise UserError(f"{path} holds no aligner; give a results folder of the train command or the original's checkpoint")
        return cls(parts.transformer, parts.settings["padding_mode"], parts.settings["iters"], parts.classifier)

    def assign(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(cluster `[N]`, whether the picture is mirrored before it is aligned `[N]`), as the classifier says; 0 and False without.

        Raises UserError where there are several clusters and no classifier.
        """
        if self.classifier is not None:
            return self.classifier.assign(images)
        if self.transformer.heads > 1:
            raise UserError(
                f"this aligner has {self.transformer.heads} clusters but no classifier to choose among them: run "
                "python -m gangealing_fast.classify on its results folder and use what that writes"
            )
        nothing = torch.zeros(len(images), dtype=torch.long, device=images.device)
        return nothing, nothing.bool()

    @torch.no_grad()
    def warp(
        self, images: Tensor, *, output_resolution: int | None = None, assignment: tuple[Tensor, Tensor] | None = None
    ) -> Alignment:
        """Aligned pictures, the grid they were read at, residual flow and matrix; each picture by the head of its cluster.

        assignment: what `assign` returned, where it is at hand already.
        """
        cluster, mirrored = self.assign(images) if assignment is None else assignment
        use = {"padding_mode": self.padding_mode, "iters": self.iters, "output_resolution": output_resolution}
        return align_assigned(self.transformer, images, cluster, mirrored, batch=max(1, len(images)), **use)

    def align(self, images: Tensor, *, output_resolution: int | None = None) -> Tensor:
        """Aligned pictures `[N, 3, R, R]`, R = output_resolution or the transformer's own size."""
        return self.warp(images, output_resolution=output_resolution).image

    def from_template(self, images: Tensor, points: Tensor) -> Tensor:
        """Points of the template (pixels of the transformer's own size) → pixels of each picture, sub-pixel."""
        return points_of.from_template(self.warp(images).grid, points, _side(images))

    def to_template(self, images: Tensor, points: Tensor) -> Tensor:
        """Pixels of each picture → points of the template; exact for a similarity, else the nearest grid point."""
        record, side = self.warp(images), _side(images)
        if record.residual_flow is None and record.matrix is not None and not self.assign(images)[1].any():
            return points_of.similarity_to_template(record.matrix, points, self.transformer.flow_size, side)
        return points_of.to_template(record.grid, points, side).to(points.dtype)

    def transfer(self, first: Tensor, second: Tensor, points: Tensor) -> Tensor:
        """Pixels of the first pictures → the corresponding pixels of the second ones."""
        return self.from_template(second, self.to_template(first, points))


def _side(images: Tensor) -> int:
    if images.ndim != 4 or images.shape[2] != images.shape[3] or images.shape[2] < 2:
        raise ValueError(f"points are mapped on square pictures [N, 3, S, S], got {list(images.shape)}")
    return images.shape[2]
