# SPDX-License-Identifier: Apache-2.0
"""Compiles csrc/cuda with nvcc and reads what ptxas says about every kernel instance."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tools.checkout import ROOT
from tools.gpu_report.binary import Resources, demangled, parse
from tools.gpu_report.workloads import CudaKernel

SOURCES = ROOT / "csrc" / "cuda"
COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
GLOBAL = re.compile(r"__global__\s+(?:\w+\s+|__launch_bounds__\([^)]*\)\s*)*(\w+)\s*\(")


def kernel_names(source: Path) -> list[str]:
    """Names of the `__global__` functions of a file."""
    return GLOBAL.findall(COMMENT.sub("", source.read_text()))


def sources() -> list[Path]:
    """The CUDA files there are."""
    return sorted(SOURCES.glob("*.cu"))


def missing(rows: tuple[CudaKernel, ...]) -> list[str]:
    """`file: kernel` of every kernel without a row."""
    stated = {(row.source, row.kernel) for row in rows}
    return [f"{s.name}: {name}" for s in sources() for name in kernel_names(s) if (s.name, name) not in stated]


def compiled(source: Path, architecture: int) -> dict[str, Resources]:
    """Readable name -> resources of every kernel instance that the file compiles to."""
    sys.path.insert(0, str(ROOT / "_build"))
    import toolchain

    home = toolchain.find_cuda()
    if home is None:
        raise RuntimeError("No nvcc was found (on the PATH, in CUDA_HOME or in /usr/local/cuda); the report needs it.")
    torch_root = toolchain.python_torch_root()
    command = [str(home / "bin" / "nvcc"), "-std=c++20", "-O3", "--expt-relaxed-constexpr", "-Xptxas", "-v", "-cubin"]
    command += [f"-arch=sm_{architecture}", f"-I{torch_root / 'include'}", f"-I{ROOT / 'csrc'}"]
    command += ["-DTORCH_TARGET_VERSION=0x020a000000000000", str(source), "-o", os.devnull]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{result.stderr}")
    found = parse(result.stdout + result.stderr)
    names = demangled(list(found)) if found else {}
    return {names[mangled]: resources for mangled, resources in found.items()}


def instance(row: CudaKernel, found: dict[str, Resources]) -> Resources:
    """The resources of the instance that a row means."""
    for name, resources in found.items():
        if re.search(rf"\b{row.kernel}\b", name) and re.search(row.instance, name):
            return resources
    raise RuntimeError(
        f"{row.source} compiles to no instance of {row.kernel} that matches {row.instance!r}; there are {sorted(found)}."
    )
