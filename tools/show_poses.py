# SPDX-License-Identifier: Apache-2.0
"""Show one picture in random poses and how an aligner undoes them: a row of poses, a row of what becomes of them.

python tools/show_poses.py --checkpoint runs/cats --sample 13 --out docs/images/cats-poses.png
python tools/show_poses.py --checkpoint runs/cats --picture FILE --out poses.png [--crop LEFT TOP SIDE]

--sample NUMBER is a picture that the generator of the preset `cats` makes, or that of --generator FILE.
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
from gangealing_fast.checkpoints.reading import load_generator
from gangealing_fast.models.layers import resize_to
from gangealing_fast.report.pictures import save_grid

SIDE = 128
POSES = PoseRange.of(PRESETS["cats"])


def photograph(path: Path, crop: tuple[int, int, int] | None) -> torch.Tensor:
    """A file's picture, or the square of it at (left, top) of a side, `[1, 3, H, W]` in [-1, 1]."""
    image = Image.open(path).convert("RGB")
    if crop:
        left, top, side = crop
        image = image.crop((left, top, left + side, top + side))
    return torch.from_numpy(numpy.array(image)).permute(2, 0, 1)[None] / 127.5 - 1


@torch.no_grad()
def sample(path: Path, number: int) -> torch.Tensor:
    """The picture `[1, 3, S, S]` in [-1, 1] that a generator makes of the latent of this number."""
    generator = load_generator(path)
    z = torch.randn(number + 1, generator.latent_dim, generator=torch.Generator().manual_seed(0))[number:]
    return generator.synthesize(generator.map(z), noise="fixed").clamp(-1, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, help="what `train` wrote")
    shown = parser.add_mutually_exclusive_group(required=True)
    shown.add_argument("--picture", type=Path, help="a file")
    shown.add_argument("--sample", type=int, help="a number from 0: the picture that the generator makes of this latent")
    parser.add_argument("--generator", type=Path, default=PRESETS["cats"].generator)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--crop", type=int, nargs=3, metavar=("LEFT", "TOP", "SIDE"), help="the square that is used, in pixels")
    parser.add_argument("--columns", type=int, default=8)
    options = parser.parse_args()
    pixels = sample(options.generator, options.sample) if options.picture is None else photograph(options.picture, options.crop)
    numbers = torch.randn(options.columns, POSE_NUMBERS, generator=torch.Generator().manual_seed(1))
    posed = show(pixels.expand(options.columns, -1, -1, -1).contiguous(), POSES.draw(numbers), "reflection")
    side = SIDE if options.sample is None else pixels.shape[3]  # a sample is small: enlarged it shows nothing more
    posed = resize_to(posed, side)
    aligned = Aligner.load(options.checkpoint).align(posed, output_resolution=side)
    save_grid(torch.cat([posed, aligned]).clamp(-1, 1), options.out, columns=options.columns)
    print(f"{options.columns} poses, and below them the same aligned: {options.out}")


if __name__ == "__main__":
    main()
