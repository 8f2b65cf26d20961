# SPDX-License-Identifier: Apache-2.0
"""A finder that another one stands in: what both have in common is the inner one's."""

from __future__ import annotations

import torch

from gangealing_fast.applications.looks import Finder
from gangealing_fast.geometry.warping import Warping
from gangealing_fast.models.cluster_classifier import ClusterClassifier
from gangealing_fast.models.spatial_transformer import SpatialTransformer


class Around:
    """The part of a `Finder` that says what it is, as `base` says it. It knows no pictures by name."""

    def __init__(self, base: Finder) -> None:
        self.base = base

    @property
    def size(self) -> int:
        return self.base.size

    @property
    def warping(self) -> Warping:
        return self.base.warping

    @warping.setter
    def warping(self, warping: Warping) -> None:
        self.base.warping = warping

    @property
    def reads(self) -> int | None:
        return self.base.reads

    @property
    def clusters(self) -> int:
        return self.base.clusters

    @property
    def decides(self) -> bool:
        return self.base.decides

    @property
    def dtype(self) -> torch.dtype:
        return self.base.dtype

    @property
    def names(self) -> tuple[str, ...]:
        return ()

    @property
    def transformer(self) -> SpatialTransformer:
        return self.base.transformer

    @property
    def classifier(self) -> ClusterClassifier | None:
        return self.base.classifier

    @property
    def flips(self) -> bool:
        return self.base.flips

    @property
    def cluster(self) -> int | None:
        return self.base.cluster

    def check(self) -> None:
        self.base.check()
