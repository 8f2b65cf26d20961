# SPDX-License-Identifier: Apache-2.0
"""Key points as COCO's JSON has them (cocodataset.org/#format-data), for pictures of one's own.

{"images": [{"id", "file_name", "width", "height"}], "categories": [{"id", "name", "keypoints": [names]}],
 "annotations": [{"image_id", "category_id", "keypoints": [x, y, v, x, y, v, ...], "bbox": [left, top, width, height]}]}
v: 0 is not marked, 1 is marked though hidden, 2 is visible; 1 and 2 are both counted, as COCO does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from gangealing_fast.data.keypoints.matching import PictureNames
from gangealing_fast.data.keypoints.mirrors import from_names
from gangealing_fast.data.keypoints.record import KeypointSet, picture_sizes
from gangealing_fast.data.sources import Entry
from gangealing_fast.runtime.errors import UserError

Row = tuple[str, list[float], list[float] | None, Any]


def read_coco(value: Any, file: Path, entries: Sequence[Entry], category: str | None = None) -> KeypointSet:
    """One object for each picture, that with the most points; pictures without one are left out.

    value: what is in the JSON file `file`. entries: the pictures. Raises UserError for what is not as above.
    """
    try:
        rows, names, labels, others = _rows(value, file, category)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{file} has no key points as COCO's files do ({error!r}); correct it") from None
    pictures = PictureNames(entries, file)
    rows.sort(key=lambda row: row[0])
    chosen = tuple(entries[pictures.row(name)] for name, _, _, _ in rows)
    values = torch.tensor([points for _, points, _, _ in rows], dtype=torch.float64).reshape(len(rows), -1, 3)
    boxes = [box for _, _, box, _ in rows if box is not None and len(box) == 4]
    edges = torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4)
    mirror = from_names(names)
    return KeypointSet(
        kind="COCO JSON",
        entries=chosen,
        points=values[..., :2],
        visible=values[..., 2] > 0,
        sizes=picture_sizes(chosen),
        boxes=torch.cat([edges[:, :2], edges[:, :2] + edges[:, 2:]], 1) if len(boxes) == len(rows) else None,
        groups=tuple(labels.get(label, "") for _, _, _, label in rows),
        point_names=tuple(names),
        mirror=None if mirror is None else mirror.expand(len(rows), -1),
        notes=(f"{others} more objects in the same pictures are left out",) if others else (),
    )


def _rows(value: Any, file: Path, category: str | None) -> tuple[list[Row], list[str], dict[Any, str], int]:
    labels = {item["id"]: str(item.get("name", item["id"])) for item in value.get("categories", [])}
    names_of = {item["id"]: [str(name) for name in item.get("keypoints", [])] for item in value.get("categories", [])}
    if category is not None and category not in labels.values():
        raise UserError(f"{file} has no category {category}; there are {', '.join(labels.values())}")
    files = {item["id"]: str(item["file_name"]) for item in value["images"]}
    best: dict[Any, Row] = {}
    others = 0
    for item in value["annotations"]:
        points = [float(number) for number in item.get("keypoints", [])]
        if not any(points[2::3]) or (category is not None and labels.get(item.get("category_id")) != category):
            continue
        if len(points) % 3 or not all(map(math.isfinite, points)):
            raise ValueError("keypoints are triples of finite numbers")
        box = [float(number) for number in item["bbox"]] if "bbox" in item else None
        row = (files[item["image_id"]], points, box, item.get("category_id"))
        before = best.get(item["image_id"])
        others += before is not None
        if before is None or sum(v > 0 for v in points[2::3]) > sum(v > 0 for v in before[1][2::3]):
            best[item["image_id"]] = row
    rows = list(best.values())
    counts = {len(points) // 3 for _, points, _, _ in rows}
    if len(counts) != 1:
        raise UserError(
            f"{file} has objects with {' and '.join(map(str, sorted(counts)))} points; choose one --category"
            if counts
            else f"{file} has no object with a visible key point; give another file"
        )
    names = next((names_of[label] for _, _, _, label in rows if len(names_of.get(label, [])) in counts), [])
    return rows, names or [str(number) for number in range(counts.pop())], labels, others
