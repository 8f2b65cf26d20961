# SPDX-License-Identifier: Apache-2.0
"""Makes the Triton kernels of this checkout importable, whatever an installed copy maps `gangealing_fast.kernels` to."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def use_kernels() -> None:
    """Have `gangealing_fast.kernels` mean `kernels/` beside this folder."""
    folder = ROOT / "kernels"
    loaded = sys.modules.get("gangealing_fast.kernels")
    if loaded is not None and loaded.__path__ == [str(folder)]:
        return
    specification = importlib.util.spec_from_file_location(
        "gangealing_fast.kernels", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert specification and specification.loader
    package = importlib.util.module_from_spec(specification)
    sys.modules["gangealing_fast.kernels"] = package
    specification.loader.exec_module(package)
