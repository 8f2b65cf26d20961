# SPDX-License-Identifier: Apache-2.0
"""Compiles csrc/cuda with nvcc and reads what ptxas says about every kernel instance."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
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


def _nvcc(source: Path, *options: str) -> tuple[str, bytes]:
    """What nvcc says and writes with these options for a file, compiled as setup.py compiles it."""
    sys.path.insert(0, str(ROOT / "_build"))
    import toolchain

    home = toolchain.find_cuda()
    if home is None:
        raise RuntimeError("No nvcc was found (on the PATH, in CUDA_HOME or in /usr/local/cuda); the report needs it.")
    torch_root = toolchain.python_torch_root()
    command = [str(home / "bin" / "nvcc"), "-std=c++20", "-O3", "--expt-relaxed-constexpr", *options]
    command += [f"-I{torch_root / 'include'}", f"-I{ROOT / 'csrc'}", "-DTORCH_TARGET_VERSION=0x020a000000000000"]
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "output"
        result = subprocess.run([*command, str(source), "-o", str(output)], capture_output=True, text=True)
        if result.returncode:
            raise RuntimeError(f"{' '.join(command)} {source} failed:\n{result.stderr}")
        return result.stdout + result.stderr, output.read_bytes()


def compiled(source: Path, architectures: list[int]) -> dict[int, dict[str, Resources]]:
    """Architecture -> readable name -> resources of every kernel instance that the file compiles to."""
    codes = ",".join(f"sm_{number}" for number in architectures)
    gencode = f"-gencode=arch=compute_{min(architectures)},code=[{codes}]"
    log, _ = _nvcc(source, "-Xptxas", "-v", "-fatbin", gencode)
    entries = re.split(r"(?=ptxas info\s*: Compiling entry function)", log)
    resources = {}
    for number in architectures:
        found = parse("".join(entry for entry in entries if f"for 'sm_{number}'" in entry))
        names = demangled(list(found)) if found else {}
        resources[number] = {names[mangled]: needs for mangled, needs in found.items()}
    return resources


def wide_divisions(source: Path) -> dict[str, int]:
    """Readable name -> 64-bit divisions in the program of every kernel instance that the file compiles to."""
    _, ptx = _nvcc(source, "-ptx", "-arch=compute_80")
    bodies = re.findall(r"\.entry (\w+)\((.*?)\n\}", ptx.decode(), re.DOTALL)
    names = demangled([name for name, _ in bodies])
    return {names[name]: len(re.findall(r"\b(?:div|rem)\.[su]64\b", body)) for name, body in bodies}


def instance(row: CudaKernel, found: dict[str, Resources]) -> Resources:
    """The resources of the instance that a row means."""
    for name, resources in found.items():
        if re.search(rf"\b{row.kernel}\b", name) and re.search(row.instance, name):
            return resources
    raise RuntimeError(
        f"{row.source} compiles to no instance of {row.kernel} that matches {row.instance!r}; there are {sorted(found)}."
    )
