# SPDX-License-Identifier: Apache-2.0
"""Train the preset `edges-digits` of `translate train` whole and with each loss left out, and print a table of its figures.

python tools/measure_translation.py --out runs/translation --mnist FOLDER [--variants whole no-style ...] [--seeds 0 1 2] \\
    [--steps N] [--aligner runs/digits] [--threads N]

A run that is complete or cut short is taken up where it is. With --aligner, a results folder of `train --preset digits`, held-out
threes of the package are shown to it under known warps as edges and in colours: as they are, and translated to white digits.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from pathlib import Path
from statistics import median

from gangealing_fast.runtime.commands import run_command
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.storage.files import read_json, write_json, write_text
from gangealing_fast.translation.config import PRESETS

VARIANTS: dict[str, dict[str, float]] = {
    "whole": {},
    "no-image": {"image_weight": 0.0},
    "no-content": {"content_weight": 0.0},
    "no-style": {"style_weight": 0.0},
    "no-adversarial": {"adversarial_weight": 0.0},
    "with-cycle": {"cycle_weight": 1.0},
}
WAY = "first-to-second"
# Name of the column: the figure's name, and whether it is shown over what stands beside it.
COLUMNS = {
    "readable": ("readable", False),
    "colours of 7": ("colours", False),
    "colour diversity over real": ("colour_diversity", True),
    "style error over zero's": ("style", True),
    "content error over another's": ("content", True),
    "cycle over another's": ("cycle", True),
    "reconstruction": ("reconstruction", False),
    "diversity over real": ("diversity", True),
    "Fréchet over real": ("frechet", True),
}
Runs = dict[str, list[dict[str, float]]]


def train(variant: str, options: argparse.Namespace, seed: int) -> tuple[Path, dict[str, float]]:
    """The results folder of one run, and its figures by column."""
    from gangealing_fast.translation.trainer import run

    preset = PRESETS["edges-digits"]
    out = options.out / f"{variant}-{seed}"
    changes = {
        "out": out,
        "second": options.mnist,
        "seed": seed,
        "threads": options.threads,
        "steps": options.steps or preset.steps,
    }
    began = time.process_time()
    run(dataclasses.replace(preset, **VARIANTS[variant], **changes))
    return out, figures_of(out) | {"CPU seconds": time.process_time() - began}


def figures_of(folder: Path) -> dict[str, float]:
    """The columns of a run that is through, from its figures.json."""
    found = read_json(folder / "figures.json")[WAY]
    return {
        column: found[name]["value"] / (max(found[name]["beside"], 1e-12) if over else 1)
        for column, (name, over) in COLUMNS.items()
    }


def aligned(folder: Path, checkpoint: Path) -> dict[str, float]:
    """Pair error, after over before, of held-out threes as edges and in colours: as they are, and translated to white."""
    import torch

    from gangealing_fast import Aligner
    from gangealing_fast.data.digits import SIZE, load_heldout_digits, object_box, random_similarity
    from gangealing_fast.data.pictures import to_float
    from gangealing_fast.metrics.alignment import pair_error_ratio
    from gangealing_fast.translation import Translator
    from gangealing_fast.translation.making import COLOURS, draw_digits
    from gangealing_fast.translation.translator import DomainName

    aligner, translator, digits = Aligner.load(checkpoint), Translator.load(folder), load_heldout_digits((3,))
    generator = torch.Generator().manual_seed(7)
    warps = [random_similarity(len(digits.images), generator=generator) for _ in range(2)]
    drawn = draw_digits(digits.images, digits.labels, len(digits.images), 5, of="colours", warped=0.0)
    white = translator.style(to_float(drawn.images[drawn.colours == list(COLOURS).index("white")])).mean(0, keepdim=True)
    sources: dict[str, DomainName] = {"edges": "first", "colours": "second"}
    found: dict[str, float] = {}
    for of, source in sources.items():
        shown = [
            to_float(draw_digits(digits.images, digits.labels, len(warp), 5 + k, of=of, matrices=warp).images)
            for k, warp in enumerate(warps)
        ]
        changed = [translator.translate(images, styles=white, source=source)[:, 0] for images in shown]
        for name, pictures in (("as they are", shown), ("translated", changed)):
            records = [aligner.warp(images) for images in pictures]
            grids = [
                record.matrix if record.residual_flow is None and record.matrix is not None else record.grid for record in records
            ]
            pair = pair_error_ratio(warps[0], grids[0], warps[1], grids[1], object_box(digits.images), SIZE)
            found[f"pair error, {of} {name}"] = pair["ratio"]
    return found


def table(runs: Runs) -> str:
    """Markdown: a row for every figure, a column for every variant: the median, and every seed's value."""
    names = list(dict.fromkeys(name for records in runs.values() for record in records for name in record))
    lines = [f"| figure | {' | '.join(runs)} |", "|---" * (len(runs) + 1) + "|"]
    for name in names:
        cells = [name]
        for records in runs.values():
            values = [record[name] for record in records if name in record]
            digits = 0 if name == "CPU seconds" or name.startswith("colours of") else 3
            every = ", ".join(f"{value:.{digits}f}" for value in values)
            cells.append(f"{median(values):.{digits}f} ({every})" if values else "")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs, of table.md and figures.json")
    parser.add_argument("--mnist", type=Path, required=True, help="folder of MNIST's IDX files")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=0, help="of each run; 0 for the preset's")
    parser.add_argument("--aligner", type=Path, help="results folder of train --preset digits")
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args(arguments)
    for name, values in (("--seeds", options.seeds), ("--variants", options.variants)):
        if len(set(values)) != len(values):
            raise UserError(f"{name} must all differ")
    runs: Runs = {}
    for seed in options.seeds:
        for variant in options.variants:
            print(f"{variant}, seed {seed}", flush=True)
            folder, found = train(variant, options, seed)
            if options.aligner is not None and variant == "whole":
                found |= aligned(folder, options.aligner)
            runs.setdefault(variant, []).append(found)
            write_json(options.out / "figures.json", runs)
    text = table(runs)
    write_text(options.out / "table.md", text + "\n")
    print(text)


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
