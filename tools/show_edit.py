# SPDX-License-Identifier: Apache-2.0
"""Draw marks once on the template of a digits run and show them in held-out real digits: docs/images/digits-edited.png.

python tools/show_edit.py runs/digits docs/images/digits-edited.png
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy
import torch
from PIL import Image, ImageDraw

from gangealing_fast import Aligner
from gangealing_fast.applications.propagating import lay_over
from gangealing_fast.data.digits import load_heldout_digits, random_similarity, warp_digits
from gangealing_fast.report.pictures import save_grid

SIDE, COLUMNS, ROWS = 128, 8, 2


def marks() -> torch.Tensor:
    """A ball on the upper left end of the three and a line below it, as `[1, 4, S, S]` in [0, 1]; no rim is half transparent."""
    drawn = Image.new("RGBA", (SIDE, SIDE))
    pen = ImageDraw.Draw(drawn)
    pen.ellipse((40, 25, 56, 41), fill=(255, 40, 40, 255))
    pen.line((30, 110, 100, 110), fill=(60, 160, 255, 255), width=6)
    return torch.from_numpy(numpy.array(drawn)).permute(2, 0, 1)[None] / 255


def main(run: Path, picture: Path) -> None:
    aligner = Aligner.load(run)
    count = COLUMNS * ROWS
    warps = random_similarity(count, generator=torch.Generator().manual_seed(5))
    digits = warp_digits(load_heldout_digits((3,)).images[:count], warps)
    digits = torch.nn.functional.interpolate(digits, scale_factor=SIDE // digits.shape[3], mode="bicubic").clamp(-1, 1)
    edited = lay_over(digits, aligner.maps_from_template(digits, marks())[0])
    template = aligner.align(digits, output_resolution=SIDE).mean(0, keepdim=True)
    shown = [template, lay_over(template, marks()), digits[: COLUMNS - 2], edited[:COLUMNS], edited[COLUMNS:]]
    save_grid(torch.cat(shown).clamp(-1, 1), picture, columns=COLUMNS)
    print(f"the template, the marks on it and digits as they were; below all {count} digits with the marks: {picture}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
