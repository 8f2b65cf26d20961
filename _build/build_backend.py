# SPDX-License-Identifier: Apache-2.0
"""setuptools' build backend with one rule added: torch is needed to build only where the target environment has none.

pip's isolated build environment would otherwise download a torch of its own and build against that one.
"""

from __future__ import annotations

from typing import Any

import toolchain
from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403  (the hooks that need no change)


def _with_torch(requirements: list[str]) -> list[str]:
    return requirements if toolchain.find_torch() else [*requirements, toolchain.TORCH_REQUIREMENT]


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    """The PEP 517 hook."""
    return _with_torch(build_meta.get_requires_for_build_wheel(config_settings))


def get_requires_for_build_editable(config_settings: Any = None) -> list[str]:
    """The PEP 660 hook."""
    return _with_torch(build_meta.get_requires_for_build_editable(config_settings))
