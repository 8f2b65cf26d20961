# SPDX-License-Identifier: Apache-2.0
"""What `python -m gangealing_fast.align` does: read, align in batches of bounded memory, write."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from gangealing_fast.applications.aligner import Aligner, Look, flow_scores_of
from gangealing_fast.applications.choosing import aligner_of
from gangealing_fast.applications.config import AlignConfig
from gangealing_fast.applications.naming import result_name
from gangealing_fast.data.pictures import PictureStream, to_float
from gangealing_fast.models.layers import resize_to
from gangealing_fast.report.pictures import save_grid
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.runtime.setup import set_threads
from gangealing_fast.runtime.text import printable
from gangealing_fast.storage.claims import results_folder
from gangealing_fast.storage.files import JsonLines, save_picture

COMMAND = "align"
WRITES = r"[0-9]{6,}-.*\.png|(template(-[0-9]+)?|average)\.png|warps\.jsonl"


class Averages:
    """Sums of the pictures of each cluster, before and after they are aligned."""

    def __init__(self) -> None:
        self.members: dict[int, int] = {}
        self._sums: dict[int, tuple[Tensor, Tensor]] = {}

    def add(self, images: Tensor, look: Look) -> None:
        """Count pictures `[N, 3, H, W]` in."""
        for k in look.cluster.unique().tolist():
            chosen = look.cluster == k
            before, after = self._sums.get(k, (torch.zeros(()), torch.zeros(())))
            self._sums[k] = (before + images[chosen].sum(0), after + look.alignment.image[chosen].sum(0))
            self.members[k] = self.members.get(k, 0) + int(chosen.sum())

    def write(self, folder: Path, resolution: int) -> None:
        """average.png, a row of before and after for each cluster, and each cluster's template to draw on."""
        averages: list[Tensor] = []
        for k in sorted(self._sums):
            before, after = (total / self.members[k] for total in self._sums[k])
            averages += [F.interpolate(before[None], size=(resolution, resolution), mode="bilinear"), after[None]]
            save_picture(folder / ("template.png" if len(self._sums) == 1 else f"template-{k}.png"), after.clamp(-1, 1))
        save_grid(torch.cat(averages).clamp(-1, 1), folder / "average.png", columns=2)


def run(config: AlignConfig) -> None:
    """Align all pictures. Raises UserError for a user's mistakes; finished pictures stay."""
    set_threads(config.threads)
    if config.crop == "none" and config.size:
        raise UserError("--size is the side of cropped pictures: leave it out, or leave --crop none out")
    aligner = aligner_of(config.checkpoint, config)
    size = None if config.crop == "none" else config.size or aligner.transformer.input_size
    resolution = config.resolution or aligner.transformer.flow_size
    pictures = PictureStream(config.data, size=size, batch=1 if size is None else config.batch, limit=config.limit)
    print(f"{len(pictures)} pictures in {printable(config.data)}, read {'whole' if size is None else f'as {size}x{size}'}")
    with results_folder(config.out, COMMAND, config, WRITES, pictures={"--data": config.data}) as folder:
        done = _align(aligner, pictures, folder, resolution)
    print(f"{done} aligned pictures, warps.jsonl and average.png (before, after) are in {printable(config.out)}")
    print("next: draw on a copy of template*.png, transparent elsewhere, and run python -m gangealing_fast.propagate")


def _align(aligner: Aligner, pictures: PictureStream, folder: Path, resolution: int) -> int:
    """Align and write all pictures; returns how many."""
    averages, done = Averages(), 0
    with JsonLines(folder / "warps.jsonl") as warps, tqdm(total=len(pictures), unit="picture", desc="align") as progress:
        for names, batch in pictures:
            images = to_float(batch)
            if min(images.shape[2:]) < 2:
                pictures.skipped.append((names[0], "a side of one pixel"))
                progress.update(len(names))
                continue
            look = aligner.look(images, output_resolution=resolution)
            averages.add(look.square.images if pictures.size is not None else resize_to(look.square.images, resolution), look)
            for line in write_pictures(folder, names, look, done, decided=aligner.decides):
                warps.append(line)
            done += len(names)
            progress.update(len(names))
    if done:
        averages.write(folder, resolution)
    if len(averages.members) > 1:
        print("; ".join(f"cluster {k}: {count} pictures" for k, count in sorted(averages.members.items())))
    if pictures.summary():
        print(pictures.summary())
    if not done:
        raise UserError(
            f"none of the {len(pictures)} pictures in {pictures.path} can be aligned; give pictures of two pixels or more"
        )
    return done


def write_pictures(folder: Path, names: Sequence[str], look: Look, done: int, *, decided: bool) -> list[dict[str, Any]]:
    """Write aligned pictures, numbered from `done`; a line of warps.jsonl for each.

    decided: whether there was a cluster or a mirror to decide on.
    """
    record, scores, lines = look.alignment, flow_scores_of(look.alignment), []
    for k, picture in enumerate(names):
        file = result_name(done + k, picture)
        save_picture(folder / file, record.image[k])
        matrix = None if record.matrix is None else record.matrix[k].flatten().tolist()
        line: dict[str, Any] = {"picture": picture, "file": file, "matrix": matrix}
        if scores is not None:
            line["flow_score"] = scores[k].item()
        if decided:
            line |= {"cluster": int(look.cluster[k]), "mirrored": bool(look.mirrored[k])}
        lines.append(line)
    return lines
