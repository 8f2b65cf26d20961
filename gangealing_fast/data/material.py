# SPDX-License-Identifier: Apache-2.0
"""What `prepare` reads, whatever it is: pictures in a fixed order, each made to its size and encoded in threads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy
from PIL import Image

from gangealing_fast.data.config import PrepareConfig
from gangealing_fast.data.decoding import decode, fitted, formats
from gangealing_fast.data.entries import Entry, Listing
from gangealing_fast.data.frames import read_frames
from gangealing_fast.data.mnist import is_idx_name
from gangealing_fast.data.pictures import mapped, open_pictures, read_or_reason
from gangealing_fast.data.sources import list_entries
from gangealing_fast.data.video import is_video
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.storage.files import picture_bytes

QUALITY = 95
_AHEAD = 8  # encoded pictures for each thread


class Encoded(NamedTuple):
    """A picture's name, and its encoded file or the reason why there is none."""

    name: str
    content: bytes | str


@dataclass
class Material:
    """listing: what there is. count: how many pictures, None if only decoding tells (a video). begin: jobs from a number on."""

    listing: Listing
    count: int | None
    begin: Callable[[int], Iterator[tuple[str, Callable[[], numpy.ndarray]]]]
    config: PrepareConfig

    @property
    def archives(self) -> set[Path]:
        """The files that hold several pictures."""
        return {entry.path for entry in self.listing.entries if entry.size is not None}

    def encoded(self, first: int = 0) -> Iterator[Encoded]:
        """The pictures from number `first` on, in order."""

        def one(job: tuple[str, Callable[[], numpy.ndarray]]) -> Encoded:
            name, read = job
            return Encoded(name, read_or_reason(lambda: picture_bytes(read(), file_format=self.config.format, quality=QUALITY)))

        formats()  # before several threads need them
        whole = self.config.pad in ("shorter-side", "none")
        ahead = self.config.workers * (1 if whole else _AHEAD)
        return mapped(one, self.begin(first), ahead=ahead, workers=self.config.workers)


def readable(pictures: Iterable[Encoded], skipped: list[tuple[str, str]]) -> Iterator[tuple[str, bytes]]:
    """Those that have a file; the others are entered into `skipped`."""
    for name, content in pictures:
        if isinstance(content, str):
            skipped.append((name, content))
        else:
            yield name, content


def shape_of(config: PrepareConfig) -> str:
    """What the pictures are like that the command writes."""
    shapes = {"shorter-side": f"with a shorter side of {config.size}", "none": "as large as they were"}
    return shapes.get(config.pad, f"of {config.size}x{config.size}")


def open_material(config: PrepareConfig) -> Material:
    """Raises UserError for a source without pictures, and for options that do not fit it."""
    if config.source.is_file() and is_idx_name(config.source):
        return _digits(config)
    if config.label is not None:
        raise UserError(f"{config.source} has no labels, only MNIST images files have; leave --label out")
    if is_video(config.source):
        return _video(config)
    if config.every != 1:
        raise UserError(f"{config.source} is no video; leave --every {config.every} out")
    found = list_entries(config.source)
    found.entries = found.entries[: config.limit]

    def reader(entry: Entry) -> Callable[[], numpy.ndarray]:
        return lambda: decode(entry.read(), config.size, config.pad)

    return Material(
        found,
        len(found.entries),
        lambda first: ((entry.name, reader(entry)) for entry in islice(found.entries, first, None)),
        config,
    )


def _digits(config: PrepareConfig) -> Material:
    pad = config.pad
    if pad == "shorter-side" or pad == "none":
        raise UserError(f"{config.source} holds pictures of one size already; leave --pad {pad} out")
    pictures = open_pictures(config.source, size=config.size, pad=pad, limit=config.limit, label=config.label)

    def reader(index: int) -> Callable[[], numpy.ndarray]:
        return lambda: pictures.batch([index])[0].permute(1, 2, 0).numpy()

    def begin(first: int) -> Iterator[tuple[str, Callable[[], numpy.ndarray]]]:
        for index, name in islice(enumerate(pictures.names), first, None):
            yield f"{name.rsplit('#')[-1].zfill(5)}.png", reader(index)

    return Material(Listing(), len(pictures), begin, config)


def _video(config: PrepareConfig) -> Material:
    def reader(picture: Image.Image) -> Callable[[], numpy.ndarray]:
        return lambda: fitted(picture, config.size, config.pad)

    def begin(first: int) -> Iterator[tuple[str, Callable[[], numpy.ndarray]]]:
        frames = read_frames(config.source, every=config.every, first=first)
        left = None if config.limit is None else max(0, config.limit - first)
        for number, picture in islice(frames, left):
            yield f"{config.source.stem}-{number:06d}.png", reader(picture)

    return Material(Listing(), None, begin, config)
