# SPDX-License-Identifier: Apache-2.0
"""Key points in a CSV file, with a line for each point or for each picture.

picture,point,x,y[,visible]                                    a line for each point; `visible` 0 is not marked
picture,NAME_x,NAME_y,...[,left,top,right,bottom][,group]       a line for each picture; an empty x or y is not marked
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path

import torch

from gangealing_fast.data.keypoints.matching import PictureNames
from gangealing_fast.data.keypoints.mirrors import from_names
from gangealing_fast.data.keypoints.record import KeypointSet, picture_sizes
from gangealing_fast.data.sources import Entry
from gangealing_fast.runtime.errors import UserError

BOX = ("left", "top", "right", "bottom")
Line = dict[str, str]
Places = dict[str, dict[str, tuple[float, float]]]


def read_table(content: bytes, file: Path, entries: Sequence[Entry]) -> KeypointSet:
    """The pictures that a table names, in the order of `entries`. Raises UserError for a table that is not as above."""
    lines = list(csv.DictReader(content.decode("utf-8-sig", "replace").splitlines(), skipinitialspace=True))
    columns = [column for column in (lines[0] if lines else {}) if column]
    if "picture" not in columns:
        raise UserError(f"{file} has no column named picture; begin the table with picture,point,x,y")
    if {"point", "x", "y"} <= set(columns):
        names = list(dict.fromkeys((line["point"] or "").strip() for line in lines))
        places = _by_point(lines, file)
    else:
        names = [column.removesuffix("_x") for column in columns if column.endswith("_x") and f"{column[:-2]}_y" in columns]
        places = _by_picture(lines, names, file)
    if not names:
        raise UserError(f"{file} has neither the columns point,x,y nor two columns NAME_x,NAME_y for a point; add them")
    pictures = PictureNames(entries, file)
    row_of = {name: pictures.row(name) for name in places}
    order = sorted(places, key=row_of.__getitem__)
    points = torch.zeros(len(order), len(names), 2, dtype=torch.float64)
    visible = torch.zeros(len(order), len(names), dtype=torch.bool)
    for row, picture in enumerate(order):
        for name, place in places[picture].items():
            points[row, names.index(name)] = torch.tensor(place, dtype=torch.float64)
            visible[row, names.index(name)] = True
    first = {(line["picture"] or "").strip(): line for line in reversed(lines)}
    chosen = tuple(entries[row_of[name]] for name in order)
    mirror = from_names(names)
    return KeypointSet(
        kind="CSV",
        entries=chosen,
        points=points,
        visible=visible,
        sizes=picture_sizes(chosen),
        boxes=_boxes([first[name] for name in order], file) if set(BOX) <= set(columns) else None,
        groups=tuple((first[name]["group"] or "").strip() for name in order) if "group" in columns else (),
        point_names=tuple(names),
        mirror=None if mirror is None else mirror.expand(len(order), -1),
    )


def _by_point(lines: Sequence[Line], file: Path) -> Places:
    places: Places = {}
    for number, line in enumerate(lines, 2):
        here = places.setdefault((line["picture"] or "").strip(), {})
        x, y, seen = (_number(line.get(key), file, number) for key in ("x", "y", "visible"))
        if x is not None and y is not None and seen != 0:
            here[(line["point"] or "").strip()] = (x, y)
    return places


def _by_picture(lines: Sequence[Line], names: Sequence[str], file: Path) -> Places:
    places: Places = {}
    for number, line in enumerate(lines, 2):
        here = places.setdefault((line["picture"] or "").strip(), {})
        for name in names:
            x, y = _number(line[f"{name}_x"], file, number), _number(line[f"{name}_y"], file, number)
            if x is not None and y is not None:
                here[name] = (x, y)
    return places


def _boxes(lines: Sequence[Line], file: Path) -> torch.Tensor:
    values = [[_number(line[edge], file, number) for edge in BOX] for number, line in enumerate(lines, 2)]
    missing = [line["picture"] for line, box in zip(lines, values, strict=True) if None in box]
    if missing:
        raise UserError(f"{file} has no box for {missing[0]}; fill in left, top, right and bottom, or remove these columns")
    return torch.tensor(values, dtype=torch.float64)


def _number(text: str | None, file: Path, line: int) -> float | None:
    if text is None or not text.strip():
        return None
    try:
        value = float(text)
    except ValueError:
        raise UserError(f"line {line} of {file} has {text.strip()!r} where a number should be; correct it") from None
    return value if math.isfinite(value) else None
