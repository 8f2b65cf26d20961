# SPDX-License-Identifier: Apache-2.0
"""Records what the Triton launchers launch and compiles it ahead of time, without a driver."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tools.checkout import ROOT
from tools.gpu_report.binary import Accesses, Resources, parse
from tools.gpu_report.workloads import TritonWorkload

TYPES = {torch.float64: "*fp64", torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.int64: "*i64"}


def kernel_names() -> set[str]:
    """Every kernel that is launched, by the names in kernels/."""
    files = sorted((ROOT / "kernels").glob("*.py"))
    return {name for file in files for name in re.findall(r"^def (\w+_kernel)\(", Path(file).read_text(), re.MULTILINE)}


@dataclass(frozen=True)
class Recorded:
    """A workload with its launches and its bytes."""

    workload: TritonWorkload
    launches: tuple[Any, ...]
    moved: int
    minimum: int


def _bytes(tensors: Iterable[Any]) -> int:
    return sum(t.numel() * t.itemsize for t in tensors if isinstance(t, Tensor))


def record(workloads: Iterable[TritonWorkload]) -> list[Recorded]:
    """Call every workload on the meta device."""
    from gangealing_fast.kernels._launch import recorded

    found = []
    for workload in workloads:
        with recorded() as launches:
            inputs, outputs = workload.call()
        passed = [t for launch in launches for t in launch.arguments.values() if isinstance(t, Tensor)]
        ends = {id(t) for t in (*inputs, *outputs)}
        uses = [id(t) for t in passed]
        # Partial sums that one kernel wrote and none read are added up by torch.
        summed = [t for t in passed if id(t) not in ends and uses.count(id(t)) == 1]
        moved = _bytes(passed) + _bytes(summed) if workload.moved is None else workload.moved
        minimum = _bytes(inputs) + _bytes(outputs)
        found.append(Recorded(workload, tuple(launches), moved, minimum))
    return found


def signature(launch: Any) -> tuple[dict[str, str], dict[str, Any], dict[tuple[int, ...], list[list[Any]]]]:
    """Types, constants and alignments that Triton would derive from the arguments of a real call."""
    types, constants, attributes = {}, {}, {}
    for i, parameter in enumerate(launch.kernel.params):
        value = launch.arguments[parameter.name]
        if parameter.is_constexpr or value is None or (isinstance(value, int) and value == 1):
            types[parameter.name], constants[parameter.name] = "constexpr", value
            continue
        if isinstance(value, Tensor):
            types[parameter.name] = TYPES[value.dtype]
        else:
            types[parameter.name] = "i32" if -(2**31) <= value < 2**31 else "i64"
        if isinstance(value, Tensor) or value % 16 == 0:
            attributes[(i,)] = [["tt.divisibility", 16]]
    return types, constants, attributes


def identity(launch: Any) -> str:
    """Equal for launches that are one compilation."""
    types, constants, attributes = signature(launch)
    return f"{launch.kernel.__name__} {types} {constants} {sorted(attributes)} {launch.options}"


ACCESS = re.compile(r"\b(?:ld|st)\.global(?:\.[\w:]+?)*?(?:\.v(\d))?\.[bfsu](\d+)\b|\bcp\.async\.c[ag]\S*\s[^;]*?, 0x([0-9a-f]+)")


def accesses(ptx: str) -> Accesses:
    """How wide the reads from and writes to device memory are that a program consists of, by their bytes."""
    sizes = [int(m[3], 16) if m[3] else int(m[1] or 1) * int(m[2]) // 8 for m in ACCESS.finditer(ptx)]
    return Accesses(sum(s >= 16 for s in sizes), sum(s == 8 for s in sizes), sum(s < 8 for s in sizes))


def compiled(launch: Any, architecture: int) -> Resources:
    """What the launch needs on that architecture; shared memory is what Triton asks for at the launch."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    types, constants, attributes = signature(launch)
    source = ASTSource(fn=launch.kernel, signature=types, constexprs=constants, attrs=attributes)
    log = io.StringIO()
    with triton.knobs.compilation.scope(), triton.knobs.nvidia.scope(), contextlib.redirect_stdout(log):
        triton.knobs.compilation.always_compile = True
        triton.knobs.nvidia.dump_ptxas_log = True
        kernel = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=launch.options)
    (found,) = parse(log.getvalue()).values()
    return Resources(found.registers, found.spilled, kernel.metadata.shared, accesses(kernel.asm["ptx"]))
