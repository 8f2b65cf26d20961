# SPDX-License-Identifier: Apache-2.0
"""An edit of what a chosen template shows and a learned one need not: the bar of a seven, docs/images/digits-chosen-template.png.

    python tools/show_template.py write --data mnist --out runs/templates
    python -m gangealing_fast.train --preset clusters --single-steps 0 --freeze-target --inverter runs/inverter-347 \\
      --template runs/templates/three.png runs/templates/four.png runs/templates/seven.png --out runs/chosen
    python tools/show_template.py show --checkpoint runs/chosen --out docs/images/digits-chosen-template.png

`write` takes three training digits of MNIST: a three, a four, and a seven with its bar. `show` lays a red line over the bar of the
template and carries it to held-out sevens with a bar and without one, all under random warps. It prints how much ink lies under the
line in either: where it arrives on the bar there is ink, where there is no bar it crosses the stem alone.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from gangealing_fast import Aligner
from gangealing_fast.applications.propagating import lay_over
from gangealing_fast.data.digits import load_heldout_digits, random_similarity, training_digits, warp_digits
from gangealing_fast.report.pictures import save_grid
from gangealing_fast.storage.files import make_folder, save_picture

CHOSEN = {"three": (3, 14), "four": (4, 13), "seven": (7, 32)}
"""Class, and number among MNIST's training digits of that class."""
BARRED = (2, 4, 6, 10, 17, 24, 26, 27, 29, 34, 38, 52, 54, 80, 83, 84, 88, 101, 118, 126, 129, 144)
"""Of the package's held-out sevens those with a bar, by eye, among the first 160."""
SIDE, COLUMNS = 128, 8
BAR = (0.31, 0.58, 0.76, 0.58)
"""Ends of the bar of the chosen seven, in parts of the picture's side."""


def write(data: Path, out: Path) -> None:
    """The template pictures."""
    make_folder(out)
    for name, (kind, number) in CHOSEN.items():
        images, _ = training_digits(data, (kind,))
        save_picture(out / f"{name}.png", warp_digits(images[number : number + 1])[0])
    print(f"three.png, four.png and seven.png are in {out}")


def line() -> Tensor:
    """The edit `[1, 4, S, S]` in [0, 1]."""
    drawn = Image.new("RGBA", (SIDE, SIDE))
    ImageDraw.Draw(drawn).line([SIDE * value for value in BAR], fill=(255, 40, 40, 255), width=7)
    return torch.from_numpy(numpy.array(drawn)).permute(2, 0, 1)[None] / 255


def carried(aligner: Aligner, digits: Tensor) -> tuple[Tensor, Tensor]:
    """Digits `[N, 3, S, S]` with the line on them, and the share of ink under it `[N]`."""
    marks = aligner.maps_from_template(digits, line())[0]
    ink, opacity = (digits[:, 0] + 1) / 2, marks[:, 3]
    return lay_over(digits, marks), (ink * opacity).sum((1, 2)) / opacity.sum((1, 2)).clamp(min=1e-6)


def show(checkpoint: Path, cluster: int, out: Path) -> None:
    """The figure and the shares."""
    aligner = Aligner.load(checkpoint, cluster=cluster)
    sevens = load_heldout_digits((7,)).images[:160]
    barred = torch.zeros(len(sevens), dtype=torch.bool)
    barred[list(BARRED)] = True
    warps = random_similarity(len(sevens), generator=torch.Generator().manual_seed(5))
    digits = torch.nn.functional.interpolate(warp_digits(sevens, warps), scale_factor=SIDE // 32, mode="bicubic").clamp(-1, 1)
    shown = []
    for name, group in (("with a bar", digits[barred]), ("without", digits[~barred])):
        edited, ink = carried(aligner, group)
        print(f"{len(group)} sevens {name}: ink under the line {ink.mean():.3f}, median {ink.median():.3f}")
        aligned = aligner.align(group, output_resolution=SIDE).mean(0, keepdim=True)
        shown += [aligned, lay_over(aligned, line()), edited[: COLUMNS - 2]]
    shown += [carried(aligner, digits[barred])[0][COLUMNS - 2 : 2 * COLUMNS - 2]]
    save_grid(torch.cat(shown).clamp(-1, 1), out, columns=COLUMNS)
    print(f"rows: sevens with a bar, sevens without, more with it; first the average of the aligned ones and the edit: {out}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["write", "show"])
    parser.add_argument("--data", type=Path, default=Path("mnist"))
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--cluster", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    if given.what == "write":
        write(given.data, given.out)
    else:
        show(given.checkpoint, given.cluster, given.out)


if __name__ == "__main__":
    main()
