# SPDX-License-Identifier: Apache-2.0
"""What `align --refine` brings: sharpness of the average, and pair error in random poses, with a trained aligner alone and refined.

python tools/measure_refining.py --checkpoint runs/cats --data cats64.tar --held-out 500 --posed 100 --threads 1

A template of 100 of the held-out pictures is made first. Sharpness is that of the average of all of them, as they are. The pair
error is over `--posed` of them, each in two random poses of the preset `cats`; the template is then made of pictures in such poses.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from gangealing_fast import Aligner
from gangealing_fast.alignment.config import PRESETS
from gangealing_fast.alignment.poses import POSE_NUMBERS, PoseRange, show
from gangealing_fast.data.pictures import open_pictures, to_float
from gangealing_fast.geometry.warps import identity_matrix, invert
from gangealing_fast.metrics import average_image, pair_error, sharpness

TEMPLATE = 100
MIDDLE = torch.tensor([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]])


def aligned(aligner: Aligner, images: Tensor) -> tuple[Tensor, Tensor]:
    """Aligned pictures and the grids that they were read at."""
    found = [aligner.warp(part) for part in tqdm(images.split(10), desc="align", leave=False)]
    return torch.cat([record.image for record in found]), torch.cat([record.grid for record in found])


def some(images: Tensor, count: int) -> Tensor:
    """At most `count` of the pictures, evenly spread."""
    return images[:: max(1, len(images) // count)][:count]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--held-out", type=int, default=500)
    parser.add_argument("--until", type=int, default=None, help="hold out the pictures before this one, instead of the last")
    parser.add_argument("--posed", type=int, default=100)
    parser.add_argument("--posed-only", action="store_true", help="leave out the sharpness of the average")
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    base = Aligner.load(options.checkpoint)
    assert base.reads is not None
    pictures = open_pictures(options.data, size=base.reads)
    end = len(pictures) if options.until is None else min(options.until, len(pictures))
    images = to_float(pictures.batch(range(max(0, end - options.held_out), end)))
    if not options.posed_only:
        before = float(sharpness(average_image(images)))
        start = time.process_time()
        refined = base.refine(some(images, TEMPLATE))
        middle = time.process_time()
        for name, aligner in (("aligner", base), ("refined", refined)):
            after = float(sharpness(average_image(aligned(aligner, images)[0])))
            print(f"sharpness, {name}: {before:.5f} -> {after:.5f} (ratio {after / before:.3f})")
        print(f"template {middle - start:.0f} s, {len(images)} pictures {time.process_time() - middle:.0f} s of processor")
    chosen = some(images, options.posed)
    numbers = torch.randn(2, len(chosen), POSE_NUMBERS, generator=torch.Generator().manual_seed(7))
    read = [PoseRange.of(PRESETS["cats"]).draw(half) for half in numbers]
    halves = [show(chosen, pose, base.warping.padding_mode) for pose in read]
    known = [invert(pose) for pose in read]
    posed = base.refine(some(torch.cat(halves), TEMPLATE))
    size, none = images.shape[-1], identity_matrix(len(chosen))
    unaligned = float(pair_error(known[0], none, known[1], none, MIDDLE, size))
    for name, aligner in (("aligner", base), ("refined", posed)):
        grids = [aligned(aligner, half)[1] for half in halves]
        ones = [[value[k : k + 1] for value in (known[0], grids[0], known[1], grids[1])] for k in range(len(chosen))]
        errors = torch.tensor([float(pair_error(*one, MIDDLE, size)) for one in ones]) / unaligned
        pixels, worst = float(errors.mean()) * unaligned, [round(error, 2) for error in errors.topk(6).values.tolist()]
        print(f"pair error of {len(chosen)}, {name}: {unaligned:.2f} -> {pixels:.2f} (ratio {errors.mean():.3f}, ", end="")
        print(f"median {errors.median():.3f}, {int((errors < 0.1).sum())} below 0.1, the largest {worst})", flush=True)


if __name__ == "__main__":
    main()
