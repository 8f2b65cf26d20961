# SPDX-License-Identifier: Apache-2.0
"""Joint alignment of a set of pictures: by frozen features, and by the classical entropy method.

Importing this package imports no torch: its names load on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gangealing_fast.congealing.engine import FeatureCongealed as FeatureCongealed
    from gangealing_fast.congealing.engine import build_templates as build_templates
    from gangealing_fast.congealing.engine import congeal as congeal
    from gangealing_fast.congealing.engine import register as register
    from gangealing_fast.congealing.entropy import congeal_entropy as congeal_entropy
    from gangealing_fast.congealing.entropy import congeal_stack as congeal_stack
    from gangealing_fast.congealing.features import FeatureNetwork as FeatureNetwork
    from gangealing_fast.congealing.features import efficientnet_features as efficientnet_features
    from gangealing_fast.congealing.features import load_features as load_features
    from gangealing_fast.congealing.features import self_supervised_features as self_supervised_features
    from gangealing_fast.congealing.funnel import Funnel as Funnel
    from gangealing_fast.congealing.kinds import Keep as Keep
    from gangealing_fast.congealing.records import Congealed as Congealed
    from gangealing_fast.congealing.records import Pictures as Pictures
    from gangealing_fast.congealing.records import Registered as Registered
    from gangealing_fast.congealing.templates import Templates as Templates

_PLACES = {
    "engine": ("FeatureCongealed", "Keep", "build_templates", "congeal", "register"),
    "entropy": ("congeal_entropy", "congeal_stack"),
    "features": ("FeatureNetwork", "efficientnet_features", "load_features", "self_supervised_features"),
    "funnel": ("Funnel",),
    "records": ("Congealed", "Pictures", "Registered"),
    "templates": ("Templates",),
}
_FILES = {name: file for file, names in _PLACES.items() for name in names}

__all__ = sorted(_FILES)


def __getattr__(name: str) -> Any:
    if name in _FILES:
        return getattr(importlib.import_module(f"{__name__}.{_FILES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_FILES})
