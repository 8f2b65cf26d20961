# SPDX-License-Identifier: Apache-2.0
"""Networks, built on `gangealing_fast.ops` only. Names are resolved on first use, so importing this package is free."""

from __future__ import annotations

import importlib

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

__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> object:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_EXPORTS[name]}"), name)


def __dir__() -> list[str]:
    return __all__
