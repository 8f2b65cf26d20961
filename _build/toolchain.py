# SPDX-License-Identifier: Apache-2.0
"""Finds torch's headers and the CUDA toolkit without importing torch, so that it works inside pip's isolation."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import site
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

TORCH_MINIMUM = (2, 10)
TORCH_REQUIREMENT = "torch>=2.10"


def torch_version(root: Path) -> str | None:
    """The version string of the torch package in `root`, or None."""
    try:
        match = re.search(r"__version__\s*=\s*['\"]([^'\"]+)", (root / "version.py").read_text())
    except OSError:
        return None
    return match[1] if match else None


def _usable(root: Path) -> bool:
    version = torch_version(root)
    numbers = re.match(r"(\d+)\.(\d+)", version or "")
    stable_abi = root / "include" / "torch" / "csrc" / "stable" / "library.h"
    return bool(numbers) and (int(numbers[1]), int(numbers[2])) >= TORCH_MINIMUM and stable_abi.exists()


def _torch_candidates() -> Iterator[Path]:
    specification = importlib.util.find_spec("torch")
    if specification and specification.origin:
        yield Path(specification.origin).parent
    # In isolation sys.path hides the target environment, but the interpreter still knows where it is.
    folders = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()]
    for folder in dict.fromkeys([*folders, site.getusersitepackages()]):
        yield Path(folder) / "torch"


def find_torch() -> Path | None:
    """The folder of an installed torch >= 2.10, or None."""
    return next((root for root in _torch_candidates() if _usable(root)), None)


def _toolkit_of(nvcc: str) -> str | None:
    """nvcc on the PATH may be a wrapper script: only nvcc itself knows where its toolkit is."""
    try:
        answer = subprocess.run(
            [nvcc, "--dryrun", "-c", "-x", "cu", os.devnull], capture_output=True, text=True, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r"^#\$ TOP=(.*)$", answer.stderr, re.MULTILINE)
    return os.path.realpath(match[1].strip()) if match else None


def find_cuda() -> Path | None:
    """The folder of a CUDA toolkit with nvcc and headers, or None."""
    candidates = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    if nvcc := shutil.which("nvcc"):
        candidates.append(_toolkit_of(nvcc))
    candidates += ["/usr/local/cuda", *sorted(map(str, Path("/usr/local").glob("cuda-*")), reverse=True)]
    candidates += sorted(map(str, Path(sysconfig.get_path("purelib")).glob("nvidia/cu1*")), reverse=True)
    for candidate in filter(None, candidates):
        home = Path(candidate)
        if (home / "bin" / "nvcc").exists() and (home / "include" / "cuda_runtime.h").exists():
            return home
    return None


def cuda_runtime(home: Path) -> Path | None:
    """The folder of the toolkit's static runtime library, or None."""
    folders = (home / "lib64", home / "lib", home / "targets" / "x86_64-linux" / "lib")
    return next((folder for folder in folders if (folder / "libcudart_static.a").exists()), None)


def python_torch_root() -> Path:
    """As `find_torch`, with an error that says what to do."""
    root = find_torch()
    if root is None:
        raise RuntimeError(f"No {TORCH_REQUIREMENT} with its headers was found for {sys.executable}; install torch first.")
    return root
