# SPDX-License-Identifier: Apache-2.0
"""`open_keypoints`: a data set with key points, in whichever of the formats it is."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import torch

from gangealing_fast.data.keypoints.acsm import read_acsm
from gangealing_fast.data.keypoints.arrays import read_array
from gangealing_fast.data.keypoints.coco import read_coco
from gangealing_fast.data.keypoints.cub import is_cub, read_cub
from gangealing_fast.data.keypoints.mirrors import read_mirror
from gangealing_fast.data.keypoints.record import KeypointSet
from gangealing_fast.data.keypoints.spair import is_spair, read_spair
from gangealing_fast.data.keypoints.tables import read_table
from gangealing_fast.data.sources import Entry, list_entries
from gangealing_fast.data.tars import read_members
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.storage.files import read_bytes

ENDINGS = (".npy", ".csv", ".json")
NAME = "keypoints"


def open_keypoints(
    data: Path,
    *,
    keypoints: Path | None = None,
    split: str = "test",
    category: Sequence[str] = (),
    mirror: str | None = None,
    limit: int | None = None,
) -> KeypointSet:
    """The pictures in `data` that have key points.

    data: the folder of SPair-71k or CUB-200-2011, or any folder or tar of pictures. keypoints: a file .json (COCO), .csv, .npy or
    .mat (ACSM's) with the points; without it, the file keypoints.npy, .csv or .json among the pictures. split, category: of data
    sets that have them. mirror: see `mirrors.read_mirror`; otherwise it is what the format, or the points' names, say. limit: the
    first so many pictures. Raises UserError for a data set that is none of these, or has fewer than two pictures with points.
    """
    found = _open(data, keypoints, split, category)
    if mirror is not None:
        found = dataclasses.replace(found, mirror=read_mirror(mirror, found.points.shape[1]).expand(len(found), -1))
    if limit is not None:
        found = found.choose(torch.arange(min(limit, len(found))))
    if len(found) < 2 or not found.visible.any():
        raise UserError(f"{data} has {len(found)} picture{'s' * (len(found) != 1)} with key points, but two are needed; add more")
    return found


def _open(data: Path, keypoints: Path | None, split: str, category: Sequence[str]) -> KeypointSet:
    if keypoints is None and data.is_dir() and is_spair(data):
        if len(category) > 1:
            raise UserError("of SPair-71k one --category, or all without that option, can be evaluated; give one name")
        return read_spair(data, split, category[0] if category else None)
    if keypoints is None and data.is_dir() and is_cub(data):
        return read_cub(data, split, category)
    if keypoints is not None and keypoints.suffix.lower() == ".mat":
        return read_acsm(keypoints, data / "images" if is_cub(data) else data, category)
    listing = list_entries(data)
    file, content = _points_file(data, keypoints, listing.others)
    ending = file.suffix.lower()
    if ending == ".json":
        try:
            value = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{file} is not valid JSON ({error}); restore it") from None
        return read_coco(value, file, listing.entries, category[0] if category else None)
    return read_table(content, file, listing.entries) if ending == ".csv" else read_array(content, file, listing.entries)


def _points_file(data: Path, keypoints: Path | None, others: Sequence[str]) -> tuple[Path, bytes]:
    if keypoints is not None:
        if keypoints.suffix.lower() not in ENDINGS:
            raise UserError(f"--keypoints {keypoints} must be a file .json (COCO), .csv, .npy or .mat (ACSM's); give another one")
        return keypoints, read_bytes(keypoints)
    names = [name for name in others if PurePosixPath(name).stem == NAME and PurePosixPath(name).suffix.lower() in ENDINGS]
    if len(names) != 1:
        what = f"{len(names)} files with key points" if names else "no key points"
        raise UserError(f"{data} has {what}; give a file .json (COCO), .csv, .npy or .mat (ACSM's) with --keypoints")
    return Path(names[0]), _content(data, names[0])


def _content(data: Path, name: str) -> bytes:
    """The bytes of a file of a folder, a tar, or a tar in a folder."""
    if data.is_dir() and (data / name).is_file():
        return read_bytes(data / name)
    for tar in [data] if data.is_file() else sorted(data.glob("*.tar")):
        for member in read_members(tar)[0]:
            if member.name == name and member.reason is None and member.link is None:
                try:
                    return Entry(name, tar, member.offset, member.size).read()
                except (OSError, ValueError) as error:
                    raise UserError(f"{name} in {tar} cannot be read ({error}); make the tar again") from None
    raise UserError(f"{name} in {data} cannot be read; make it again")
