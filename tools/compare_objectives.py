# SPDX-License-Identifier: Apache-2.0
"""Train a digits generator by several objectives, let each feed the aligner, and print a table of score and alignment.

python tools/compare_objectives.py --out runs/objectives --mnist FOLDER [--objectives nonsaturating lsgan hinge] \\
    [--seeds 0 1 2] [--kimg 16] [--steps 1000] [--threads N]

Every objective gets the preset `digits` of `pretrain`, the same number of pictures and one update of the critic for each of the
generator; R1 only where the objective does not hold its critic by itself. Then the preset `digits` of `train` aligns the held-out
digits with the generator's best snapshot. A run that is complete or cut short is taken up where it is.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from statistics import median

from compare_precision import train

sys.path.append(str(Path(__file__).resolve().parents[1]))  # for benchmarks, which are not installed

from benchmarks.objectives.distances import spearman
from gangealing_fast.alignment.config import PRESETS as ALIGNERS
from gangealing_fast.pretraining.config import PRESETS as GENERATORS
from gangealing_fast.runtime.commands import run_command
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.storage.files import read_json_lines, write_json, write_text

SCORES = ("score", "recall", "diversity")
Runs = dict[str, list[dict[str, float]]]


def generate(objective: str, out: Path, mnist: Path, seed: int, kimg: float, threads: int) -> tuple[Path, dict[str, float]]:
    """The generator that `objective` trains, and the scores of the snapshot that it is."""
    from gangealing_fast.adversarial.objectives import make
    from gangealing_fast.pretraining.trainer import run

    preset = GENERATORS["digits"]
    changes = {"data": mnist, "out": out, "seed": seed, "kimg": kimg, "threads": threads}
    r1 = preset.r1 if make(objective).r1 else 0.0
    path = run(dataclasses.replace(preset, objective=objective, critic_steps=1, r1=r1, **changes))
    best = min(read_json_lines(out / "log.jsonl"), key=lambda line: line["score"])
    return path, {name: best[name] for name in SCORES}


def measure(objective: str, options: argparse.Namespace, seed: int) -> dict[str, float]:
    """Scores and alignment of one generator."""
    out = options.out / f"{objective}-{seed}"
    path, scores = generate(objective, out / "generator", options.mnist, seed, options.kimg, options.threads)
    annealing = options.steps * 13 // 20  # the preset's share
    lengths = {"steps": options.steps, "anneal_psi": annealing, "period": options.steps - annealing}
    changes = {"generator": path, "out": out / "aligner", "seed": seed, "threads": options.threads}
    return scores | train(dataclasses.replace(ALIGNERS["digits"], **changes, **lengths))


def table(runs: Runs) -> str:
    """Markdown: a row for every objective, of each figure the median and every seed's value."""
    names = list(next(iter(runs.values()))[0])
    lines = [f"| objective | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for objective, records in runs.items():
        cells = [f"`{objective}`"]
        for name in names:
            values = [record[name] for record in records]
            digits = 0 if name == "score" else 3
            cells.append(f"{median(values):.{digits}f} ({', '.join(f'{value:.{digits}f}' for value in values)})")
        lines.append(f"| {' | '.join(cells)} |")
    every = [record for records in runs.values() for record in records]
    if len(every) > 2:
        order = spearman([record["score"] for record in every], [record["Pair error"] for record in every])
        lines += ["", f"Rank correlation (Spearman) of score and pair error over these {len(every)} runs: {order:.2f}"]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs, of table.md and figures.json")
    parser.add_argument("--mnist", type=Path, required=True, help="folder of MNIST's IDX files")
    parser.add_argument("--objectives", nargs="+", default=["nonsaturating", "lsgan", "hinge"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--kimg", type=float, default=16.0, help="thousands of pictures for each generator")
    parser.add_argument("--steps", type=int, default=1000, help="of each aligner")
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args(arguments)
    for name, values in (("--seeds", options.seeds), ("--objectives", options.objectives)):
        if len(set(values)) != len(values):
            raise UserError(f"{name} must all differ")
    runs: Runs = {}
    for seed in options.seeds:
        for objective in options.objectives:
            print(f"{objective}, seed {seed}", flush=True)
            runs.setdefault(objective, []).append(measure(objective, options, seed))
            write_json(options.out / "figures.json", runs)
    text = table(runs)
    write_text(options.out / "table.md", text + "\n")
    print(text)


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
