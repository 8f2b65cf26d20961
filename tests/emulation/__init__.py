# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels on a CPU: builds csrc/cuda/*.cu with a C++ compiler, and runs the package's operators on the result.

    with emulation.active() as served:
        y = ops.grid_sample(x, grid)        # by the CUDA kernel, thread for thread
    assert "grid_sample" in served

The objects are kept in build/emulation under a name that is the hash of everything they are made from.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import torch
from sanitizers import compiler
from torch.utils._python_dispatch import TorchDispatchMode

import gangealing_fast.ops  # noqa: F401  (registers the operators)

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SOURCES = ROOT / "csrc"
NAMESPACE = "gangealing_fast_emulated"
WARNINGS = ("-Wall", "-Wextra", "-Wno-unused-parameter", "-Wno-unknown-pragmas")
FLAGS = ("-std=c++20", "-O1", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", *WARNINGS)
# What runs under the sanitizers is float32. Without the other types and without optimisation it compiles in a third of the time.
SANITIZE = ("-O0", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer")
SANITIZE += ("-DGGF_FLOAT_ALONE",)
TARGET_VERSION = "0x020a000000000000"


def build(sanitize: bool = False) -> Path:
    """Compile what is not in the cache; the path of the library."""
    torch_root = Path(torch.__file__).parent
    command = [compiler(), *FLAGS, *(SANITIZE if sanitize else ()), f"-DTORCH_TARGET_VERSION={TARGET_VERSION}"]
    command += [f"-I{HERE}", f"-I{SOURCES}", f"-isystem{torch_root / 'include'}"]
    headers = [*HERE.glob("*.h"), *SOURCES.glob("*.h"), *(SOURCES / "cuda").glob("*.cuh")]
    basis = hashlib.sha256(f"{torch.__version__} {command}".encode())
    for header in sorted(headers):
        basis.update(header.read_bytes())
    folder = ROOT / "build" / ("emulation-sanitized" if sanitize else "emulation")
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:  # tests run in several processes
        fcntl.flock(lock, fcntl.LOCK_EX)
        objects, everything = [], basis.copy()
        for source in sorted((SOURCES / "cuda").glob("*.cu")):
            content = basis.copy()
            content.update(source.read_bytes())
            everything.update(content.digest())
            objects.append(_made(folder, source.stem, ".o", content, [*command, "-x", "c++", "-c", str(source)]))
        link = [compiler(), *(SANITIZE if sanitize else ()), "-shared", *map(str, objects), f"-L{torch_root / 'lib'}"]
        return _made(folder, "library", ".so", everything, [*link, "-Wl,--no-as-needed", "-ltorch_cpu", "-lc10"])


def _made(folder: Path, name: str, suffix: str, content: hashlib._Hash, command: list[str]) -> Path:
    """What `command` makes of the hashed content, from the cache if it is there; replaces what it made of another."""
    target = folder / f"{name}-{content.hexdigest()[:20]}{suffix}"
    if not target.exists():
        for old in folder.glob(f"{name}-*{suffix}"):
            old.unlink()
        partial = target.with_suffix(".partial")
        result = subprocess.run([*command, "-o", str(partial)], capture_output=True, text=True)
        assert result.returncode == 0 and not result.stderr.strip(), f"{' '.join(command)}\n{result.stderr[-6000:]}"
        partial.rename(target)
    return target


@functools.cache
def load() -> frozenset[str]:
    """Define the operators of the emulated library, with the schemas of the real ones, and load it; their names."""
    library = torch.library.Library(NAMESPACE, "FRAGMENT")
    real = [name.split("::")[1] for name in torch._C._dispatch_get_all_op_names() if name.startswith("gangealing_fast::")]
    for name in real:
        schema = getattr(torch.ops.gangealing_fast, name).default._schema
        library.define(str(schema).removeprefix("gangealing_fast::"))
    load.library = library  # its end would undo the definitions
    torch.ops.load_library(str(build(sanitize=bool(os.environ.get("EMULATION_SANITIZE")))))
    return frozenset(n for n in real if torch._C._dispatch_has_kernel_for_dispatch_key(f"{NAMESPACE}::{n}", "CPU"))


class _Emulated(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.kernels = load()
        self.served: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.split("::")[1]
        if func.namespace == "gangealing_fast" and name in self.kernels:
            self.served.add(name)
            func = getattr(getattr(torch.ops, NAMESPACE), name)
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def active() -> Iterator[set[str]]:
    """Inside, emulated CUDA kernels serve the operators, forward and backward; yields the names of those that did."""
    with _Emulated() as mode:
        yield mode.served
