# SPDX-License-Identifier: Apache-2.0
"""`python -m tools.gpu_report`: compile every GPU kernel for every architecture and write docs/gpu-report.md."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from gangealing_fast.storage.files import atomic_write
from tools.checkout import ROOT
from tools.gpu_report import cuda_kernels, text, triton_kernels, triton_workloads
from tools.gpu_report.architectures import ARCHITECTURES
from tools.gpu_report.cuda_workloads import CUDA_KERNELS

REPORT = ROOT / "docs" / "gpu-report.md"


def triton_rows(recorded: list[triton_kernels.Recorded], architectures: list[int]) -> list[text.Row]:
    """One row for each different compilation, compiled for each architecture."""
    launches: dict[str, tuple[triton_kernels.Recorded, Any]] = {}
    for one in recorded:
        for launch in one.launches:
            launches.setdefault(triton_kernels.identity(launch), (one, launch))
    return [
        text.Row(
            launch.kernel.__name__,
            one.workload.shape,
            32 * launch.warps,
            launch.blocks,
            {a: triton_kernels.compiled(launch, a) for a in architectures},
        )
        for one, launch in launches.values()
    ]


def cuda_rows(architectures: list[int]) -> list[text.Row]:
    """One row for each stated launch; raises for a kernel that states none, and for a spill in any instance."""
    if absent := cuda_kernels.missing(CUDA_KERNELS):
        raise RuntimeError(f"tools/gpu_report/cuda_workloads.py states no launch of {', '.join(absent)}.")
    rows = []
    for source in cuda_kernels.sources():
        found = cuda_kernels.compiled(source, architectures)
        spilling = [f"{name} (sm_{a})" for a in found for name, resources in found[a].items() if resources.spilled]
        if spilling:
            raise RuntimeError(f"{source.name}: registers are spilled in {', '.join(spilling)}.")
        for row in CUDA_KERNELS:
            if row.source == source.name:
                needs = {a: cuda_kernels.instance(row, found[a]) for a in architectures}
                rows.append(text.Row(row.kernel, row.shape, row.threads, row.blocks, needs, row.dynamic_shared))
    return rows


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tools.gpu_report", description=__doc__)
    parser.add_argument("--architectures", type=int, nargs="+", default=list(ARCHITECTURES), choices=list(ARCHITECTURES))
    parser.add_argument("--output", type=Path, default=REPORT, help="file to write (default: docs/gpu-report.md)")
    options = parser.parse_args()
    recorded = triton_kernels.record(triton_workloads.training())
    rows = triton_rows(recorded, options.architectures), cuda_rows(options.architectures)
    traffic = [
        text.Traffic(one.workload.operator, one.workload.shape, one.moved, one.minimum, one.workload.flops) for one in recorded
    ]
    traffic += [text.Traffic(row.kernel, row.shape, row.moved, row.minimum) for row in CUDA_KERNELS]
    with atomic_write(options.output) as file:
        file.write(text.report(*rows, traffic, options.architectures).encode())
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main()
