# SPDX-License-Identifier: Apache-2.0
"""Show one picture in random poses and how an aligner undoes them: a row of poses, a row of what becomes of them.

python tools/show_poses.py --checkpoint runs/cats --picture FILE --out docs/images/cats-poses.png [--crop LEFT TOP SIDE]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy
import torch
from PIL import Image

from gangealing_fast import Aligner
from gangealing_fast.alignment.config import PRESETS
from gangealing_fast.alignment.poses import POSE_NUMBERS, PoseRange, show
from gangealing_fast.models.layers import resize_to
from gangealing_fast.report.pictures import save_grid

SIDE = 128
POSES = PoseRange.of(PRESETS["cats"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, help="what `train` wrote")
    parser.add_argument("--picture", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--crop", type=int, nargs=3, metavar=("LEFT", "TOP", "SIDE"), help="the square that is used, in pixels")
    parser.add_argument("--columns", type=int, default=8)
    options = parser.parse_args()
    image = Image.open(options.picture).convert("RGB")
    if options.crop:
        left, top, side = options.crop
        image = image.crop((left, top, left + side, top + side))
    pixels = torch.from_numpy(numpy.array(image)).permute(2, 0, 1)[None] / 127.5 - 1
    numbers = torch.randn(options.columns, POSE_NUMBERS, generator=torch.Generator().manual_seed(1))
    posed = show(pixels.expand(options.columns, -1, -1, -1).contiguous(), POSES.draw(numbers), "reflection")
    posed = resize_to(posed, SIDE)
    aligned = Aligner.load(options.checkpoint).align(posed, output_resolution=SIDE)
    save_grid(torch.cat([posed, aligned]).clamp(-1, 1), options.out, columns=options.columns)
    print(f"{options.columns} poses, and below them the same aligned: {options.out}")


if __name__ == "__main__":
    main()
