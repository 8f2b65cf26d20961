# SPDX-License-Identifier: Apache-2.0
"""Measurements: `python -m benchmarks` for the operators, `python -m benchmarks.training_step` for the whole training step,
`pytest benchmarks` for both under pytest-benchmark.

`case.py` says how to write a benchmark. `harness.py` measures one case. What it uses: `runner.py` computes a variant and compares
it, `timing.py` times several in turn, `graphs.py` records CUDA graphs, `peaks.py` finds peak memory. `levels.py` holds a process
to a processor's vector level, `suite.py` is what `make bench` runs, `report.py` writes the page.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.case import Case


def operators() -> list[str]:
    """Every operator that has a bench file. Imports no torch."""
    names = (module.name for module in pkgutil.iter_modules(__path__))
    return sorted(name.removeprefix("bench_") for name in names if name.startswith("bench_"))


def cases(operator: str) -> list[Case]:
    """The cases of an operator's bench file; everything that measures an operator takes them from here."""
    return importlib.import_module(f"benchmarks.bench_{operator}").cases()
