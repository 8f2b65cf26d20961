# SPDX-License-Identifier: Apache-2.0
"""SPair-71k (arXiv 1908.10543) as it is downloaded: prescribed pairs of pictures of 18 categories, at most 30 points each.

SPair-71k/
    JPEGImages/CATEGORY/PICTURE.jpg
    PairAnnotation/{trn,val,test}/NUMBER-FIRST-SECOND:CATEGORY.json   src_imname, trg_imname, src_imsize, trg_imsize, src_bndbox,
                                                                      trg_bndbox, src_kps, trg_kps, kps_ids, category
    ImageAnnotation/CATEGORY/PICTURE.json                             kps: {"0": [x, y] or null, ...}; it may be missing
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gangealing_fast.data.keypoints.mirrors import SPAIR, from_pairs
from gangealing_fast.data.keypoints.record import KeypointSet
from gangealing_fast.data.sources import Entry
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.storage.files import read_json

POINTS = 30
SPLITS = {"train": "trn", "val": "val", "test": "test"}


@dataclass
class _Picture:
    """What is known of one picture; points by their number."""

    category: str
    file: str
    size: list[float]
    box: list[float]
    points: dict[int, list[float]] = field(default_factory=dict)


def is_spair(folder: Path) -> bool:
    """Whether a folder is SPair-71k's."""
    return (folder / "PairAnnotation").is_dir() and (folder / "JPEGImages").is_dir()


def read_spair(folder: Path, split: str = "test", category: str | None = None) -> KeypointSet:
    """The pictures and pairs of a split ("train", "val" or "test"), of one category or of all.

    Raises UserError for another category, a split without pairs, or a file that is not as above.
    """
    place = folder / "PairAnnotation" / SPLITS[split]
    files = sorted(place.glob("*.json")) if category is None else sorted(place.glob(f"*[:_-]{category}.json"))
    if not files:
        known = sorted({path.stem.rpartition(":")[2] for path in place.glob("*.json")})
        what = f"there are {', '.join(known)}" if known else "there are none at all: download SPair-71k again"
        raise UserError(f"{place} has no pairs of the category {category}: {what}")
    pictures: dict[str, _Picture] = {}
    pairs: list[tuple[str, str, list[int]]] = []
    for file in files:
        try:
            pairs.append(_add_pair(pictures, read_json(file)))
        except (KeyError, TypeError, ValueError, IndexError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{file} is no pair of SPair-71k ({error!r}); download the data set again") from None
    names = sorted(pictures)
    for name in names:
        _add_annotation(folder, pictures[name])
    return _assemble(folder, [pictures[name] for name in names], names, pairs)


def _add_pair(pictures: dict[str, _Picture], pair: dict[str, Any]) -> tuple[str, str, list[int]]:
    numbers = [int(number) for number in pair["kps_ids"]]
    if not all(0 <= number < POINTS for number in numbers):
        raise ValueError(f"points are numbered from 0 to {POINTS - 1}")
    names = []
    for side in ("src", "trg"):
        category, file = str(pair["category"]), str(pair[f"{side}_imname"])
        name = f"{category}/{file}"
        size, box = [float(x) for x in pair[f"{side}_imsize"][:2]], [float(x) for x in pair[f"{side}_bndbox"]]
        if len(size) != 2 or len(box) != 4:
            raise ValueError("a size has two numbers and a box has four")
        picture = pictures.setdefault(name, _Picture(category, file, size, box))
        for number, (x, y) in zip(numbers, pair[f"{side}_kps"], strict=True):
            picture.points[number] = [float(x), float(y)]
        names.append(name)
    return names[0], names[1], numbers


def _add_annotation(folder: Path, picture: _Picture) -> None:
    """The points that no pair of the split has in common."""
    file = folder / "ImageAnnotation" / picture.category / f"{Path(picture.file).stem}.json"
    if not file.exists():
        return
    try:
        for number, place in read_json(file)["kps"].items():
            if place is not None and 0 <= int(number) < POINTS:
                picture.points[int(number)] = [float(place[0]), float(place[1])]
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{file} is no annotation of SPair-71k ({error!r}); download the data set again") from None


def _assemble(folder: Path, pictures: list[_Picture], names: list[str], pairs: list[tuple[str, str, list[int]]]) -> KeypointSet:
    points = torch.zeros(len(names), POINTS, 2, dtype=torch.float64)
    visible = torch.zeros(len(names), POINTS, dtype=torch.bool)
    for row, picture in enumerate(pictures):
        for number, place in picture.points.items():
            points[row, number], visible[row, number] = torch.tensor(place, dtype=torch.float64), True
    row_of = {name: row for row, name in enumerate(names)}
    counted = torch.zeros(len(pairs), POINTS, dtype=torch.bool)
    for row, (_, _, numbers) in enumerate(pairs):
        counted[row, numbers] = True
    return KeypointSet(
        kind="SPair-71k",
        entries=tuple(Entry(name, folder / "JPEGImages" / name) for name in names),
        points=points,
        visible=visible,
        sizes=torch.tensor([picture.size for picture in pictures], dtype=torch.float64),
        boxes=torch.tensor([picture.box for picture in pictures], dtype=torch.float64),
        groups=tuple(picture.category for picture in pictures),
        point_names=tuple(str(number) for number in range(POINTS)),
        mirror=_mirrors(pictures),
        pairs=torch.tensor([(row_of[first], row_of[second]) for first, second, _ in pairs]),
        pair_points=counted,
    )


def _mirrors(pictures: list[_Picture]) -> Tensor:
    found = {category: from_pairs(POINTS, SPAIR.get(category, ())) for category in {p.category for p in pictures}}
    return torch.stack([found[picture.category] for picture in pictures])
