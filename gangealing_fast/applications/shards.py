# SPDX-License-Identifier: Apache-2.0
"""Aligning a collection shard by shard: what one process does for one shard, and what is made of all of them at the end.

A shard is aligned by one process from its first picture to its last. So its bytes do not depend on how many processes there are.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from gangealing_fast.applications.aligner import Aligner, Look
from gangealing_fast.applications.averages import Averages
from gangealing_fast.applications.choosing import aligner_of
from gangealing_fast.applications.config import AlignConfig
from gangealing_fast.applications.filters import LOW_SCORE, Filters, best
from gangealing_fast.applications.sampling import (
    QUALITY,
    Seeing,
    batches,
    before_of,
    flow_bytes,
    lines_of,
    look_at,
    rows_of,
    scores_of,
    seeing_of,
    sights,
)
from gangealing_fast.applications.units import Units
from gangealing_fast.data.entries import Entry
from gangealing_fast.data.packing import Packer
from gangealing_fast.data.pictures import mapped, skipped_summary
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.runtime.text import printable
from gangealing_fast.storage.files import atomic_write, json_bytes, picture_bytes, read_bytes, read_json, write_bytes, write_json
from gangealing_fast.storage.shards import ShardFolder

SUMMARY = "summary.json"
AVERAGE_SIDE = 256
"""Side of the averages, at most."""
_AHEAD = 64 << 20  # bytes of aligned pictures that wait to be encoded


class _Finished(NamedTuple):
    """An aligned picture: its line, its pixels and the flow if that is wanted."""

    line: dict[str, Any]
    image: Tensor
    flow: Tensor | None


def worker_of(config: AlignConfig, *, say: Callable[[str], None] = print) -> Worker:
    """A worker with the aligner that the options name. Raises UserError for a user's mistakes."""
    aligner = aligner_of(config.checkpoint, config, say=say)
    return Worker(config, aligner, seeing_of(config, aligner), Filters.of(config, aligner))


class Worker:
    """Does one shard at a time, in any process. `stages` are what has to be done with every shard, one after the other."""

    def __init__(self, config: AlignConfig, aligner: Aligner, seeing: Seeing, filters: Filters) -> None:
        self.config, self.aligner, self.seeing, self.filters = config, aligner, seeing, filters
        self.folder = ShardFolder(config.out)
        self.units = Units(config.data, config.shard, config.limit)

    @property
    def stages(self) -> tuple[str, ...]:
        return ("align",) if self.config.retain == 1 else ("score", "align")

    def is_done(self, stage: str, index: int) -> bool:
        """Whether this was done with a shard, by whomever."""
        if stage == "align":
            return self.folder.is_done(index)
        return self._scores(index).exists() or self.folder.is_done(index)

    def do(self, stage: str, index: int) -> None:
        """Do it. What was done before is done anew, to the same bytes."""
        if stage == "align":
            self._align(index)
        else:
            entries, _ = self.units.read(index)
            found = sights(entries, self.seeing, small_alone=True)
            write_bytes(self._scores(index), json_bytes(scores_of(self.aligner, found, self.seeing, self.config.batch)))

    def _scores(self, index: int) -> Path:
        return self.folder.path / f".{index:06d}.scores"

    def _sums(self, index: int) -> Path:
        return self.folder.path / f".{index:06d}.npz"

    @cached_property
    def _kept(self) -> list[frozenset[int]] | None:
        """Of each shard the numbers of the pictures whose flow scores are high enough; None if all are kept."""
        if self.config.retain == 1:
            return None
        return best((read_json(self._scores(index)) for index in range(len(self.units))), self.config.retain)

    def _align(self, index: int) -> None:
        entries, unread = self.units.read(index)
        skipped, left_out, averages = list(unread), list[tuple[str, str]](), Averages()
        finished = self._finished(index, entries, skipped, left_out, averages)
        ahead = max(1, _AHEAD // (12 * self.seeing.resolution**2))
        with atomic_write(self.folder.tar(index)) as file:
            packer = Packer(file)
            for name, files in mapped(self._encoded, finished, ahead=ahead):
                packer.add_sample(name, files)
            packer.close()
        if not packer.taken:
            self.folder.tar(index).unlink()
        buffer = io.BytesIO()
        numpy.savez(buffer, allow_pickle=False, **averages.content())
        write_bytes(self._sums(index), buffer.getvalue())
        lists = {"skipped": skipped, "left_out": left_out}
        record = {key: [{"name": name, "reason": reason} for name, reason in found] for key, found in lists.items()}
        self.folder.finish(index, {"pictures": len(packer.taken)} | record)

    def _finished(
        self,
        index: int,
        entries: list[Entry],
        skipped: list[tuple[str, str]],
        left_out: list[tuple[str, str]],
        averages: Averages,
    ) -> Iterator[_Finished]:
        """The aligned pictures of a shard that are kept, in order."""
        kept = None if self._kept is None else self._kept[index]
        for chunk in batches(sights(entries, self.seeing), self.seeing.batch(self.config.batch), skipped):
            wanted = [item for item in chunk if kept is None or item[0] in kept]
            left_out += [(name, LOW_SCORE) for number, name, _ in chunk if kept is not None and number not in kept]
            if not wanted:
                continue
            views = [view for _, _, view in wanted]
            only = self.config.similarity_only
            images, look = look_at(self.aligner, views, self.seeing, similarity_only=only)
            lines = lines_of([name for _, name, _ in wanted], views, images, look, decided=self.aligner.decides)
            reasons = [self.filters.reason(line) for line in lines]
            left_out += [(line["picture"], reason) for line, reason in zip(lines, reasons, strict=True) if reason is not None]
            rows = [row for row, reason in enumerate(reasons) if reason is None]
            if rows:
                self._count(averages, before_of(images, look, self.seeing)[rows], rows_of(look, rows))
            flow = look.alignment.residual_flow if self.config.flows else None
            for row in rows:
                yield _Finished(lines[row], look.alignment.image[row], None if flow is None else flow[row])

    def _count(self, averages: Averages, before: Tensor, look: Look) -> None:
        """Into averages of a size that does not grow with the pictures'."""
        image, side = look.alignment.image, min(AVERAGE_SIDE, self.seeing.resolution)
        small = [
            x if x.shape[3] == side else F.interpolate(x, (side, side), mode="bilinear", antialias=True) for x in (before, image)
        ]
        averages.add(small[0], look._replace(alignment=look.alignment._replace(image=small[1])))

    def _encoded(self, finished: _Finished) -> tuple[str, dict[str, bytes]]:
        kind = self.config.format
        files = {kind: picture_bytes(finished.image, file_format=kind, quality=QUALITY), "json": json_bytes(finished.line)}
        if finished.flow is not None:
            files["npy"] = flow_bytes(finished.flow)
        return finished.line["picture"], files

    # ---- all shards

    @property
    def is_complete(self) -> bool:
        return (self.folder.path / SUMMARY).exists()

    def finish(self) -> None:
        """Averages and summary.json of all shards. Raises UserError if not one picture is there."""
        averages, count, totals = Averages(), len(self.units), {"pictures": 0, "skipped": 0, "left_out": 0}
        skipped: list[tuple[str, str]] = []
        for index, record in enumerate(tqdm(self.folder.records(count), total=count, unit="shard", desc="averages")):
            totals["pictures"] += record["pictures"]
            totals["left_out"] += len(record["left_out"])
            totals["skipped"] += len(record["skipped"])
            skipped += [(entry["name"], entry["reason"]) for entry in record["skipped"][: max(0, 5 - len(skipped))]]
            averages.add_content(numpy.load(io.BytesIO(read_bytes(self._sums(index))), allow_pickle=False))
        if not totals["pictures"]:
            raise UserError(
                f"none of the pictures in {self.config.data} are left: {totals['skipped']} cannot be read, {totals['left_out']} "
                "were left out by --retain, --out-of-bounds or --effective-resolution"
            )
        averages.write(self.folder.path, min(AVERAGE_SIDE, self.seeing.resolution))
        clusters = {str(k): number for k, number in sorted(averages.members.items())}
        write_json(self.folder.path / SUMMARY, {"shards": count} | totals | {"clusters": clusters})
        for index in range(count):
            self._sums(index).unlink(missing_ok=True)
            self._scores(index).unlink(missing_ok=True)
        if skipped:
            more = f", and {totals['skipped'] - 5} more" if totals["skipped"] > 5 else ""
            print(f"{skipped_summary(skipped).partition(': ')[2]}{more} skipped (all in NNNNNN.json of each shard)")

    def say(self) -> None:
        """What there is, in sentences."""
        about, where = read_json(self.folder.path / SUMMARY), printable(self.config.out)
        print(
            f"{about['pictures']} aligned pictures in {about['shards']} shards are in {where}, with template*.png and average.png"
        )
        if about["left_out"] or about["skipped"]:
            print(
                f"{about['skipped']} were skipped and {about['left_out']} left out: NNNNNN.json beside each tar says which and why"
            )
        print(f"next: train on them with --data {where}, or read them with webdataset; every picture has its matrix in a .json")
