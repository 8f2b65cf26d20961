# SPDX-License-Identifier: Apache-2.0
"""The vector level at which the compiled CPU kernels run: the highest that the processor has, or what `GGF_CPU_LEVEL` asks for.

Every kernel is in the library once for each level (csrc/cpu/levels.h). A lower level than the processor's shows on any machine
what another one would compute, and how fast. torch itself is not touched: `benchmarks/levels.py` says how to hold it to a level.
"""

from __future__ import annotations

import os

from gangealing_fast.runtime.errors import UserError

VARIABLE = "GGF_CPU_LEVEL"
# In the order of csrc/cpu/levels.h. "default" is what every x86-64 processor has, and all that other processors have.
LEVELS = ("default", "avx2", "avx512")


def wished() -> str | None:
    """The level that the environment asks for, None without one.

    Raises:
        UserError: there is no such level.
    """
    name = os.environ.get(VARIABLE, "")
    if name and name not in LEVELS:
        raise UserError(f"{VARIABLE} is {name!r}, which is no vector level: give one of {', '.join(LEVELS)}, or unset it")
    return name or None


def choose(name: str) -> None:
    """Let the loaded library run at a level from now on.

    Args:
        name: one of LEVELS.

    Raises:
        UserError: the processor, or the library as it was compiled, lacks that level.
    """
    import torch

    levels = torch.ops.gangealing_fast_levels
    highest = levels.highest()
    if LEVELS.index(name) > highest:
        raise UserError(
            f"{VARIABLE} asks for {name}, but this processor and this library go up to {LEVELS[highest]}: "
            "unset it, or give a lower one"
        )
    levels.choose(LEVELS.index(name))


def in_use() -> str:
    """The level at which the loaded library runs, one of LEVELS."""
    import torch

    return LEVELS[torch.ops.gangealing_fast_levels.current()]
