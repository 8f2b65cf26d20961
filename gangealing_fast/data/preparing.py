# SPDX-License-Identifier: Apache-2.0
"""What `python -m gangealing_fast.prepare` does: decode, cut, resize, pack."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from typing import IO

import numpy
from tqdm import tqdm

from gangealing_fast.data.config import PrepareConfig
from gangealing_fast.data.mnist import is_idx_name
from gangealing_fast.data.pictures import decode_entries, open_pictures, skipped_summary
from gangealing_fast.data.sources import Entry, list_entries
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.storage.files import atomic_write, make_folder, picture_bytes, write_json


def _pack(file: IO[bytes], pictures: Iterable[tuple[str, numpy.ndarray]], file_format: str) -> int:
    """Write pictures as members of a tar, the same bytes in every run; returns how many."""
    taken: set[str] = set()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, pixels in pictures:
            path = PurePosixPath(*[part for part in PurePosixPath(name).parts if part not in ("/", "..", ".")])
            member = path.with_suffix(f".{file_format}").as_posix()
            if member in taken:  # a.png beside a.jpg
                member = f"{path.as_posix()}.{file_format}"
            while member in taken:  # shards that repeat a name
                member = f"{PurePosixPath(member).with_suffix('')}_{len(taken)}.{file_format}"
            taken.add(member)
            content = picture_bytes(pixels, file_format=file_format, quality=95)
            header = tarfile.TarInfo(member)
            header.size, header.mode = len(content), 0o644
            archive.addfile(header, io.BytesIO(content))
    return len(taken)


def _decode(entries: list[Entry], config: PrepareConfig, skipped: list[tuple[str, str]]) -> Iterator[tuple[str, numpy.ndarray]]:
    results = decode_entries(entries, config.size, config.crop)
    for entry, value in tqdm(results, total=len(entries), unit="picture", disable=None):
        if isinstance(value, str):
            skipped.append((entry.name, value))
        else:
            yield entry.name, value


def _digits(config: PrepareConfig) -> Iterator[tuple[str, numpy.ndarray]]:
    pictures = open_pictures(config.source, size=config.size, crop=config.crop, limit=config.limit, label=config.label)
    for index, name in enumerate(pictures.names):
        yield f"{name.rsplit('#')[-1].zfill(5)}.png", pictures.batch([index])[0].permute(1, 2, 0).numpy()


def run(config: PrepareConfig) -> None:
    """Do what the command does.

    Raises:
        UserError: the source has no usable picture, the output exists or cannot be written, an option is out of range.
    """
    if config.size < 1 or (config.limit is not None and config.limit < 1):
        raise UserError(f"--size and --limit must be positive, got {config.size} and {config.limit}")
    if config.out.suffix != ".tar":
        raise UserError(f"the output {config.out} must end in .tar")
    if config.out.exists() and not config.overwrite:
        raise UserError(f"{config.out} exists already; give another name, or --overwrite to replace it")
    skipped: list[tuple[str, str]] = []
    if config.source.is_file() and is_idx_name(config.source):
        pictures = _digits(config)
    elif config.label is not None:
        raise UserError(f"{config.source} has no labels, only MNIST images files have; leave --label out")
    else:
        pictures = _decode(list_entries(config.source)[: config.limit], config, skipped)
    make_folder(config.out.parent)
    with atomic_write(config.out) as file:
        count = _pack(file, pictures, config.format)
        if not count:
            raise UserError(f"none of the pictures in {config.source} can be read: {skipped_summary(skipped)}")
    report = config.out.with_suffix(".json")
    write_json(
        report,
        {
            "source": str(config.source),
            "size": config.size,
            "crop": config.crop,
            "pictures": count,
            "skipped": [{"name": name, "reason": reason} for name, reason in skipped],
        },
    )
    print(
        f"{config.out}: {count} picture{'s' * (count != 1)} of {config.size}x{config.size}, "
        f"{config.out.stat().st_size / 1e6:.1f} MB"
    )
    if skipped:
        print(f"{skipped_summary(skipped)} (all in {report})")
