# SPDX-License-Identifier: Apache-2.0
"""Small congealed sets made by hand, whose truth is known, and pictures that can be aligned."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from gangealing_fast.congealing.folder import FILE, SavedSet, fingerprint, save_set
from gangealing_fast.congealing.records import Congealed
from gangealing_fast.storage.files import save_picture

SIDE, FLOW = 32, 8
SIZES = ((40, 30), (26, 36), (32, 32))
"""(width, height) of the three pictures."""


def similarity(angle: float, scale: float, x: float, y: float) -> Tensor:
    """`[3, 3]`, float64."""
    a, b = scale * math.cos(angle), scale * math.sin(angle)
    return torch.tensor([[a, -b, x], [b, a, y], [0.0, 0.0, 1.0]], dtype=torch.float64)


def mirror(width: int) -> Tensor:
    """`[3, 3]`: pixels of a picture of that width to those of its mirror image."""
    return torch.tensor([[-1.0, 0.0, width - 1.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)


def picture(number: int) -> Tensor:
    """uint8 `[3, H, W]` of `SIZES[number]`, another for each number."""
    width, height = SIZES[number]
    generator = torch.Generator().manual_seed(number)
    coarse = torch.rand(1, 3, 6, 6, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)[0]
    return (smooth * 255).round().to(torch.uint8)


def congealed(model: str = "similarity") -> Congealed:
    """Three pictures on two templates, the second one mirrored; flows of up to a pixel."""
    matrix = torch.stack(
        [similarity(0.2, 0.9, -1.0, 2.0), similarity(-0.3, 1.1, 3.0, -2.0) @ mirror(SIZES[1][0]), similarity(0.0, 1.0, 0.5, 0.25)]
    )
    if model == "homography":
        matrix[:, 2, :2] = torch.tensor([[2e-3, -1e-3], [1e-3, 1e-3], [0.0, 2e-3]], dtype=torch.float64)
    flow = torch.sin(torch.arange(3 * FLOW * FLOW * 2, dtype=torch.float32)).reshape(3, FLOW, FLOW, 2).half().float()
    return Congealed(
        matrix=matrix,
        flow=flow * 0.5,
        mirrored=torch.tensor([False, True, False]),
        cluster=torch.tensor([0, 0, 1]),
        confidence=torch.tensor([0.75, 0.5, 0.25]),
        outlier=torch.tensor([False, False, False]),
        template=torch.zeros(2, 3, SIDE, SIDE),
    )


def write_pictures(folder: Path) -> tuple[str, ...]:
    """The three pictures as files; their names."""
    folder.mkdir(parents=True, exist_ok=True)
    names = tuple(f"{number}.png" for number in range(len(SIZES)))
    for number, name in enumerate(names):
        save_picture(folder / name, picture(number))
    return names


def saved_set(folder: Path, model: str = "similarity") -> SavedSet:
    """The set, and its pictures in folder/pictures."""
    names = write_pictures(folder / "pictures")
    marks = tuple(fingerprint(picture(number)) for number in range(len(SIZES)))
    about = {"features": "efficientnet", "flow": True}
    state = {"numbers": torch.arange(3.0)}
    source = str((folder / "pictures").resolve())
    return SavedSet(congealed(model), names, torch.tensor(SIZES), marks, "features", state, source, about)


def write_set(folder: Path, model: str = "similarity") -> Path:
    """The set as `congeal` would write it."""
    saved = saved_set(folder, model)
    (folder / "set").mkdir()
    save_set(folder / "set" / FILE, saved)
    return folder / "set"
