# SPDX-License-Identifier: Apache-2.0
"""Aligns any collection of unaligned pictures: GAN-supervised alignment with fused kernels.

Importing the package imports nothing heavy: `gangealing_fast.ops`, `.models`, `.Aligner` and so on load on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gangealing_fast.applications.aligner import Aligner
    from gangealing_fast.runtime.errors import UserError

__version__ = "0.1.0"
__all__ = ["Aligner", "UserError", "__version__"]

_ATTRIBUTES = {"Aligner": "gangealing_fast.applications.aligner", "UserError": "gangealing_fast.runtime.errors"}
_PACKAGES = {
    "adversarial",
    "alignment",
    "applications",
    "checkpoints",
    "congealing",
    "contrastive",
    "data",
    "geometry",
    "kernels",
    "metrics",
    "models",
    "ops",
    "pretraining",
    "report",
    "runtime",
    "storage",
    "training",
}


def __getattr__(name: str) -> Any:
    if name in _ATTRIBUTES:
        return getattr(importlib.import_module(_ATTRIBUTES[name]), name)
    if name in _PACKAGES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_ATTRIBUTES, *_PACKAGES})
