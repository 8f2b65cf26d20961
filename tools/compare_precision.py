# SPDX-License-Identifier: Apache-2.0
"""Train a preset in float32 and in bfloat16 with several seeds, and print a table of how well each run aligned held-out pictures.

python tools/compare_precision.py --out runs/precision [--preset digits] [--seeds 0 1 2] [--steps N] [--threads N]

A run that is complete or cut short is taken up where it is. A figure is "after over before" (or the ratio it is reported as). The
last column says where bfloat16's mean lies: within the range of float32's runs, or outside by so many of its standard deviations.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from statistics import mean, stdev

from gangealing_fast.alignment.config import PRESETS, TrainConfig
from gangealing_fast.runtime.commands import run_command
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.storage.files import write_text

PRECISIONS = ("float32", "bfloat16")
Ratios = dict[str, dict[int, dict[str, float]]]


def train(config: TrainConfig) -> dict[str, float]:
    """Run it; its figures, each as one ratio."""
    from gangealing_fast.alignment.trainer import run
    from gangealing_fast.metrics import before_after

    evaluation = run(config)
    assert evaluation is not None  # in one process
    figures = evaluation.figures.items()
    return {
        name: before_after(figure["before"], figure["after"])["ratio"] if "before" in figure else figure["ratio"]
        for name, figure in figures
    }


def place(ours: list[float], theirs: list[float]) -> str:
    """Where the mean of `ours` lies among `theirs`."""
    middle = mean(ours)
    if min(theirs) <= middle <= max(theirs):
        return "within the range"
    deviation = stdev(theirs) if len(theirs) > 1 else 0.0
    distance = abs(middle - mean(theirs))
    side = "below" if middle < min(theirs) else "above"
    return f"{side} it, {distance / deviation:.1f} deviations from the mean" if deviation else f"{side} it"


def table(ratios: Ratios) -> str:
    """Markdown: a row for every figure, for each precision the runs and their mean."""
    wide, narrow = (ratios[precision] for precision in PRECISIONS)
    seeds = sorted(wide)
    lines = [
        f"| figure | float32, seeds {', '.join(map(str, seeds))} | mean | bfloat16 | mean | bfloat16's mean and float32's range |",
        "|---|---|---|---|---|---|",
    ]
    for name in wide[seeds[0]]:
        theirs, ours = ([runs[seed][name] for seed in seeds] for runs in (wide, narrow))
        cells = [name]
        for values in (theirs, ours):
            cells += [", ".join(f"{value:.3f}" for value in values), f"{mean(values):.3f}"]
        lines.append(f"| {' | '.join([*cells, place(ours, theirs)])} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs, of table.md and figures.json")
    parser.add_argument("--preset", choices=sorted(PRESETS), default="digits")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="fewer steps than the preset's, to try it")
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args(arguments)
    if len(set(options.seeds)) != len(options.seeds):
        raise UserError("--seeds must all differ")
    changes = {"threads": options.threads} | ({"steps": options.steps} if options.steps else {})
    ratios: Ratios = {precision: {} for precision in PRECISIONS}
    for seed in options.seeds:
        for precision in PRECISIONS:
            out = options.out / f"{precision}-{seed}"
            print(f"{precision}, seed {seed}: {out}", flush=True)
            config = dataclasses.replace(PRESETS[options.preset], out=out, seed=seed, precision=precision, **changes)
            ratios[precision][seed] = train(config)
            write_text(options.out / "figures.json", json.dumps(ratios, indent=1) + "\n")
    text = table(ratios)
    write_text(options.out / "table.md", text + "\n")
    print(text)


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
