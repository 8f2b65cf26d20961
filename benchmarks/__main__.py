# SPDX-License-Identifier: Apache-2.0
"""Time the operators against their references and torch's best, interleaved, in one process with one allocator."""

from __future__ import annotations

import argparse
import sys
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import cases, levels, operators
from gangealing_fast.runtime.errors import UserError

if TYPE_CHECKING:
    import torch

    from benchmarks.timing import Plan


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The options of the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("operators", nargs="*", metavar="OPERATOR", help=f"which (all): {', '.join(operators())}")
    parser.add_argument("--quick", action="store_true", help="a few rounds only, to see that a benchmark runs")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], metavar="N")
    parser.add_argument("--match", default="", metavar="TEXT", help="only cases whose name contains it")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--compiled-steps", action="store_true", help="also the compiled training steps: many minutes of compiling each"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="put the results into this file, beside what is there")
    parser.add_argument(
        "--allocator",
        choices=("keep", "default"),
        default="keep",
        help="for all variants alike: malloc that keeps freed memory (the default here), or as the system has it",
    )
    return parser.parse_args(arguments)


def _times(variants: dict[str, Any]) -> str:
    return ", ".join(
        f"{name} {values['ms']:.3f} ms" + (f" ({values['ratio']:.2f}x)" if "ratio" in values else "")
        if "ms" in values
        else f"{name}: {values['error']}"
        for name, values in variants.items()
    )


def line(record: dict[str, Any]) -> str:
    """A record as a line of text, and a second one for CUDA graphs."""
    what = f"{record['operator']} {record['case']} {record['dtype']}, {record['pass']}, {record['threads']} threads"
    graphs = f"\n{what}, in a CUDA graph: {_times(record['graphs'])}" if record.get("graphs") else ""
    return f"{what}: {_times(record['variants'])}{graphs}"


@dataclass
class Found:
    """What was measured of an operator: records, cases that were refused, and peak memory, as the results file has them."""

    records: list[dict[str, Any]] = field(default_factory=list)
    refused: list[dict[str, Any]] = field(default_factory=list)
    memory: list[dict[str, Any]] = field(default_factory=list)


def measure_operator(
    operator: str, match: str, threads: list[int], plan: Plan, device: torch.device, *, compiled_steps: bool = False
) -> Found:
    """Check and time all cases of an operator whose name contains `match`. A case that fails is refused; the next one follows."""
    import torch

    from benchmarks import machine
    from benchmarks.harness import compare
    from benchmarks.peaks import peaks
    from benchmarks.runner import Disagreement, first_line

    found = Found()
    for index, case in enumerate(cases(operator)):
        if match not in case.name:
            continue
        case = case if compiled_steps else case.without_slow()
        for count in threads:
            try:
                fresh = compare(case, count, plan=plan, device=device)
            except Exception as error:
                disagreement = isinstance(error, Disagreement)
                reason = str(error) if disagreement else f"{operator} {case.name}: {type(error).__name__}: {first_line(error)}"
                if not disagreement:
                    traceback.print_exc()
                print(f"not timed: {reason}", file=sys.stderr)
                found.refused.append({"operator": operator, "case": case.name, "threads": count, "reason": reason})
                continue
            found.records += fresh
            print("\n".join(line(record) for record in fresh), flush=True)
        if case.peak:
            found.memory.append(peaks(case, index, device.type))
            print(f"{operator} {case.name}, peak bytes beyond the inputs: {found.memory[-1]['bytes']}", flush=True)
        machine.release(device)
        torch.compiler.reset()  # after too many recompilations of one function dynamo would quietly run it uncompiled
    return found


def measure(options: argparse.Namespace) -> int:
    """Check and time what the options ask for; 1 if a variant computed something else or a case failed."""
    unknown = sorted(set(options.operators) - set(operators()))
    if unknown:
        print(f"There is no benchmark of {', '.join(unknown)}; there are {', '.join(operators())}.", file=sys.stderr)
        return 2

    import torch

    from benchmarks import machine, results
    from benchmarks.timing import QUICK, Plan
    from gangealing_fast.runtime import memory

    device = torch.device(options.device)
    machine.demand(device)
    machine.settle()
    threads = [1] if device.type == "cuda" else options.threads
    kept = options.allocator == "keep" and device.type == "cpu" and memory.keep_large_blocks()
    if options.json:
        found = {str(count): machine.limits(count, device) for count in threads}
        description = {**machine.describe(device), "freed_memory_kept": kept}
        results.merge(options.json, replaces=lambda *_: False, machine=description, limits=found)
        print(f"limits by threads (GB/s, GFLOP/s): {found}", flush=True)
    status = 0
    for operator in options.operators or operators():
        plan = QUICK if options.quick else Plan()
        fresh = measure_operator(operator, options.match, threads, plan, device, compiled_steps=options.compiled_steps)
        status = 1 if fresh.refused else status
        if options.json:

            def replaced(_: str, record: dict[str, Any], name: str = operator) -> bool:
                measured = record["operator"] == name and options.match in record["case"]
                return measured and record.get("threads", threads[0]) in threads

            results.merge(options.json, replaces=replaced, **vars(fresh))
    return status


def main(arguments: list[str] | None = None) -> int:
    """The command; its exit status."""
    try:
        return measure(parse(arguments))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    levels.hold()
    sys.exit(main())
