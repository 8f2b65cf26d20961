# SPDX-License-Identifier: Apache-2.0
"""`python -m gangealing_fast.prepare`: any folder, tar or MNIST file becomes one tar of equally large square pictures.

Preparing once saves decoding and resizing large photographs at every start, and finds the unreadable ones beforehand.
The tar can be given wherever pictures are asked for; beside it, `<name>.json` lists what was skipped and why.
"""

from __future__ import annotations

import dataclasses
import io
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Annotated, Literal

from gangealing_fast.commands import run_command
from gangealing_fast.errors import UserError
from gangealing_fast.files import atomic_write, make_folder, picture_bytes, write_json

if TYPE_CHECKING:
    import numpy
    import tyro

    from gangealing_fast.data.sources import Entry
else:
    import tyro


@dataclasses.dataclass
class Options:
    """Resize pictures to squares and pack them into one tar."""

    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """Folder of pictures (with its subfolders), .tar, folder of .tar shards, or MNIST images file."""
    output: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUTPUT.tar")]
    """The .tar to write."""
    size: int = 256
    """Side length in pixels."""
    crop: Literal["center", "pad"] = "center"
    """Cut the centred square, or keep everything and repeat the border pixels."""
    limit: int | None = None
    """Use the first so many pictures only."""
    label: int | None = None
    """Use this class only (MNIST files)."""
    format: Literal["png", "jpg"] = "png"
    """png keeps every pixel; jpg (quality 95) is about five times smaller."""
    overwrite: bool = False
    """Replace an output that exists."""


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


def _decode(
    entries: list[Entry], options: Options, skipped: list[tuple[str, str]]
) -> Iterator[tuple[str, numpy.ndarray]]:
    from tqdm import tqdm

    from gangealing_fast.data.pictures import decode_entries

    results = decode_entries(entries, options.size, options.crop)
    for entry, value in tqdm(results, total=len(entries), unit="picture", disable=None):
        if isinstance(value, str):
            skipped.append((entry.name, value))
        else:
            yield entry.name, value


def _digits(options: Options) -> Iterator[tuple[str, numpy.ndarray]]:
    from gangealing_fast.data.pictures import open_pictures

    pictures = open_pictures(
        options.source, size=options.size, crop=options.crop, limit=options.limit, label=options.label
    )
    for index, name in enumerate(pictures.names):
        yield f"{name.rsplit('#')[-1].zfill(5)}.png", pictures.batch([index])[0].permute(1, 2, 0).numpy()


def prepare(options: Options) -> None:
    """Do what the command does.

    Raises:
        UserError: the source has no usable picture, the output exists or cannot be written, an option is out of range.
    """
    from gangealing_fast.data.mnist import is_idx_name
    from gangealing_fast.data.pictures import skipped_summary
    from gangealing_fast.data.sources import list_entries

    if options.size < 1 or (options.limit is not None and options.limit < 1):
        raise UserError(f"--size and --limit must be positive, got {options.size} and {options.limit}")
    if options.output.suffix != ".tar":
        raise UserError(f"the output {options.output} must end in .tar")
    if options.output.exists() and not options.overwrite:
        raise UserError(f"{options.output} exists already; give another name, or --overwrite to replace it")
    skipped: list[tuple[str, str]] = []
    if options.source.is_file() and is_idx_name(options.source):
        pictures = _digits(options)
    elif options.label is not None:
        raise UserError(f"{options.source} has no labels, only MNIST images files have; leave --label out")
    else:
        pictures = _decode(list_entries(options.source)[: options.limit], options, skipped)
    make_folder(options.output.parent)
    with atomic_write(options.output) as file:
        count = _pack(file, pictures, options.format)
        if not count:
            raise UserError(f"none of the pictures in {options.source} can be read: {skipped_summary(skipped)}")
    report = options.output.with_suffix(".json")
    write_json(
        report,
        {
            "source": str(options.source),
            "size": options.size,
            "crop": options.crop,
            "pictures": count,
            "skipped": [{"name": name, "reason": reason} for name, reason in skipped],
        },
    )
    print(
        f"{options.output}: {count} picture{'s' * (count != 1)} of {options.size}x{options.size}, "
        f"{options.output.stat().st_size / 1e6:.1f} MB"
    )
    if skipped:
        print(f"{skipped_summary(skipped)} (all in {report})")


def main() -> None:
    """The command line."""
    run_command(lambda: prepare(tyro.cli(Options, prog="python -m gangealing_fast.prepare")))


if __name__ == "__main__":
    main()
