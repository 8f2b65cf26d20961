# SPDX-License-Identifier: Apache-2.0
"""Run operator benchmarks: `python -m benchmarks [OPERATOR...] [--quick] [--threads 1 2] [--device cuda] [--json FILE]`."""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys

import benchmarks


def operators() -> list[str]:
    """Every operator that has a bench file."""
    names = (module.name for module in pkgutil.iter_modules(benchmarks.__path__))
    return sorted(name.removeprefix("bench_") for name in names if name.startswith("bench_"))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Time the operators, interleaved, in one process.")
    parser.add_argument("operators", nargs="*", metavar="OPERATOR", help=f"which (all): {', '.join(operators())}")
    parser.add_argument("--quick", action="store_true", help="a few rounds only, to see that a benchmark runs")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--match", default="", help="only cases whose name contains this")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.operators) - set(operators()))
    if unknown:
        print(f"There is no benchmark of {', '.join(unknown)}; there are {', '.join(operators())}.", file=sys.stderr)
        return 2

    from benchmarks.harness import QUICK, Disagreement, Plan, compare

    status = 0
    for operator in options.operators or operators():
        for case in importlib.import_module(f"benchmarks.bench_{operator}").cases():
            if options.match not in case.name:
                continue
            for threads in options.threads:
                try:
                    records = compare(case, threads, plan=QUICK if options.quick else Plan())
                except Disagreement as error:
                    print(f"not timed: {error}", file=sys.stderr)
                    status = 1
                    continue
                for record in records:
                    times = ", ".join(
                        f"{name} {values['ms']:.3f} ms ({values['ratio']:.2f}x)" if "ms" in values else f"{name}: {values['error']}"
                        for name, values in record["variants"].items()
                    )
                    what = f"{operator} {record['case']} {record['dtype']}, {record['pass']}, {threads} threads"
                    print(f"{what}: {times}", flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
