# SPDX-License-Identifier: Apache-2.0
"""What a compiled kernel needs: registers, spills and shared memory, as ptxas states them."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Accesses:
    """Instructions of one kernel that read or write device memory, by the bytes that a thread moves in one: 16, 8, fewer."""

    wide: int
    middle: int
    narrow: int


@dataclass(frozen=True)
class Resources:
    """Of one kernel: registers per thread, bytes spilled by a thread (stores and loads), static shared bytes per block.

    accesses: of a Triton kernel.
    """

    registers: int
    spilled: int
    shared: int
    accesses: Accesses | None = None


def parse(log: str) -> dict[str, Resources]:
    """Mangled name -> resources, from what `ptxas -v` prints."""
    found: dict[str, Resources] = {}
    name, spilled = "", 0
    for line in log.splitlines():
        if match := re.search(r"Compiling entry function '(\S+)' for", line):
            name, spilled = match[1], 0
        elif match := re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", line):
            spilled = int(match[1]) + int(match[2])
        elif name and (match := re.search(r"Used (\d+) registers", line)):
            shared = re.search(r"(\d+) bytes smem", line)
            found[name] = Resources(int(match[1]), spilled, int(shared[1]) if shared else 0)
            name = ""
    return found


def demangled(names: list[str]) -> dict[str, str]:
    """Readable names, without their return type."""
    output = subprocess.run(["c++filt", *names], capture_output=True, text=True, check=True).stdout.splitlines()
    return {name: re.sub(r"^void ", "", text) for name, text in zip(names, output, strict=True)}


def ptxas(program: str, ptx: str, architecture: str) -> dict[str, Resources]:
    """Resources of all kernels in a PTX text, assembled for `architecture` ("sm_90a")."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(ptx)
        command = [program, "-v", f"-arch={architecture}", str(source), "-o", os.devnull]
        result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{result.stderr}")
    return parse(result.stderr)
