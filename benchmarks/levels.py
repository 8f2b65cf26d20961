# SPDX-License-Identifier: Apache-2.0
"""Holds torch to the vector level that `GGF_CPU_LEVEL` holds the compiled kernels to, so that a benchmark shows another processor.

torch's own kernels, oneDNN and MKL each have a variable of their own, which they read when they first compute. A benchmark on a
processor with AVX-512 imitates one with AVX2 by `GGF_CPU_LEVEL=avx2 python -m benchmarks`; this module sets the other three.
What it cannot imitate are caches, clocks and the number of ports.
"""

from __future__ import annotations

import os

# torch.compile asks torch's capability, so that its code is held to the level too.
VARIABLES = {
    "avx512": {},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "default": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
}


def hold_torch(level: str | None) -> None:
    """Set the variables of a level in this process and its children, before torch is imported; what is set already stays.

    Args:
        level: the value of `GGF_CPU_LEVEL`; None, or what is no level, changes nothing.
    """
    for name, value in VARIABLES.get(level or "", {}).items():
        os.environ.setdefault(name, value)
