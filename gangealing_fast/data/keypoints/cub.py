# SPDX-License-Identifier: Apache-2.0
"""CUB-200-2011 (Caltech-UCSD Birds) as it is downloaded: 15 points of birds of 200 classes.

CUB_200_2011/
    images/CLASS/PICTURE.jpg
    images.txt               picture, path below images/
    image_class_labels.txt   picture, class            classes.txt   class, name
    train_test_split.txt     picture, 1 for training
    bounding_boxes.txt       picture, left, top, width, height
    parts/parts.txt          point, name
    parts/part_locs.txt      picture, point, x, y, 1 if visible
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from gangealing_fast.data.keypoints.mirrors import from_names
from gangealing_fast.data.keypoints.record import KeypointSet, picture_sizes
from gangealing_fast.data.sources import Entry
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.storage.files import read_bytes


def is_cub(folder: Path) -> bool:
    """Whether a folder is CUB-200-2011's."""
    return (folder / "parts" / "part_locs.txt").is_file() and (folder / "images.txt").is_file()


def read_cub(folder: Path, split: str = "test", category: Sequence[str] = ()) -> KeypointSet:
    """The pictures of a split, "train" or "test" ("val" is the same), of the classes whose number or name is given, or of all.

    Pictures are in the order of images.txt. Raises UserError for a class that there is not and a file that is not as above.
    """
    paths = {number: path for number, path in _lines(folder / "images.txt", 2)}
    classes = {number: name for number, name in _lines(folder / "classes.txt", 2)}
    class_of = {number: classes.get(label, label) for number, label in _lines(folder / "image_class_labels.txt", 2)}
    training = {number for number, value in _lines(folder / "train_test_split.txt", 2) if value == "1"}
    chosen = set(chosen_classes(list(classes.values()), category)) if category else set(classes.values())
    wanted = [n for n in paths if (n in training) == (split == "train") and class_of.get(n) in chosen]
    if not wanted:
        raise UserError(f"{folder} has no pictures of these classes in the split {split}; choose another --split or --category")
    names = [name for _, name in _lines(folder / "parts" / "parts.txt", 2)]
    row_of = {number: row for row, number in enumerate(wanted)}
    points, visible = torch.zeros(len(wanted), len(names), 2, dtype=torch.float64), torch.zeros(len(wanted), len(names)).bool()
    boxes = torch.zeros(len(wanted), 4, dtype=torch.float64)
    try:
        for number, part, x, y, seen in _lines(folder / "parts" / "part_locs.txt", 5):
            if number in row_of:
                points[row_of[number], int(part) - 1] = torch.tensor([float(x), float(y)], dtype=torch.float64)
                visible[row_of[number], int(part) - 1] = seen == "1"
        for number, *values in _lines(folder / "bounding_boxes.txt", 5):
            if number in row_of:
                left, top, width, height = map(float, values)
                boxes[row_of[number]] = torch.tensor([left, top, left + width, top + height], dtype=torch.float64)
    except (ValueError, IndexError) as error:
        raise UserError(f"{folder} has numbers that are none of CUB-200-2011's ({error}); download the data set again") from None
    entries = tuple(Entry(paths[number], folder / "images" / paths[number]) for number in wanted)
    mirror = from_names(names)
    return KeypointSet(
        kind="CUB-200-2011",
        entries=entries,
        points=points,
        visible=visible,
        sizes=picture_sizes(entries),
        boxes=boxes,
        groups=tuple(class_of[number] for number in wanted),
        point_names=tuple(names),
        mirror=None if mirror is None else mirror.expand(len(wanted), -1),
    )


def chosen_classes(names: Sequence[str], given: Sequence[str]) -> list[str]:
    """The full names of classes that are given by number ("1", "001") or by name, with or without the number before it."""
    found = []
    for wanted in given:
        same = [name for name in names if wanted in (name, name.partition(".")[2]) or _same_number(wanted, name.partition(".")[0])]
        if not same:
            raise UserError(f"there is no class {wanted}; the first are {', '.join(sorted(names)[:3])}: give a number or a name")
        found += same
    return found


def _same_number(wanted: str, number: str) -> bool:
    return wanted.isdecimal() and number.isdecimal() and int(wanted) == int(number)


def _lines(path: Path, fields: int) -> list[list[str]]:
    """The lines of a table that is separated by spaces; the last field takes what is left."""
    lines = [line.split(maxsplit=fields - 1) for line in read_bytes(path).decode("utf-8", "replace").splitlines() if line.strip()]
    for number, line in enumerate(lines, 1):
        if len(line) != fields:
            raise UserError(f"line {number} of {path} has {len(line)} fields instead of {fields}; download the data set again")
    return [[value.strip() for value in line] for line in lines]
