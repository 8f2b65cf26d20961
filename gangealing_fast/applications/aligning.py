# SPDX-License-Identifier: Apache-2.0
"""What `python -m gangealing_fast.align` does: read, align in batches of bounded memory, write."""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING

import torch
from tqdm import tqdm

from gangealing_fast.applications.aligner import Aligner
from gangealing_fast.data.pictures import PictureStream, skipped_summary, to_float
from gangealing_fast.ops import flow_regularizer
from gangealing_fast.report.pictures import save_grid
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.storage.files import JsonLines, make_folder, save_picture

if TYPE_CHECKING:
    from gangealing_fast.applications.config import AlignConfig


def run(config: AlignConfig) -> None:
    """Align all pictures. Raises UserError for a user's mistakes; finished pictures stay."""
    if config.threads > 0:
        torch.set_num_threads(config.threads)
    if config.batch < 1 or config.size < 0 or config.resolution < 0:
        raise UserError("--batch must be at least 1, --size and --resolution at least 0")
    aligner = Aligner.load(config.checkpoint)
    size = config.size or aligner.transformer.input_size
    resolution = config.resolution or aligner.transformer.flow_size
    pictures = PictureStream(config.data, size=size, batch=config.batch, limit=config.limit)
    print(f"{len(pictures)} pictures in {config.data}, read as {size}x{size}")
    folder = make_folder(config.out)
    sums: dict[int, list[torch.Tensor]] = {}
    members: dict[int, int] = {}
    done = 0
    with JsonLines(folder / "warps.jsonl") as warps, tqdm(total=len(pictures), unit="picture", desc="align") as progress:
        for names, batch in pictures:
            images = to_float(batch)
            cluster, mirrored = aligner.assign(images)
            record = aligner.warp(images, output_resolution=resolution, assignment=(cluster, mirrored))
            for c in cluster.unique().tolist():
                before, after = sums.setdefault(c, [torch.zeros(()), torch.zeros(())])
                sums[c] = [before + images[cluster == c].sum(0), after + record.image[cluster == c].sum(0)]
                members[c] = members.get(c, 0) + int((cluster == c).sum())
            scores = None if record.residual_flow is None else -flow_regularizer(record.residual_flow)[0]
            for k, picture in enumerate(names):
                name = f"{done + k:06d}-{PurePath(picture).stem}.png"
                save_picture(folder / name, record.image[k])
                matrix = None if record.matrix is None else record.matrix[k].flatten().tolist()
                line = {"picture": picture, "file": name, "matrix": matrix}
                if scores is not None:
                    line["flow_score"] = scores[k].item()
                if aligner.classifier is not None:
                    line |= {"cluster": int(cluster[k]), "mirrored": bool(mirrored[k])}
                warps.append(line)
            done += len(names)
            progress.update(len(names))
    averages = []
    for c in sorted(sums):
        before, after = (total / members[c] for total in sums[c])
        averages += [torch.nn.functional.interpolate(before[None], size=(resolution, resolution), mode="bilinear"), after[None]]
        save_picture(folder / ("template.png" if len(sums) == 1 else f"template-{c}.png"), after.clamp(-1, 1))
    save_grid(torch.cat(averages).clamp(-1, 1), folder / "average.png", columns=2)
    if len(sums) > 1:
        print("; ".join(f"cluster {c}: {members[c]} pictures" for c in sorted(sums)))
    if pictures.skipped:
        print(skipped_summary(pictures.skipped))
    print(f"{done} aligned pictures, warps.jsonl and average.png (before, after) are in {folder}")
    print("next: draw on a copy of template*.png, transparent elsewhere, and run python -m gangealing_fast.propagate")
