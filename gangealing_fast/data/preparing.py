# SPDX-License-Identifier: Apache-2.0
"""What `python -m gangealing_fast.prepare` does: decode, cut, resize, pack."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO

import numpy
from tqdm import tqdm

from gangealing_fast.data.config import PrepareConfig
from gangealing_fast.data.decoding import Square
from gangealing_fast.data.mnist import is_idx_name
from gangealing_fast.data.pictures import decode_entries, open_pictures, skipped_summary
from gangealing_fast.data.sources import Entry, Listing, list_entries, others_summary
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.runtime.text import printable
from gangealing_fast.storage.claims import results_file
from gangealing_fast.storage.files import atomic_write, picture_bytes, read_json, write_json

COMMAND = "prepare"


def _pack(file: IO[bytes], pictures: Iterable[tuple[str, numpy.ndarray]], file_format: str) -> int:
    """Write pictures as members of a tar, the same bytes in every run; returns how many."""
    taken: set[str] = set()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, pixels in pictures:
            parts = [part for part in PurePosixPath(name.replace("\0", "_")).parts if part not in ("/", "//", "..", ".")]
            path = PurePosixPath(*parts or ["picture"])
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
    results = decode_entries(entries, config.size, config.pad)
    for entry, value in tqdm(results, total=len(entries), unit="picture", disable=None):
        if isinstance(value, str):
            skipped.append((entry.name, value))
        else:
            yield entry.name, value


def _digits(config: PrepareConfig, pad: Square) -> Iterator[tuple[str, numpy.ndarray]]:
    pictures = open_pictures(config.source, size=config.size, pad=pad, limit=config.limit, label=config.label)
    for index, name in enumerate(pictures.names):
        yield f"{name.rsplit('#')[-1].zfill(5)}.png", pictures.batch([index])[0].permute(1, 2, 0).numpy()


def run(config: PrepareConfig) -> None:
    """Do what the command does.

    Raises:
        UserError: the source has no usable picture, the output exists or cannot be written, an option is out of range.
    """
    if config.out.suffix != ".tar":
        raise UserError(f"the output {config.out} must end in .tar")
    with results_file(config.out, COMMAND, config, overwrite=config.overwrite, inputs=[("--source", config.source)]):
        _check_report(config.out.with_suffix(".json"))
        found, pictures = _open(config)
        skipped = found.skipped
        with atomic_write(config.out) as file:
            count = _pack(file, pictures, config.format)
            if not count:
                raise UserError(f"none of the pictures in {config.source} can be read: {skipped_summary(skipped)}")
        _report(config, count, found)


def _open(config: PrepareConfig) -> tuple[Listing, Iterator[tuple[str, numpy.ndarray]]]:
    """What there is in the source, and its pictures; those that cannot be read are entered into the listing on the way."""
    if config.source.is_file() and is_idx_name(config.source):
        if config.pad == "shorter-side" or config.pad == "none":
            raise UserError(f"{config.source} holds pictures of one size already; leave --pad {config.pad} out")
        return Listing(), _digits(config, config.pad)
    if config.label is not None:
        raise UserError(f"{config.source} has no labels, only MNIST images files have; leave --label out")
    found = list_entries(config.source)
    if config.out.exists() and any(
        config.out.samefile(tar) for tar in {entry.path for entry in found.entries if entry.size is not None}
    ):
        raise UserError(f"--out {config.out} is one of the tars that are read; choose another --out")
    return found, _decode(found.entries[: config.limit], config, found.skipped)


def _check_report(path: Path) -> None:
    """Raise UserError for a file beside the tar that is not an earlier call's."""
    if not path.exists():
        return
    try:
        found = read_json(path)
    except UserError:
        found = None
    if not isinstance(found, dict) or not {"source", "pictures", "skipped"} <= found.keys():
        raise UserError(f"{path}, where what is left out is listed, holds something else; choose another --out or move that file")


def _report(config: PrepareConfig, count: int, found: Listing) -> None:
    """Write NAME.json and say what became of the pictures."""
    report = config.out.with_suffix(".json")
    about = {"command": COMMAND, "source": str(config.source), "size": config.size, "pad": config.pad, "pictures": count}
    skipped = [{"name": name, "reason": reason} for name, reason in found.skipped]
    write_json(report, about | {"skipped": skipped, "others": found.others})
    shapes = {"shorter-side": f"with a shorter side of {config.size}", "none": "as large as they were"}
    shape = shapes.get(config.pad, f"of {config.size}x{config.size}")
    megabytes = config.out.stat().st_size / 1e6
    print(f"{printable(config.out)}: {count} picture{'s' * (count != 1)} {shape}, {megabytes:.1f} MB")
    left_out = [skipped_summary(found.skipped)] if found.skipped else []
    for line in left_out + ([others_summary(found.others)] if found.others else []):
        print(f"{line} (all in {printable(report)})")
