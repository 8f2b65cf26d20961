# SPDX-License-Identifier: Apache-2.0
"""CUB-200-2011 as ACSM (arXiv 2004.00614) and CMR (arXiv 1803.07549) use it: train, val and test_cub_cleaned.mat.

Each is a Matlab file with a structure array `images`: rel_path, bbox (x1, y1, x2, y2), parts (3 x 15: x, y, 1 if visible), width,
height. Matlab counts pixels from 1; here they count from 0. Birds that are cut off or hidden are left out of these files.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy
import torch

from gangealing_fast.data.keypoints.cub import chosen_classes
from gangealing_fast.data.keypoints.mirrors import from_names
from gangealing_fast.data.keypoints.record import KeypointSet, picture_sizes
from gangealing_fast.data.sources import Entry
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.storage.files import read_bytes

PARTS = (
    "back",
    "beak",
    "belly",
    "breast",
    "crown",
    "forehead",
    "left eye",
    "left leg",
    "left wing",
    "nape",
    "right eye",
    "right leg",
    "right wing",
    "tail",
    "throat",
)


def read_acsm(file: Path, images: Path, category: Sequence[str] = ()) -> KeypointSet:
    """The pictures that a .mat file names, below the folder `images`, with the squares about the birds' boxes not yet cut out.

    Raises UserError if the package scipy is missing, or the file is not as above.
    """
    records = _records(file)
    try:
        rows = [(str(r.rel_path), [float(getattr(r.bbox, k)) for k in ("x1", "y1", "x2", "y2")], _parts(r)) for r in records]
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{file} is not one of ACSM's files ({error}); download it again") from None
    if category:
        chosen = set(chosen_classes(sorted({Path(path).parts[0] for path, _, _ in rows}), category))
        rows = [row for row in rows if Path(row[0]).parts[0] in chosen]
    entries = tuple(Entry(path, images / path) for path, _, _ in rows)
    parts = torch.tensor(numpy.stack([part for _, _, part in rows]), dtype=torch.float64)
    mirror = from_names(PARTS)
    assert mirror is not None
    return KeypointSet(
        kind="CUB-200-2011 as ACSM uses it",
        entries=entries,
        points=parts[..., :2] - 1,
        visible=parts[..., 2] > 0,
        sizes=picture_sizes(entries),
        # Both x1 and x2 are pixels of the box, so that it ends one pixel further.
        boxes=torch.tensor([[x1 - 1, y1 - 1, x2, y2] for _, (x1, y1, x2, y2), _ in rows], dtype=torch.float64),
        groups=tuple(Path(path).parts[0] for path, _, _ in rows),
        point_names=PARTS,
        mirror=mirror.expand(len(rows), -1),
    )


def _records(file: Path) -> list[Any]:
    try:
        from scipy.io import loadmat
    except ImportError:
        raise UserError(
            f"{file} is a Matlab file, which the package scipy reads: pip install 'gangealing_fast[keypoints]'"
        ) from None
    try:
        found = loadmat(io.BytesIO(read_bytes(file)), struct_as_record=False, squeeze_me=True)["images"]
    except UserError:
        raise
    except Exception as error:  # damaged files end in errors of many kinds
        raise UserError(f"{file} is not one of ACSM's files ({' '.join(str(error).split())}); download it again") from None
    return list(numpy.atleast_1d(found))


def _parts(record: Any) -> numpy.ndarray:
    parts = numpy.asarray(record.parts, dtype=numpy.float64)
    if parts.shape != (3, len(PARTS)):
        raise ValueError(f"parts must be 3 x {len(PARTS)}, got {' x '.join(map(str, parts.shape))}")
    return parts.T
