# SPDX-License-Identifier: Apache-2.0
"""What `python -m gangealing_fast.align` does: read, align in batches of bounded memory, write."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from gangealing_fast.applications import engines, units
from gangealing_fast.applications.aligner import Aligner, Look
from gangealing_fast.applications.averages import Averages
from gangealing_fast.applications.choosing import aligner_of
from gangealing_fast.applications.config import AlignConfig
from gangealing_fast.applications.filters import Filters, best
from gangealing_fast.applications.naming import result_name
from gangealing_fast.applications.refining import refined_by, spread
from gangealing_fast.applications.sampling import (
    ONE_PIXEL,
    QUALITY,
    Collection,
    batches,
    before_of,
    flow_bytes,
    lines_of,
    look_at,
    rows_of,
    scores_of,
    seeing_of,
)
from gangealing_fast.data.pictures import PictureStream, skipped_summary
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.runtime.setup import processes, set_threads
from gangealing_fast.runtime.text import printable
from gangealing_fast.storage.claims import results_folder
from gangealing_fast.storage.files import JsonLines, picture_bytes, write_bytes

COMMAND = "align"
WRITES = (
    r"[0-9]{6,}-.*\.(png|jpg|npy)|(template(-[0-9]+)?|average)\.png|warps\.jsonl"
    r"|[0-9]{6,}\.(tar|json)|(listing|summary)\.json|\.[0-9]{6,}\.(npz|scores)"
)


def run(config: AlignConfig) -> None:
    """Align all pictures. Raises UserError for a user's mistakes."""
    set_threads(config.threads)
    if units.wanted(config):
        if config.refine:
            raise UserError("--refine makes its template of single pictures, and tars are written here: leave one of them out")
        engines.run(config)
        return
    if processes() > 1 or config.engine != "local":
        raise UserError("several processes share tars: give --shard, the pictures in each, or a folder of tars as --data")
    aligner = aligner_of(config.checkpoint, config)
    if config.refine:
        size = None if config.crop == "none" else config.size or aligner.reads
        examples = PictureStream(config.data, size=size, limit=config.limit)
        aligner = refined_by(aligner, config, spread(config, examples))
    seeing, filters = seeing_of(config, aligner), Filters.of(config, aligner)
    size = seeing.size
    pictures = Collection(config.data, seeing, config.limit)
    print(f"{len(pictures)} pictures in {printable(config.data)}, read {'whole' if size is None else f'as {size}x{size}'}")
    with results_folder(config.out, COMMAND, config, WRITES, pictures={"--data": config.data}) as folder:
        done = _align(config, aligner, pictures, filters, folder)
    print(f"{done} aligned pictures, warps.jsonl and average.png (before, after) are in {printable(config.out)}")
    print("next: draw on a copy of template*.png, transparent elsewhere, and run python -m gangealing_fast.propagate")


def _align(config: AlignConfig, aligner: Aligner, pictures: Collection, filters: Filters, folder: Path) -> int:
    """Align and write all pictures; returns how many."""
    averages, done, left_out, seeing = Averages(), 0, 0, pictures.seeing
    batch, keep = seeing.batch(config.batch), _kept(config, aligner, pictures)
    with JsonLines(folder / "warps.jsonl") as warps, tqdm(total=len(pictures), unit="picture", desc="align") as progress:
        for chunk in batches(pictures.sights(), batch, pictures.skipped):
            progress.update(len(chunk))
            wanted = [item for item in chunk if keep is None or item[0] in keep]
            left_out += len(chunk) - len(wanted)
            if not wanted:
                continue
            names, views = [name for _, name, _ in wanted], [view for _, _, view in wanted]
            images, look = look_at(aligner, views, seeing, similarity_only=config.similarity_only)
            lines = lines_of(names, views, images, look, decided=aligner.decides)
            rows = [row for row, line in enumerate(lines) if filters.reason(line) is None]
            left_out += len(lines) - len(rows)
            if not rows:
                continue
            kept = rows_of(look, rows)
            averages.add(before_of(images, look, seeing)[rows], kept)
            for line in write_pictures(folder, [lines[row] for row in rows], kept, done, config):
                warps.append(line)
            done += len(rows)
    _check(done, left_out, pictures)
    averages.write(folder, seeing.resolution)
    if len(averages.members) > 1:
        print("; ".join(f"cluster {k}: {count} pictures" for k, count in sorted(averages.members.items())))
    if left_out:
        print(f"{left_out} pictures left out by --retain, --out-of-bounds, --effective-resolution")
    if pictures.summary():
        print(pictures.summary())
    return done


def _kept(config: AlignConfig, aligner: Aligner, pictures: Collection) -> frozenset[int] | None:
    """The numbers of the pictures whose flow scores are high enough; None if all are kept."""
    if config.retain == 1:
        return None
    with tqdm(total=len(pictures), unit="picture", desc="flow scores") as progress:
        scores = scores_of(aligner, pictures.sights(small_alone=True), pictures.seeing, config.batch, progress.update)
    return best([scores], config.retain)[0]


def _check(done: int, left_out: int, pictures: Collection) -> None:
    """Raise UserError if not one picture was aligned."""
    if done:
        return
    if left_out:
        raise UserError(
            f"all {left_out} pictures in {pictures.path} are left out by --retain, --out-of-bounds or --effective-resolution"
        )
    if any(reason != ONE_PIXEL for _, reason in pictures.skipped):
        raise UserError(f"none of the {len(pictures)} pictures in {pictures.path} can be read: {skipped_summary(pictures.skipped)}")
    raise UserError(f"none of the {len(pictures)} pictures in {pictures.path} can be aligned; give pictures of two pixels or more")


def write_pictures(
    folder: Path, lines: Sequence[dict[str, Any]], look: Look, done: int, config: AlignConfig
) -> list[dict[str, Any]]:
    """Write aligned pictures, numbered from `done`, and their flows if wanted; their `lines` with the names of the files."""
    record, written = look.alignment, []
    for k, line in enumerate(lines):
        stem = result_name(done + k, line["picture"]).removesuffix(".png")
        file = f"{stem}.{config.format}"
        write_bytes(folder / file, picture_bytes(record.image[k], file_format=config.format, quality=QUALITY))
        if config.flows and record.residual_flow is not None:
            write_bytes(folder / f"{stem}.npy", flow_bytes(record.residual_flow[k]))
        written.append({"picture": line["picture"], "file": file} | line)
    return written
