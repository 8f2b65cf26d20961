# SPDX-License-Identifier: Apache-2.0
"""Time the operators against their references and torch's best, interleaved, in one process with one allocator."""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys
from pathlib import Path
from typing import Any

import benchmarks
from gangealing_fast.runtime.errors import UserError


def operators() -> list[str]:
    """Every operator that has a bench file."""
    names = (module.name for module in pkgutil.iter_modules(benchmarks.__path__))
    return sorted(name.removeprefix("bench_") for name in names if name.startswith("bench_"))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("operators", nargs="*", metavar="OPERATOR", help=f"which (all): {', '.join(operators())}")
    parser.add_argument("--quick", action="store_true", help="a few rounds only, to see that a benchmark runs")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], metavar="N")
    parser.add_argument("--match", default="", metavar="TEXT", help="only cases whose name contains it")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path, metavar="FILE", help="put the results into this file, beside what is there")
    parser.add_argument(
        "--allocator",
        choices=("keep", "default"),
        default="keep",
        help="for all variants alike: malloc that keeps freed memory (the default here), or as the system has it",
    )
    return parser.parse_args(arguments)


def line(record: dict[str, Any]) -> str:
    """A record as a line of text."""
    times = (
        f"{name} {values['ms']:.3f} ms ({values['ratio']:.2f}x)" if "ms" in values else f"{name}: {values['error']}"
        for name, values in record["variants"].items()
    )
    what = f"{record['operator']} {record['case']} {record['dtype']}, {record['pass']}, {record['threads']} threads"
    return f"{what}: {', '.join(times)}"


def main(arguments: list[str] | None = None) -> int:
    """The command; its exit status."""
    try:
        return measure(parse(arguments))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2


def measure(options: argparse.Namespace) -> int:
    """Check and time what the options ask for; 1 where a variant computed something else."""
    unknown = sorted(set(options.operators) - set(operators()))
    if unknown:
        print(f"There is no benchmark of {', '.join(unknown)}; there are {', '.join(operators())}.", file=sys.stderr)
        return 2

    import torch

    from benchmarks import machine, results
    from benchmarks.harness import QUICK, Disagreement, Plan, compare
    from benchmarks.peaks import peaks
    from gangealing_fast.runtime import memory

    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("These benchmarks need a CUDA device, and torch finds none on this machine; nothing was measured.", file=sys.stderr)
        return 2
    threads = [1] if device.type == "cuda" else options.threads
    # float32 means float32, and torch may choose its fastest convolutions, as a user who wants speed would have it.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    kept = options.allocator == "keep" and device.type == "cpu" and memory.keep_large_blocks()
    if options.json:
        found = {str(count): machine.limits(count, device) for count in threads}
        description = {**machine.describe(device), "freed_memory_kept": kept}
        results.merge(options.json, replaces=lambda *_: False, machine=description, limits=found)
        print(f"limits by threads (GB/s, GFLOP/s): {found}", flush=True)
    status = 0
    for operator in options.operators or operators():
        records, refused, held = [], [], []
        for index, case in enumerate(importlib.import_module(f"benchmarks.bench_{operator}").cases()):
            if options.match not in case.name:
                continue
            for count in threads:
                try:
                    fresh = compare(case, count, plan=QUICK if options.quick else Plan(), device=device)
                except Disagreement as error:
                    print(f"not timed: {error}", file=sys.stderr)
                    refused.append({"operator": operator, "case": case.name, "threads": count, "reason": str(error)})
                    status = 1
                    continue
                records += fresh
                print("\n".join(line(record) for record in fresh), flush=True)
            if case.peak:
                held.append(peaks(case, index, options.device))
                print(f"{operator} {case.name}, peak bytes beyond the inputs: {held[-1]['bytes']}", flush=True)
            memory.release()
            torch.compiler.reset()  # after too many recompilations of one function dynamo would quietly run it uncompiled
        if options.json:

            def replaced(_: str, record: dict[str, Any], name: str = operator) -> bool:
                measured = record["operator"] == name and options.match in record["case"]
                return measured and record.get("threads", threads[0]) in threads

            results.merge(options.json, replaces=replaced, records=records, refused=refused, memory=held)
    return status


if __name__ == "__main__":
    sys.exit(main())
