# SPDX-License-Identifier: Apache-2.0
"""Small data sets with key points in the files' own formats: five pictures of one kind, three points each.

Pictures are 200x120, the object's box is 100x60, the box around the key points 40x20. The last picture hides its last point.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy
import torch
from PIL import Image

WIDTH, HEIGHT = 200, 120
COUNT = 5
BOX = (5, 5, 105, 65)
POINTS = [[[10.0 + k, 10.0], [50.0 + k, 10.0], [10.0 + k, 30.0]] for k in range(COUNT)]
VISIBLE = [[True, True, True]] * 4 + [[True, True, False]]
NAMES = [f"bird_{k}.jpg" for k in range(COUNT)]
ORDERED = [(i, j) for i in range(COUNT) for j in range(COUNT) if i != j]
CUB_POINTS = ("beak", "left eye", "right eye")


def picture(path: Path, seed: int = 0, size: tuple[int, int] = (WIDTH, HEIGHT)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = torch.rand(3, size[1] // 8, size[0] // 8, generator=torch.Generator().manual_seed(seed))
    array = (values * 255).byte().permute(1, 2, 0).numpy()
    Image.fromarray(array).resize(size, Image.Resampling.NEAREST).save(path, quality=95)


def pictures(folder: Path) -> Path:
    """The five pictures alone."""
    for k, name in enumerate(NAMES):
        picture(folder / name, k)
    return folder


def spair(folder: Path, category: str = "cat", annotations: bool = True) -> Path:
    """SPair-71k with all 20 ordered pairs, in order."""
    for k, name in enumerate(NAMES):
        picture(folder / "JPEGImages" / category / name, k)
        if annotations:
            about = folder / "ImageAnnotation" / category / f"{Path(name).stem}.json"
            about.parent.mkdir(parents=True, exist_ok=True)
            kps = {str(p): POINTS[k][p] if p < 3 and VISIBLE[k][p] else None for p in range(30)}
            about.write_text(json.dumps({"filename": name, "category": category, "bndbox": list(BOX), "kps": kps}))
    place = folder / "PairAnnotation" / "test"
    place.mkdir(parents=True, exist_ok=True)
    for number, (i, j) in enumerate(ORDERED):
        both = [p for p in range(3) if VISIBLE[i][p] and VISIBLE[j][p]]
        pair = {"src_imname": NAMES[i], "trg_imname": NAMES[j], "category": category, "kps_ids": [str(p) for p in both]}
        for side, k in (("src", i), ("trg", j)):
            pair |= {f"{side}_imsize": [WIDTH, HEIGHT, 3], f"{side}_bndbox": list(BOX), f"{side}_kps": [POINTS[k][p] for p in both]}
        name = f"{number:06d}-{Path(NAMES[i]).stem}-{Path(NAMES[j]).stem}:{category}.json"
        (place / name).write_text(json.dumps(pair))
    return folder


def cub(folder: Path) -> Path:
    """CUB-200-2011: the five birds are of the first class, two more of a second and a third one, and one is for training."""
    rows = [(1, k) for k in range(COUNT)] + [(2, 0), (3, 0), (1, 0)]
    classes = {1: "001.First_Bird", 2: "002.Second_Bird", 3: "003.Third_Bird"}
    lines: dict[str, list[str]] = {name: [] for name in ("images", "labels", "split", "boxes", "parts")}
    for number, (label, k) in enumerate(rows, 1):
        path = f"{classes[label]}/{number}.jpg"
        picture(folder / "images" / path, k)
        lines["images"].append(f"{number} {path}")
        lines["labels"].append(f"{number} {label}")
        lines["split"].append(f"{number} {int(number == len(rows))}")
        lines["boxes"].append(f"{number} {BOX[0]}.0 {BOX[1]}.0 {BOX[2] - BOX[0]}.0 {BOX[3] - BOX[1]}.0")
        for p, (x, y) in enumerate(POINTS[k]):
            place = f"{x} {y} 1" if VISIBLE[k][p] else "0.0 0.0 0"
            lines["parts"].append(f"{number} {p + 1} {place}")
    (folder / "parts").mkdir()
    for file, name in (
        ("images.txt", "images"),
        ("image_class_labels.txt", "labels"),
        ("train_test_split.txt", "split"),
        ("bounding_boxes.txt", "boxes"),
        ("parts/part_locs.txt", "parts"),
    ):
        (folder / file).write_text("\n".join(lines[name]) + "\n")
    (folder / "classes.txt").write_text("".join(f"{k} {name}\n" for k, name in classes.items()))
    (folder / "parts" / "parts.txt").write_text("".join(f"{k} {name}\n" for k, name in enumerate(CUB_POINTS, 1)))
    return folder


def acsm(file: Path, images: Path) -> Path:
    """ACSM's Matlab file for two birds of 15 parts, the first of them visible, pixels counted from 1."""
    from scipy.io import savemat

    records = []
    for k in range(2):
        picture(images / "001.First_Bird" / f"{k}.jpg", k)
        parts = numpy.zeros((3, 15))
        parts[:, 0] = (POINTS[k][0][0] + 1, POINTS[k][0][1] + 1, 1)
        parts[:, 6] = (POINTS[k][1][0] + 1, POINTS[k][1][1] + 1, 1)
        box = {"x1": BOX[0] + 1, "y1": BOX[1] + 1, "x2": BOX[2], "y2": BOX[3]}
        records.append({"rel_path": f"001.First_Bird/{k}.jpg", "bbox": box, "parts": parts, "width": WIDTH, "height": HEIGHT})
    savemat(file, {"images": records})
    return file


def coco() -> dict:
    """COCO's JSON for the five pictures; the first one has a second object with fewer points."""
    annotations = []
    for k in range(COUNT):
        points = [value for p in range(3) for value in (*POINTS[k][p], 2 if VISIBLE[k][p] else 0)]
        box = [BOX[0], BOX[1], BOX[2] - BOX[0], BOX[3] - BOX[1]]
        annotations.append({"image_id": 10 + k, "category_id": 1, "keypoints": points, "bbox": box})
    annotations.append({"image_id": 10, "category_id": 1, "keypoints": [1, 1, 1, 0, 0, 0, 0, 0, 0], "bbox": [0, 0, 1, 1]})
    return {
        "images": [{"id": 10 + k, "file_name": name, "width": WIDTH, "height": HEIGHT} for k, name in enumerate(NAMES)],
        "categories": [{"id": 1, "name": "bird", "keypoints": ["beak", "left_eye", "right_eye"]}],
        "annotations": annotations,
    }


def array() -> numpy.ndarray:
    """`[5, 3, 3]`: x, y, visible."""
    seen = numpy.array(VISIBLE, dtype=numpy.float32)[..., None]
    return numpy.concatenate([numpy.array(POINTS, dtype=numpy.float32), seen], 2)


def tables() -> SimpleNamespace:
    """The two kinds of CSV."""
    by_point = ["picture,point,x,y,visible"]
    by_picture = ["picture,beak_x,beak_y,left eye_x,left eye_y,right eye_x,right eye_y,left,top,right,bottom"]
    for k, name in enumerate(NAMES):
        by_point += [f"{name},{CUB_POINTS[p]},{x},{y},{int(VISIBLE[k][p])}" for p, (x, y) in enumerate(POINTS[k])]
        cells = [f"{x},{y}" if VISIBLE[k][p] else "," for p, (x, y) in enumerate(POINTS[k])]
        by_picture.append(",".join([name, *cells, *map(str, BOX)]))
    return SimpleNamespace(by_point="\n".join(by_point), by_picture="\n".join(by_picture))
