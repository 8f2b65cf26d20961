# SPDX-License-Identifier: Apache-2.0
"""Which point each key point becomes in a picture's mirror image: the left eye is then where the right one is looked for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from gangealing_fast.runtime.errors import UserError
from gangealing_fast.storage.files import read_json

Pairs = tuple[tuple[int, int], ...]


def _steps(first: int, second: int, many: int) -> Pairs:
    """(first, second), (first + 1, second - 1) and so on: two sides that are numbered towards each other."""
    return tuple((first + k, second - k) for k in range(many))


# The 68 points of the face of iBUG 300-W: jaw, brows, nose, eyes, mouth.
FACES = (
    *_steps(0, 16, 8),
    *_steps(17, 26, 5),
    *_steps(31, 35, 2),
    *_steps(36, 45, 4),
    *_steps(40, 47, 2),
    *_steps(48, 54, 3),
    *_steps(55, 59, 2),
    *_steps(60, 64, 2),
    (65, 67),
)
# SPair-71k names no points. These pairs of left and right are those that GeoAware-SC (arXiv 2311.17034) found.
_EIGHT = tuple((k, k + 1) for k in range(0, 8, 2))
_FOUR_LEGS = (*_EIGHT, (9, 10), (11, 12), (15, 16), (17, 18), (19, 20))
_VEHICLE = (*((k, k + 10) for k in range(10, 16)), (16, 17), (18, 19), (26, 27), (28, 29))
SPAIR: dict[str, Pairs] = {
    "aeroplane": tuple((k, k + 1) for k in range(4, 22, 2)),
    "bicycle": ((2, 3), (6, 7), (9, 10)),
    "bird": ((1, 2), (4, 5), (7, 8), (10, 11), (12, 13), (14, 15)),
    "boat": tuple((k, k + 1) for k in range(1, 13, 2)),
    "bottle": tuple((k, k + 1) for k in range(0, 10, 2)),
    "bus": ((0, 1), (2, 3), (5, 6), *_VEHICLE),
    "car": ((0, 1), (2, 3), (6, 7), *_VEHICLE),
    "cat": (*_EIGHT, (9, 10), (11, 12), (15, 17), (16, 18), (19, 22), (20, 23), (21, 24)),
    "chair": tuple((k, k + 1) for k in range(0, 14, 2)),
    "cow": _FOUR_LEGS,
    "dog": ((0, 1), (2, 3), (4, 5), (9, 10), (11, 12)),
    "horse": (*_EIGHT, (10, 11), (12, 13), (16, 17), (18, 19)),
    "motorbike": ((0, 1), (2, 3)),
    "person": ((0, 1), (2, 3), *((k, k + 1) for k in range(8, 20, 2))),
    "pottedplant": ((0, 2), (4, 5), (6, 8)),
    "sheep": _FOUR_LEGS,
    "train": tuple((k, k + 1) for k in range(0, 18, 2)),
    "tvmonitor": ((0, 2), (4, 6), (3, 7), (8, 10), (12, 14), (11, 15)),
}
KNOWN: dict[str, tuple[int, Pairs]] = {"faces68": (68, FACES)}


def from_pairs(count: int, pairs: Pairs) -> Tensor:
    """`[count]`: the permutation that exchanges these pairs of points; pairs beyond `count` are left out."""
    found = torch.arange(count)
    for left, right in pairs:
        if max(left, right) < count:
            found[left], found[right] = right, left
    return found


def from_names(names: Sequence[str]) -> Tensor | None:
    """`[P]`: the permutation that exchanges "left" and "right" in the points' names; None if no two names differ so alone."""
    place = {name.lower(): index for index, name in enumerate(names)}
    other = {"left": "right", "right": "left"}
    swapped = [re.sub("left|right", lambda found: other[found[0]], name.lower()) for name in names]
    permutation = [place.get(name, index) for index, name in enumerate(swapped)]
    return torch.tensor(permutation) if permutation != list(range(len(names))) and len(place) == len(names) else None


def read_mirror(given: str, count: int) -> Tensor:
    """`[count]`: a known permutation by its name, or a JSON file with a list: the number of each point's mirror image, from 0.

    Raises UserError for anything else than a permutation of `count` points that is its own inverse.
    """
    if given in KNOWN:
        wanted, pairs = KNOWN[given]
        if wanted != count:
            raise UserError(f"--mirror {given} is for {wanted} points, but the pictures have {count}; give a JSON file with a list")
        return from_pairs(count, pairs)
    if not Path(given).exists():
        raise UserError(
            f"--mirror {given} is neither a file nor one of {', '.join(KNOWN)}; give a JSON file with a list of numbers"
        )
    found = read_json(given)
    usable = isinstance(found, list) and all(type(item) is int for item in found) and sorted(found) == list(range(count))
    if not usable or any(found[found[k]] != k for k in range(count)):
        raise UserError(
            f"--mirror {given} must list, for each of the {count} points, the number of its mirror image, from 0 to {count - 1}, "
            "so that this one's mirror image is the point itself; correct the file"
        )
    return torch.tensor(found)
