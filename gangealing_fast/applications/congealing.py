# SPDX-License-Identifier: Apache-2.0
"""What `python -m gangealing_fast.congeal` does: read, align jointly, write the set, its pictures and its report."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from gangealing_fast.applications.averages import Averages
from gangealing_fast.applications.looks import Look
from gangealing_fast.applications.naming import result_name
from gangealing_fast.applications.placed import placed_look
from gangealing_fast.applications.squares import to_square
from gangealing_fast.congealing.config import CongealConfig
from gangealing_fast.congealing.folder import FILE, VERSION, SavedSet, fingerprint, save_set
from gangealing_fast.congealing.methods import Made, congeal_by
from gangealing_fast.congealing.placing import own_resolution, resized
from gangealing_fast.congealing.records import Congealed, Registered
from gangealing_fast.congealing.report import Shown, write_set_report
from gangealing_fast.congealing.stages import Stages
from gangealing_fast.data.originals import Masks, Originals, Reduced
from gangealing_fast.data.pictures import skipped_summary, to_float
from gangealing_fast.data.sources import others_summary
from gangealing_fast.models.layers import resize_to
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.runtime.setup import set_threads
from gangealing_fast.runtime.side_by_side import side_by_side
from gangealing_fast.runtime.text import printable
from gangealing_fast.storage.claims import plain, results_folder
from gangealing_fast.storage.files import JsonLines, save_picture

COMMAND = "congeal"
WRITES = r"(outlier-)?[0-9]{6,}-.*\.png|(template(-[0-9]+)?|average)\.png|warps\.jsonl|set\.safetensors|report\.html"
LARGEST = 2048
"""Most pixels a side of an aligned picture, if no --resolution is given."""
FEWEST = 3
MOST, TOGETHER = 16, 32_000_000
"""Pictures that are written at once, and pixels of their squares together; a larger one is written by itself."""
# Options that change nothing of what the stages find.
_FREE = {"out", "data", "threads", "resolution", "pictures"}


class Bars:
    """A progress bar for each stage, with the time that it still takes."""

    def __init__(self) -> None:
        self._stage, self._bar = "", tqdm(disable=True)

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage != self._stage:
            self.close()
            self._stage, self._bar = stage, tqdm(total=total, desc=stage)
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        self._bar.close()


def run(config: CongealConfig) -> None:
    """Align a set. Raises UserError for a user's mistakes; what finished stages found stays for the next call."""
    set_threads(config.threads)
    originals = Originals(config.data, config.limit)
    masks = None if config.masks is None else Masks(config.masks)
    with results_folder(config.out, COMMAND, config, WRITES, pictures={"--data": config.data, "--masks": config.masks}) as folder:
        bars = Bars()
        pictures = Reduced(originals, config.read, masks=masks, progress=lambda done, total: bars("read", done, total))
        bars.close()
        _say_what_was_read(config, pictures, originals)
        options = {name: value for name, value in plain(config).items() if name not in _FREE} | {"version": VERSION}
        stages = Stages(config.out, options, list(zip(pictures.names, pictures.marks, strict=True)))
        made = congeal_by(config, pictures, progress=bars, keep=stages)
        bars.close()
        _write(config, folder, originals, pictures, _of_originals(made, pictures))
        stages.remove()


def _say_what_was_read(config: CongealConfig, pictures: Reduced, originals: Originals) -> None:
    masked = f", {len(pictures.masked)} with a mask" if config.masks is not None else ""
    print(f"{len(pictures)} pictures in {printable(config.data)}{masked}")
    if pictures.skipped:
        print(skipped_summary(pictures.skipped))
    if originals.others:
        print(others_summary(originals.others))
    if len(pictures) < FEWEST:
        raise UserError(
            f"{config.data} has {len(pictures)} pictures that can be read, but at least {FEWEST} are aligned jointly; add more"
        )
    if config.masks is not None and not pictures.masked:
        raise UserError(f"--masks {config.masks} has no mask for any picture: a mask has the name of its picture, with any ending")


def _of_originals(made: Made, pictures: Reduced) -> Made:
    """What was found of reduced pictures, of the pictures themselves."""
    found = made.found
    rows = []
    for k, size in enumerate(pictures.sizes):
        height, width = pictures[k].shape[1:]
        rows.append(resized(found.matrix[k], (width, height), size))
    matrix = torch.stack(rows)
    return dataclasses.replace(made, found=dataclasses.replace(found, matrix=matrix))


def _write(config: CongealConfig, folder: Path, originals: Originals, pictures: Reduced, made: Made) -> None:
    """Aligned pictures, averages, warps.jsonl and report.html, and then the set."""
    found, averages, shown, marks = made.found, Averages(), Shown(made.found), []
    side = found.template.shape[-1]
    one = partial(_write_one, config, folder, originals, pictures, found, shown)
    with JsonLines(folder / "warps.jsonl") as warps, tqdm(total=len(pictures), unit="picture", desc="write") as progress:
        for part in _together(pictures.sizes):
            for written in side_by_side(one, part):
                marks.append(written.mark)
                # In the order of the pictures, so that sums are the same on any number of threads.
                if not bool(written.line["outlier"]):
                    averages.add(written.before, written.look)
                warps.append(written.line)
                progress.update()
    averages.write(folder, side)
    saved = SavedSet(
        found,
        tuple(pictures.names),
        torch.tensor(pictures.sizes),
        tuple(marks),
        config.method,
        made.state,
        str(config.data.resolve()),
        made.settings,
    )
    save_set(folder / FILE, saved)
    write_set_report(folder, config, found, pictures.names, shown, averages.pairs(side), made.matches)
    _say_what_was_found(found, pictures.names, config.out)


class _Written(NamedTuple):
    """What is known of a picture that was written. before, look: its square and it on the template, at the template's side."""

    mark: str
    line: dict[str, object]
    before: Tensor
    look: Look


def _write_one(
    config: CongealConfig, folder: Path, originals: Originals, pictures: Reduced, found: Congealed, shown: Shown, k: int
) -> _Written:
    """Align picture k at its own resolution and write it."""
    name, side = pictures.names[k], found.template.shape[-1]
    original = originals.read(name)
    mark = fingerprint(original)
    square = to_square(to_float(original)[None], "border")
    row = _row(found, k)
    look = placed_look(row, square, side, padding_mode="border")
    shown.add(k, square.images, look.alignment.image)
    line = _line(found, k, name, pictures.sizes[k])
    if config.pictures:
        line["file"] = _file(k, name, outlier=bool(found.outlier[k]))
        resolution = config.resolution or min(LARGEST, own_resolution(found.matrix[k], side))
        aligned = placed_look(row, square, side, padding_mode="border", output_resolution=resolution)
        save_picture(folder / str(line["file"]), aligned.alignment.image[0])
    return _Written(mark, line, resize_to(square.images, side), look)


def _together(sizes: Sequence[tuple[int, int]]) -> Iterator[list[int]]:
    """Numbers of pictures of these (width, height) that are written at once: a few, so that memory stays."""
    part: list[int] = []
    pixels = 0
    for number, size in enumerate(sizes):
        own = max(size) ** 2
        if part and (pixels + own > TOGETHER or len(part) == MOST):
            yield part
            part, pixels = [], 0
        part.append(number)
        pixels += own
    if part:
        yield part


def _row(found: Congealed, k: int) -> Registered:
    row = slice(k, k + 1)
    return Registered(found.matrix[row], found.flow[row], found.mirrored[row], found.cluster[row], found.confidence[row])


def _file(number: int, name: str, *, outlier: bool) -> str:
    return ("outlier-" if outlier else "") + result_name(number, name)


def _line(found: Congealed, k: int, name: str, size: tuple[int, int]) -> dict[str, object]:
    return {
        "picture": name,
        "file": None,
        "width": size[0],
        "height": size[1],
        "matrix": found.matrix[k].flatten().tolist(),
        "mirrored": bool(found.mirrored[k]),
        "cluster": int(found.cluster[k]),
        "confidence": round(float(found.confidence[k]), 4),
        "outlier": bool(found.outlier[k]),
    }


def _say_what_was_found(found: Congealed, names: list[str], folder: Path) -> None:
    outliers = [names[k] for k in found.outlier.nonzero().flatten().tolist()]
    mirrored = int((found.mirrored & ~found.outlier).sum())
    counts = [int((found.cluster[~found.outlier] == k).sum()) for k in range(len(found.template))]
    if len(counts) > 1:
        print("; ".join(f"cluster {k}: {count} pictures" for k, count in enumerate(counts)))
    if mirrored:
        print(f"{mirrored} pictures were mirrored")
    if outliers:
        named = ", ".join(printable(name) for name in outliers[:10]) + (", ..." if len(outliers) > 10 else "")
        are = "pictures do" if len(outliers) > 1 else "picture does"
        print(f"{len(outliers)} {are} not belong to the others and were kept out of the template: {named}")
    print(
        f"{len(names) - len(outliers)} pictures were aligned; mean confidence {float(found.confidence[~found.outlier].mean()):.2f}"
    )
