# SPDX-License-Identifier: Apache-2.0
"""A trained transformer as what finds how pictures lie on its templates."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from gangealing_fast.alignment.clustering import align_assigned
from gangealing_fast.applications import exporting
from gangealing_fast.applications.looks import Look
from gangealing_fast.applications.squares import Square
from gangealing_fast.geometry.warping import Warping
from gangealing_fast.geometry.warps import mirror_grid, mirror_pictures
from gangealing_fast.models.cluster_classifier import ClusterClassifier
from gangealing_fast.models.spatial_transformer import Alignment, SpatialTransformer
from gangealing_fast.runtime.errors import UserError


class Trained:
    """A transformer, the classifier of its clusters if it has several, and how it is used; see `Aligner`.

    Raises ValueError for flips without a flow, or for a cluster that there is not.
    """

    def __init__(
        self,
        transformer: SpatialTransformer,
        warping: Warping,
        classifier: ClusterClassifier | None,
        *,
        flips: bool = False,
        cluster: int | None = None,
    ) -> None:
        if flips and transformer.flow is None:
            raise ValueError("Aligner: flips are judged by the residual flow, which this transformer does not have.")
        if cluster is not None and not 0 <= cluster < transformer.heads:
            raise ValueError(f"Aligner: cluster must lie between 0 and {transformer.heads - 1}, got {cluster}.")
        self.transformer = transformer.eval().requires_grad_(False)
        self.classifier = None if classifier is None else classifier.eval().requires_grad_(False)
        self.warping, self.flips, self.cluster = warping, flips, cluster

    @property
    def size(self) -> int:
        return self.transformer.flow_size

    @property
    def reads(self) -> int | None:
        return self.transformer.input_size

    @property
    def clusters(self) -> int:
        return self.transformer.heads

    @property
    def decides(self) -> bool:
        return self.classifier is not None or self.flips or self.cluster is not None

    @property
    def dtype(self) -> torch.dtype:
        return next(self.transformer.parameters()).dtype

    @property
    def names(self) -> tuple[str, ...]:
        return ()

    def check(self) -> None:
        if self.classifier is None and self.transformer.heads > 1 and self.cluster is None:
            raise UserError(
                f"this aligner has {self.transformer.heads} clusters but no classifier to choose among them: run "
                "python -m gangealing_fast.classify on its results folder and use what that writes, or choose one with --cluster"
            )

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
        if assignment is None and self._compares_flows:
            cluster = self._chosen(images)
            alignment, mirrored = self.transformer.best_mirror(
                square.images,
                warping=self.warping,
                output_resolution=output_resolution,
                alpha=alpha,
                assignment=cluster,
                base_warp=base_warp,
            )
            return Look(square, cluster, mirrored, alignment)
        cluster, mirrored = self._assign(square.images) if assignment is None else assignment
        alignment = align_assigned(
            self.transformer,
            square.images,
            cluster,
            mirrored,
            warping=self.warping,
            output_resolution=output_resolution,
            alpha=alpha,
            base_warp=base_warp,
            batch=max(1, len(images)),
        )
        return Look(square, cluster, mirrored, alignment)

    @property
    def _compares_flows(self) -> bool:
        return self.flips and self.classifier is None and (self.transformer.heads == 1 or self.cluster is not None)

    def _chosen(self, images: Tensor) -> Tensor:
        """`[N]`: the cluster that was chosen for all pictures, 0 if none was."""
        return torch.full((len(images),), self.cluster or 0, device=images.device)

    def _assign(self, images: Tensor) -> tuple[Tensor, Tensor]:
        self.check()
        if self.classifier is not None:
            return self.classifier.assign(images, self.cluster)
        cluster = self._chosen(images)
        return cluster, torch.zeros_like(cluster, dtype=torch.bool)

    def assign(self, images: Tensor, square: Square) -> tuple[Tensor, Tensor]:
        if self._compares_flows:
            return self.look(images, square)[1:3]
        return self._assign(square.images)

    def stages(
        self, images: Tensor, square: Square, *, output_resolution: int | None = None, alpha: float = 1.0
    ) -> list[Alignment]:
        look = self.look(images, square)
        seen = mirror_pictures(square.images, look.mirrored)
        found = self.transformer.stages(
            seen, warping=self.warping, output_resolution=output_resolution, alpha=alpha, assignment=look.cluster
        )
        return [stage._replace(grid=mirror_grid(stage.grid, look.mirrored)) for stage in found]

    def member(self, name: str, *, pixels: bool, output_resolution: int | None = None, alpha: float = 1.0) -> tuple[Tensor, Look]:
        raise UserError(
            f"a trained aligner knows no pictures by name, such as {name}: give pictures [N, 3, H, W], or an aligner of a set, "
            "as python -m gangealing_fast.congeal writes it"
        )

    def export(self, path: Path, *, side: int | None, output_resolution: int | None) -> Path:
        exporting.check_ending(path)
        if self.flips:
            raise UserError(
                "an aligner that compares flows (flips=True) cannot be exported; train with --flips and classify instead"
            )
        self.check()
        made = exporting.program(
            self.transformer,
            self.classifier,
            self.warping,
            side=side,
            output_resolution=output_resolution,
            cluster=self.cluster,
        )
        return exporting.export(made, path)
