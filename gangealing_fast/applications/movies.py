# SPDX-License-Identifier: Apache-2.0
"""Films of pictures that glide into their template: MP4 by PyAV, GIF by Pillow."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy
import torch
from PIL import Image
from torch import Tensor

from gangealing_fast.applications.aligner import Aligner
from gangealing_fast.data.video import video_writer
from gangealing_fast.report.pictures import picture_grid
from gangealing_fast.storage.files import atomic_write, to_picture

_GAP = 4


def glides(count: int) -> list[float]:
    """`count` (2 or more) strengths of a warp from 0 to 1 and back, slow at both ends: (1 - cos) / 2."""
    if count < 2:
        raise ValueError(f"glides: count must be at least 2, got {count}.")
    return [(1 - math.cos(2 * math.pi * k / count)) / 2 for k in range(count)]


def congealing_movie(aligner: Aligner, images: Tensor, count: int, resolution: int) -> Iterator[Image.Image]:
    """`count` sheets of pictures `[N, 3, H, W]` in [-1, 1] of `resolution` pixels: each glides into the template and back.

    Beside the sheet is the average of all pictures as they lie at that moment. The first half is made, the second shows it
    backwards, so that half of the sheets are in memory at most.
    """
    look = aligner.look(images)
    assignment = (look.cluster, look.mirrored)
    made: list[Image.Image] = []
    for number, alpha in enumerate(glides(count)):
        back = count - number
        if back < len(made):
            yield made[back]
            continue
        moved = aligner.look(images, alpha=alpha, assignment=assignment, output_resolution=resolution).alignment.image
        made.append(_sheet(moved))
        yield made[-1]


def _sheet(images: Tensor) -> Image.Image:
    """A sheet of all pictures and, at its right, their average at the sheet's height."""
    sheet = picture_grid(images)
    side = sheet.height
    average = to_picture(images.mean(0)).resize((side, side), Image.Resampling.BICUBIC)
    whole = Image.new("RGB", (sheet.width + _GAP + side, side), (255, 255, 255))
    whole.paste(sheet, (0, 0))
    whole.paste(average, (sheet.width + _GAP, 0))
    return whole


def write_movie(path: Path, pictures: Iterator[Image.Image], rate: int) -> None:
    """Write pictures of one size as a film that is named .mp4 or .gif, atomically. Raises UserError without PyAV for .mp4."""
    if path.suffix == ".gif":
        # One palette of 256 colours for all pictures would need all of them at once: each has its own.
        frames = (picture.quantize(256) for picture in pictures)
        first = next(frames)
        with atomic_write(path) as file:
            first.save(file, "GIF", save_all=True, append_images=frames, duration=round(1000 / rate), loop=0)
        return
    first = next(pictures)
    with video_writer(path, first.size, Fraction(rate), Fraction(1, rate)) as writer:
        for number, picture in enumerate(itertools.chain([first], pictures)):
            writer.write(torch.from_numpy(numpy.array(picture)).permute(2, 0, 1), number)
