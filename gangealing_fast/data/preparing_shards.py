# SPDX-License-Identifier: Apache-2.0
"""What `python -m gangealing_fast.prepare --shard N` does: a folder of tars, made tar by tar, that goes on if it was stopped."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from tqdm import tqdm

from gangealing_fast.data.config import PrepareConfig
from gangealing_fast.data.material import Encoded, Material, open_material, readable, shape_of
from gangealing_fast.data.packing import Packer
from gangealing_fast.data.pictures import skipped_summary
from gangealing_fast.data.sources import others_summary
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.runtime.text import printable
from gangealing_fast.storage.files import atomic_write, write_json
from gangealing_fast.storage.runs import open_run
from gangealing_fast.storage.shards import ShardFolder

COMMAND = "prepare"
REPORT = "report.json"


def prepare_shards(config: PrepareConfig) -> None:
    """Make what is not there yet. Raises UserError for a user's mistakes."""
    assert config.shard is not None
    if config.out.suffix == ".tar":
        raise UserError(f"--shard {config.shard} writes a folder of tars: give --out a name without .tar, not {config.out}")
    if config.overwrite:
        raise UserError(
            "--overwrite is for one tar: a folder of shards goes on if it was stopped; choose another --out for another"
        )
    material = open_material(config)
    free = {"out", "workers"}
    with open_run(config.out, COMMAND, config, pictures={"--source": config.source}, free=free) as resumed:
        folder = ShardFolder(config.out)
        names = [entry.name for entry in material.listing.entries]
        folder.check_listing(f"--source {config.source}", names)
        first = folder.leading()
        if resumed:
            print(f"{printable(config.out)}: goes on behind {first} finished shards")
        with tqdm(total=material.count, initial=first * config.shard, unit="picture", desc=COMMAND, disable=None) as progress:
            pictures = _counted(material.encoded(first * config.shard), progress)
            count = _write(folder, first, pictures, config.shard, config.format)
        _report(config, folder, count, material)


def _counted(pictures: Iterator[Encoded], progress: tqdm) -> Iterator[Encoded]:
    for picture in pictures:
        yield picture
        progress.update()


def _write(folder: ShardFolder, first: int, pictures: Iterator[Encoded], shard: int, file_format: str) -> int:
    """Write shards from number `first` on until there are no more pictures; returns how many there are then."""
    index = first
    while (head := next(pictures, None)) is not None:
        skipped: list[tuple[str, str]] = []
        chunk = readable(_behind(head, islice(pictures, shard - 1)), skipped)
        with atomic_write(folder.tar(index)) as file:
            packer = Packer(file)
            for name, content in chunk:
                packer.add_sample(name, {file_format: content})
            packer.close()
        if not packer.taken:
            folder.tar(index).unlink()
        folder.finish(index, {"pictures": len(packer.taken), "skipped": [{"name": n, "reason": r} for n, r in skipped]})
        index += 1
    return index


def _behind(head: Encoded, rest: Iterator[Encoded]) -> Iterator[Encoded]:
    yield head
    yield from rest


def _report(config: PrepareConfig, folder: ShardFolder, count: int, material: Material) -> None:
    """Write report.json and say what became of the pictures."""
    found = material.listing
    done, skipped = 0, list(found.skipped)
    for record in folder.records(count):
        done += record["pictures"]
        skipped += [(entry["name"], entry["reason"]) for entry in record.get("skipped", [])]
    if not done:
        raise UserError(f"none of the pictures in {config.source} can be read: {skipped_summary(skipped)}")
    about = {"command": COMMAND, "source": str(config.source), "size": config.size, "pad": config.pad, "pictures": done}
    listed = [{"name": name, "reason": reason} for name, reason in skipped]
    write_json(folder.path / REPORT, about | {"shards": count, "skipped": listed, "others": found.others})
    print(f"{printable(config.out)}: {done} picture{'s' * (done != 1)} {shape_of(config)} in {count} shard{'s' * (count != 1)}")
    for line in ([skipped_summary(skipped)] if skipped else []) + ([others_summary(found.others)] if found.others else []):
        print(f"{line} (all in {printable(config.out / REPORT)})")
