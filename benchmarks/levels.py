# SPDX-License-Identifier: Apache-2.0
"""One processor as if it had fewer instructions: a whole process held to a vector level.

`GGF_CPU_LEVEL=avx2 python -m benchmarks` runs the kernels of this project as a processor with AVX2 would. Torch's own operators,
its compiler and the libraries below them would go on with AVX-512, and every ratio would be wrong. So whatever measures calls
`hold` before it imports torch, and they follow. It is not that other processor: its caches, its clock and its memory are missing.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

VARIABLE = "GGF_CPU_LEVEL"
_COMPILED = "TORCHINDUCTOR_CACHE_DIR"
# What the environment says to torch (and torch.compile), to oneDNN and to MKL. At AVX-512 nothing is held back.
_OTHERS = {
    "default": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "avx512": {},
}
# In the order of preference; as the kernel of Linux names what a processor has.
_FLAGS = {"avx512": "avx512f", "avx2": "avx2"}


def environment(level: str) -> dict[str, str]:
    """The variables that hold a process to a level, "default", "avx2" or "avx512"; none for "", which is the processor's own."""
    if not level:
        return {}
    # torch.compile takes programs of another level from its cache, and they compute something else.
    return {VARIABLE: level, **_OTHERS.get(level, {}), _COMPILED: str(Path(tempfile.gettempdir()) / f"torchinductor-{level}")}


def hold() -> None:
    """Hold torch and its libraries to the level that `GGF_CPU_LEVEL` asks for, where the environment does not say otherwise.

    Raises:
        RuntimeError: torch is there already and has chosen.
    """
    level = os.environ.get(VARIABLE, "")
    missing = {name: value for name, value in environment(level).items() if name not in os.environ}
    if missing and "torch" in sys.modules:
        names = " ".join(f"{name}={value}" for name, value in missing.items())
        raise RuntimeError(f"torch was imported before it could be held to {level}: put {names} into the environment")
    os.environ.update(missing)


def current(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The level that this process is at: what `GGF_CPU_LEVEL` asks for, or else the highest that the processor has."""
    return os.environ.get(VARIABLE) or next((level for level, flag in _FLAGS.items() if flag in _flags(cpuinfo)), "default")


def lower(cpuinfo: Path = Path("/proc/cpuinfo")) -> list[str]:
    """The levels below the processor's own that are worth a measurement of their own: "avx2" where there is AVX-512."""
    return ["avx2"] if _FLAGS["avx512"] in _flags(cpuinfo) else []


def _flags(cpuinfo: Path) -> set[str]:
    try:
        return set(cpuinfo.read_text().split())
    except OSError:
        return set()
