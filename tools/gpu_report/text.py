# SPDX-License-Identifier: Apache-2.0
"""The report as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tools.gpu_report.architectures import ARCHITECTURES, occupancy
from tools.gpu_report.binary import Resources

INTRODUCTION = """\
# GPU kernels without a GPU

Made by `make gpu-report`. **Nothing here was measured on a GPU**: it is what the compilers state and what arithmetic gives.

- *registers / shared KiB / occupancy*: registers per thread, and the bytes spilled, as `ptxas -v` states them; shared memory
  per block (Triton's; static plus dynamic for C++); the share of a multiprocessor's warps that fit with them
  (`tools/gpu_report/architectures.py`, after the limits in the CUDA C++ Programming Guide).
- *moved* is what the launches read from and write to device memory, where the caches serve whatever a launch reads twice;
  *minimum* is what any kernel must move: each input once, each output once.
- *ESTIMATE* is moved divided by the bandwidth on the card's data sheet, in microseconds: a lower bound that no kernel
  reaches, not a measurement. It leaves launches and arithmetic out; where FLOP/byte is given, arithmetic may set the pace.
- *16 bytes / 8 / fewer* are the reads and writes of device memory in a Triton kernel's program (PTX), by what a thread moves in
  one. Addresses, counts and numbers that all threads of a block share are reads of 8 bytes or fewer too. `adam_ema` takes two
  launches: one for what lies in whole pieces, one for the rest.
- No CUDA C++ kernel divides in 64 bits (`pytest tests/test_gpu_report.py -k divide`).
"""


@dataclass(frozen=True)
class Row:
    """One kernel at one shape: threads of a block, blocks, what it needs by architecture, and shared bytes not in that."""

    kernel: str
    shape: str
    threads: int
    blocks: int
    needs: dict[int, Resources]
    dynamic_shared: int = 0


@dataclass(frozen=True)
class Traffic:
    """Bytes of one call; floating-point operations where they may set the pace."""

    operator: str
    shape: str
    moved: int
    minimum: int
    flops: int = 0


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def _needs(row: Row, number: int) -> str:
    resources = row.needs[number]
    shared = resources.shared + row.dynamic_shared
    filled = occupancy(ARCHITECTURES[number], row.threads, resources.registers, shared)
    return f"{resources.registers} / {shared / 1024:.1f} / {filled.share:.0%}"


def resources(rows: Sequence[Row], architectures: Sequence[int]) -> str:
    """The table of what kernels need."""
    header = ["kernel", "at", "threads x blocks", "spilled bytes", *(f"sm_{a}" for a in architectures)]
    cells = [
        [
            f"`{row.kernel}`",
            row.shape,
            f"{row.threads} x {row.blocks}",
            str(max(r.spilled for r in row.needs.values())),
            *(_needs(row, a) for a in architectures),
        ]
        for row in rows
    ]
    return _table(header, cells)


def _width(row: Row, number: int) -> str:
    accesses = row.needs[number].accesses
    assert accesses is not None
    return f"{accesses.wide} / {accesses.middle} / {accesses.narrow}"


def widths(rows: Sequence[Row], architectures: Sequence[int]) -> str:
    """The table of how wide reads and writes are."""
    header = ["kernel", "at", *(f"sm_{a}" for a in architectures)]
    return _table(header, [[f"`{row.kernel}`", row.shape, *(_width(row, a) for a in architectures)] for row in rows])


def traffic(rows: Sequence[Traffic], architectures: Sequence[int]) -> str:
    """The table of bytes and estimated times."""
    header = ["call", "at", "moved MB", "minimum MB", "ratio", "FLOP/byte"]
    header += [f"{ARCHITECTURES[a].card} ESTIMATE µs" for a in architectures]
    cells = [
        [
            f"`{row.operator}`",
            row.shape,
            f"{row.moved / 1e6:.2f}",
            f"{row.minimum / 1e6:.2f}",
            f"{row.moved / row.minimum:.2f}",
            f"{row.flops / row.moved:.0f}" if row.flops else "",
            *(f"{row.moved / ARCHITECTURES[a].bandwidth * 1e6:.1f}" for a in architectures),
        ]
        for row in rows
    ]
    return _table(header, cells)


def report(triton: Sequence[Row], cuda: Sequence[Row], moved: Sequence[Traffic], architectures: Sequence[int]) -> str:
    """The whole document."""
    parts = [INTRODUCTION, "## Triton: registers / shared KiB / occupancy\n", resources(triton, architectures)]
    if cuda:
        parts += ["## CUDA C++: registers / shared KiB / occupancy\n", resources(cuda, architectures)]
    parts += ["## Triton: reads and writes of 16 bytes / 8 / fewer\n", widths(triton, architectures)]
    parts += ["## Bytes, and the time they take at a card's bandwidth\n", traffic(moved, architectures)]
    return "\n".join(parts)
