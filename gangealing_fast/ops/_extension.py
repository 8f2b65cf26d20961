# SPDX-License-Identifier: Apache-2.0
"""Loads the compiled library `_C.so` and says what it holds.

The library knows no Python: it adds kernels for operators whose schemas `gangealing_fast.ops` defines. Where it is
missing the references of the operators serve, and `python -m gangealing_fast.env` says so; where it is there but does
not load, that is an error, never a silent fallback.
"""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path

from gangealing_fast.ops import _levels

LIBRARY = Path(__file__).resolve().parent.parent / "_C.so"
BUILD_REPORT = LIBRARY.with_suffix(".json")


@functools.cache
def load() -> bool:
    """Load the library once per process.

    Returns:
        Whether there is one. `GGF_DISABLE_EXTENSION=1` in the environment leaves it unloaded, to compare with the references.

    Raises:
        ImportError: the library exists but cannot be loaded.
        UserError: `GGF_CPU_LEVEL` asks for a vector level that there is not, or that this processor lacks.
    """
    level = _levels.wished()
    if disabled() or not LIBRARY.exists():
        return False
    import torch

    try:
        torch.ops.load_library(str(LIBRARY))
    except (OSError, RuntimeError) as error:
        raise ImportError(
            f"The compiled library {LIBRARY} does not load with torch {torch.__version__}: {error}. "
            "Rebuild it with `pip install -e .`, or delete the file to run on the reference implementations."
        ) from error
    if level is not None:
        _levels.choose(level)
    return True


def disabled() -> bool:
    """Whether the environment asks for the references."""
    return os.environ.get("GGF_DISABLE_EXTENSION", "0") not in ("", "0")


def build_report() -> dict[str, object]:
    """What the build wrote down: compilers, sources, architectures, reasons for what was left out; {} without a build."""
    try:
        return json.loads(BUILD_REPORT.read_text())
    except (OSError, ValueError):
        return {}
