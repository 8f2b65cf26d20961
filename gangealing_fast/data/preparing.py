# SPDX-License-Identifier: Apache-2.0
"""What `python -m gangealing_fast.prepare` does: decode, cut, resize, pack."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import IO

from tqdm import tqdm

from gangealing_fast.data.config import PrepareConfig
from gangealing_fast.data.entries import Listing
from gangealing_fast.data.material import open_material, readable, shape_of
from gangealing_fast.data.packing import Packer, safe_path
from gangealing_fast.data.pictures import skipped_summary
from gangealing_fast.data.preparing_shards import prepare_shards
from gangealing_fast.data.sources import others_summary
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.runtime.text import printable
from gangealing_fast.storage.claims import results_file
from gangealing_fast.storage.files import atomic_write, read_json, write_json

COMMAND = "prepare"


def _pack(file: IO[bytes], pictures: Iterable[tuple[str, bytes]], file_format: str) -> int:
    """Write encoded pictures as members of a tar, the same bytes in every run; returns how many."""
    packer = Packer(file)
    for name, content in pictures:
        path = safe_path(name)
        member = path.with_suffix(f".{file_format}").as_posix()
        if member in packer.taken:  # a.png beside a.jpg
            member = f"{path.as_posix()}.{file_format}"
        while member in packer.taken:  # shards that repeat a name
            member = f"{PurePosixPath(member).with_suffix('')}_{len(packer.taken)}.{file_format}"
        packer.taken.add(member)
        packer.add(member, content)
    packer.close()
    return len(packer.taken)


def run(config: PrepareConfig) -> None:
    """Do what the command does.

    Raises:
        UserError: the source has no usable picture, the output exists or cannot be written, an option is out of range.
    """
    if config.shard is not None:
        prepare_shards(config)
        return
    if config.out.suffix != ".tar":
        raise UserError(f"the output {config.out} must end in .tar; for a folder of tars give --shard, the pictures in each")
    with results_file(config.out, COMMAND, config, overwrite=config.overwrite, inputs=[("--source", config.source)]):
        _check_report(config.out.with_suffix(".json"))
        material = open_material(config)
        if config.out.exists() and any(config.out.samefile(tar) for tar in material.archives):
            raise UserError(f"--out {config.out} is one of the tars that are read; choose another --out")
        skipped = material.listing.skipped
        pictures = tqdm(material.encoded(), total=material.count, unit="picture", desc=COMMAND, disable=None)
        with atomic_write(config.out) as file:
            count = _pack(file, readable(pictures, skipped), config.format)
            if not count:
                raise UserError(f"none of the pictures in {config.source} can be read: {skipped_summary(skipped)}")
        _report(config, count, material.listing)


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
    shape = shape_of(config)
    megabytes = config.out.stat().st_size / 1e6
    print(f"{printable(config.out)}: {count} picture{'s' * (count != 1)} {shape}, {megabytes:.1f} MB")
    left_out = [skipped_summary(found.skipped)] if found.skipped else []
    for line in left_out + ([others_summary(found.others)] if found.others else []):
        print(f"{line} (all in {printable(report)})")
