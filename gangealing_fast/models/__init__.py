# SPDX-License-Identifier: Apache-2.0
"""Networks, built on `gangealing_fast.ops` only. Names are resolved on first use, so importing this package is free."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gangealing_fast.models.cluster_classifier import ClusterClassifier
    from gangealing_fast.models.dcgan import Autoencoder, DcganCritic, DcganGenerator
    from gangealing_fast.models.discriminator import Discriminator
    from gangealing_fast.models.efficientnet import EfficientNetPerceptual
    from gangealing_fast.models.generator import Generator
    from gangealing_fast.models.latent_target import LatentTarget, principal_components
    from gangealing_fast.models.perceptual import Lpips, build_perceptual
    from gangealing_fast.models.spatial_transformer import Alignment, SpatialTransformer

_EXPORTS = {
    "Alignment": "spatial_transformer",
    "Autoencoder": "dcgan",
    "ClusterClassifier": "cluster_classifier",
    "DcganCritic": "dcgan",
    "DcganGenerator": "dcgan",
    "Discriminator": "discriminator",
    "EfficientNetPerceptual": "efficientnet",
    "Generator": "generator",
    "LatentTarget": "latent_target",
    "Lpips": "perceptual",
    "SpatialTransformer": "spatial_transformer",
    "build_perceptual": "perceptual",
    "principal_components": "latent_target",
}

__all__ = [
    "Alignment",
    "Autoencoder",
    "ClusterClassifier",
    "DcganCritic",
    "DcganGenerator",
    "Discriminator",
    "EfficientNetPerceptual",
    "Generator",
    "LatentTarget",
    "Lpips",
    "SpatialTransformer",
    "build_perceptual",
    "principal_components",
]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_EXPORTS[name]}"), name)


def __dir__() -> list[str]:
    return __all__
