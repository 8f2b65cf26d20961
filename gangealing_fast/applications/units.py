# SPDX-License-Identifier: Apache-2.0
"""Into which shards a collection is divided: the tars of a folder as they are, or so many pictures each of anything else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from gangealing_fast.applications.config import AlignConfig
from gangealing_fast.data.entries import Entry, Listing, has_ending, is_hidden
from gangealing_fast.data.mnist import is_idx_name
from gangealing_fast.data.sources import list_entries, list_tar, shards_of
from gangealing_fast.runtime.errors import UserError


def _tars(path: Path) -> list[Path]:
    """The tars of a folder with neither pictures nor folders beside them."""
    shards = shards_of(path)
    if not shards:
        return []
    beside = [entry for entry in path.iterdir() if not is_hidden(entry.name) and entry.suffix != ".tar"]
    return [] if any(has_ending(entry.name) or entry.is_dir() for entry in beside) else shards


def wanted(config: AlignConfig) -> bool:
    """Whether tars are to be written instead of single pictures."""
    return bool(config.shard) or (config.shard is None and bool(_tars(config.data)))


class Units:
    """The shards of a collection, in order. Of a folder of tars only those are listed that are asked for.

    Raises UserError for a source without pictures.
    """

    def __init__(self, path: Path, shard: int | None, limit: int | None) -> None:
        self.path = path
        self._counts: list[int | None] = []
        self._listing = Listing()
        self._tars = _tars(path) if not shard else []
        self._shard = shard or 0
        if self._tars:
            self._counts = _cut(self._tars, limit)
            return
        if path.is_file() and is_idx_name(path):
            raise UserError(f"{path} is small enough for one folder; leave --shard out")
        self._listing = list_entries(path)
        self._listing.entries = self._listing.entries[:limit]

    def __len__(self) -> int:
        return len(self._counts) if self._tars else -(-len(self._listing.entries) // self._shard)

    def names(self) -> Iterator[str]:
        """Of all that is read: the tars with their sizes, or the pictures."""
        if self._tars:
            for tar, count in zip(self._tars, self._counts, strict=False):
                yield f"{tar.name} {tar.stat().st_size} {count}"
        else:
            yield from (entry.name for entry in self._listing.entries)

    def read(self, index: int) -> tuple[list[Entry], list[tuple[str, str]]]:
        """The pictures of a shard, and (name, reason) of those that cannot be read, as far as the listing tells."""
        if self._tars:
            found = list_tar(self._tars[index])
            return found.entries[: self._counts[index]], found.skipped
        first = index * self._shard
        return self._listing.entries[first : first + self._shard], self._listing.skipped if index == 0 else []


def _cut(tars: list[Path], limit: int | None) -> list[int | None]:
    """How many pictures of each tar are used, None for all; those behind the limit have no number."""
    if limit is None:
        return [None] * len(tars)
    counts: list[int | None] = []
    for tar in tars:
        if limit <= 0:
            break
        counts.append(min(limit, len(list_tar(tar).entries)))
        limit -= counts[-1] or 0
    return counts
