# SPDX-License-Identifier: Apache-2.0
"""What `python -m gangealing_fast.align` does: read, align in batches of bounded memory, write."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from gangealing_fast.applications.aligner import Look, flow_scores_of
from gangealing_fast.applications.choosing import aligner_of
from gangealing_fast.applications.config import AlignConfig
from gangealing_fast.data.pictures import PictureStream, skipped_summary, to_float
from gangealing_fast.models.layers import resize_to
from gangealing_fast.report.pictures import save_grid
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.runtime.setup import set_threads
from gangealing_fast.storage.files import JsonLines, make_folder, save_picture


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
    if config.batch < 1 or config.size < 0 or config.resolution < 0:
        raise UserError("--batch must be at least 1, --size and --resolution at least 0")
    if config.crop == "none" and config.size:
        raise UserError("--size is the side of cropped pictures: leave it out, or leave --crop none out")
    aligner = aligner_of(config.checkpoint, config)
    size = None if config.crop == "none" else config.size or aligner.transformer.input_size
    resolution = config.resolution or aligner.transformer.flow_size
    pictures = PictureStream(config.data, size=size, batch=1 if size is None else config.batch, limit=config.limit)
    print(f"{len(pictures)} pictures in {config.data}, read {'whole' if size is None else f'as {size}x{size}'}")
    folder, averages, done = make_folder(config.out), Averages(), 0
    narrow: list[tuple[str, str]] = []
    with JsonLines(folder / "warps.jsonl") as warps, tqdm(total=len(pictures), unit="picture", desc="align") as progress:
        for names, batch in pictures:
            images = to_float(batch)
            if min(images.shape[2:]) < 2:
                narrow.append((names[0], "a side of one pixel"))
                progress.update(len(names))
                continue
            look = aligner.look(images, output_resolution=resolution)
            averages.add(look.square.images if size is not None else resize_to(look.square.images, resolution), look)
            for line in write_pictures(folder, names, look, done, decided=aligner.decides):
                warps.append(line)
            done += len(names)
            progress.update(len(names))
    averages.write(folder, resolution)
    if len(averages.members) > 1:
        print("; ".join(f"cluster {k}: {count} pictures" for k, count in sorted(averages.members.items())))
    if pictures.skipped or narrow:
        print(skipped_summary([*pictures.skipped, *narrow]))
    if not done:
        raise UserError(
            f"none of the {len(pictures)} pictures in {config.data} can be aligned; give pictures of two pixels or more"
        )
    print(f"{done} aligned pictures, warps.jsonl and average.png (before, after) are in {folder}")
    print("next: draw on a copy of template*.png, transparent elsewhere, and run python -m gangealing_fast.propagate")


def write_pictures(folder: Path, names: Sequence[str], look: Look, done: int, *, decided: bool) -> list[dict[str, Any]]:
    """Write aligned pictures, numbered from `done`; a line of warps.jsonl for each.

    decided: whether there was a cluster or a mirror to decide on.
    """
    record, scores, lines = look.alignment, flow_scores_of(look.alignment), []
    for k, picture in enumerate(names):
        file = f"{done + k:06d}-{PurePath(picture).stem}.png"
        save_picture(folder / file, record.image[k])
        matrix = None if record.matrix is None else record.matrix[k].flatten().tolist()
        line: dict[str, Any] = {"picture": picture, "file": file, "matrix": matrix}
        if scores is not None:
            line["flow_score"] = scores[k].item()
        if decided:
            line |= {"cluster": int(look.cluster[k]), "mirrored": bool(look.mirrored[k])}
        lines.append(line)
    return lines
