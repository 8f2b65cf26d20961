# SPDX-License-Identifier: Apache-2.0
"""Aligns any collection of unaligned pictures: GAN-supervised alignment with fused kernels.

Importing the package imports nothing heavy: `gangealing_fast.ops`, `.models`, `.Aligner` and so on load on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gangealing_fast import adversarial as adversarial
    from gangealing_fast import alignment as alignment
    from gangealing_fast import applications as applications
    from gangealing_fast import autoencoders as autoencoders
    from gangealing_fast import checkpoints as checkpoints
    from gangealing_fast import congealing as congealing
    from gangealing_fast import contrastive as contrastive
    from gangealing_fast import data as data
    from gangealing_fast import geometry as geometry
    from gangealing_fast import interface as interface
    from gangealing_fast import inversion as inversion
    from gangealing_fast import metrics as metrics
    from gangealing_fast import models as models
    from gangealing_fast import ops as ops
    from gangealing_fast import pretraining as pretraining
    from gangealing_fast import report as report
    from gangealing_fast import runtime as runtime
    from gangealing_fast import storage as storage
    from gangealing_fast import training as training
    from gangealing_fast import translation as translation
    from gangealing_fast.applications.aligner import Aligner
    from gangealing_fast.runtime.errors import UserError

__version__ = "0.1.0"
__all__ = ["Aligner", "UserError", "__version__"]

_ATTRIBUTES = {"Aligner": "gangealing_fast.applications.aligner", "UserError": "gangealing_fast.runtime.errors"}
_PACKAGES = {
    "adversarial",
    "alignment",
    "applications",
    "autoencoders",
    "checkpoints",
    "congealing",
    "contrastive",
    "data",
    "geometry",
    "interface",
    "inversion",
    "kernels",
    "metrics",
    "models",
    "ops",
    "pretraining",
    "report",
    "runtime",
    "storage",
    "training",
    "translation",
}


def __getattr__(name: str) -> Any:
    if name in _ATTRIBUTES:
        return getattr(importlib.import_module(_ATTRIBUTES[name]), name)
    if name in _PACKAGES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_ATTRIBUTES, *_PACKAGES})
