# SPDX-License-Identifier: Apache-2.0
"""Key points in a `.npy` file: `[N, P, 2]` or `[N, P, 3]` for N pictures in the order of their names, (x, y) or (x, y, visible)."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy
import torch

from gangealing_fast.data.keypoints.record import KeypointSet, picture_sizes
from gangealing_fast.data.sources import Entry
from gangealing_fast.runtime.errors import UserError


def read_array(content: bytes, file: Path, entries: Sequence[Entry]) -> KeypointSet:
    """The pictures with a row each of an array. A point that is not finite, or whose third number is 0, is not marked.

    Raises UserError for another shape, or another number of rows than there are pictures.
    """
    try:
        array = numpy.load(io.BytesIO(content), allow_pickle=False)
        values = torch.from_numpy(numpy.asarray(array, dtype=numpy.float64))
    except (ValueError, OSError, EOFError, TypeError) as error:
        raise UserError(f"{file} is no array of numbers that can be read ({error}); write it with numpy.save") from None
    if values.ndim != 3 or values.shape[2] not in (2, 3) or not values.shape[1]:
        raise UserError(f"{file} must be [pictures, points, 2 or 3], got {list(values.shape)}; write it anew")
    if len(values) != len(entries):
        raise UserError(
            f"{file} has key points of {len(values)} pictures, but there are {len(entries)}; "
            "give the pictures that the points were marked on"
        )
    visible = values[..., :2].isfinite().all(2)
    if values.shape[2] == 3:
        visible &= values[..., 2] > 0
    return KeypointSet(
        kind=".npy",
        entries=tuple(entries),
        points=torch.where(visible[..., None], values[..., :2], 0.0),
        visible=visible,
        sizes=picture_sizes(entries),
        point_names=tuple(str(number) for number in range(values.shape[1])),
    )
