# SPDX-License-Identifier: Apache-2.0
"""Train objectives on points in the plane, where the truth is known, and on MNIST; status 1 where a goal is missed."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from statistics import median
from typing import Any

from gangealing_fast.runtime.errors import UserError
from gangealing_fast.storage.files import read_json, write_json

PLANE = ("ring-wgan-gp", "ring-dragan", "ring-nonsaturating", "wasserstein", "circles")
LABELS = ("catgan-unsupervised", "catgan-100", *(f"semi-supervised-{labels}" for labels in (25, 50, 100, 1000)))
DIGITS = ("acgan", "infogan", "ebgan", "began", *LABELS)
NAMES = PLANE + DIGITS


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.objectives", description=__doc__)
    parser.add_argument("trials", nargs="*", metavar="TRIAL", help=f"which (all that can be run): {', '.join(NAMES)}")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N")
    parser.add_argument("--mnist", type=Path, metavar="FOLDER", help=f"MNIST's IDX files, for {', '.join(DIGITS)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="put every seed's figures into this file, beside what is there")
    return parser.parse_args(arguments)


def summary(name: str, records: list[dict[str, Any]], goals: dict[str, tuple[float, float]]) -> tuple[str, bool]:
    """A line with the medians and every seed's value, and whether all goals are met."""
    parts, met = [], True
    for key in (key for key, value in records[0].items() if isinstance(value, int | float) and key != "seed"):
        values = [record[key] for record in records]
        text = f"{key} {median(values):.3g} ({', '.join(f'{value:.3g}' for value in values)})"
        if key in goals:
            reached = goals[key][0] <= median(values) <= goals[key][1]
            met, text = met and reached, text + (" met" if reached else " MISSED")
        parts.append(text)
    return f"{name}: {'; '.join(parts)}", met


def main(arguments: list[str] | None = None) -> int:
    """The command; its exit status."""
    options = parse(arguments)
    unknown = [name for name in options.trials if name not in NAMES]
    if unknown:
        print(f"there is no trial {unknown[0]}; there are {', '.join(NAMES)}", file=sys.stderr)
        return 2
    from benchmarks.objectives.trials import GOALS, measure

    everything = True
    try:
        for name in options.trials or (NAMES if options.mnist else PLANE):
            records: list[dict[str, Any]] = []
            for seed in options.seeds:
                records.append(measure(name, seed, options.mnist))
                if options.json is not None:
                    there = read_json(options.json) if options.json.exists() else {}
                    write_json(options.json, there | {name: records})
            line, met = summary(name, records, GOALS[name])
            print(line, flush=True)
            everything &= met
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0 if everything else 1


if __name__ == "__main__":
    sys.exit(main())
