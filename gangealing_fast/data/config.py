# SPDX-License-Identifier: Apache-2.0
"""Options of `python -m gangealing_fast.prepare`. Imports nothing heavy, so that --help is quick."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class PrepareConfig:
    """Resize pictures to squares and pack them into one tar.

    Preparing once saves decoding and resizing large photographs at every start, and finds the unreadable ones beforehand. The tar
    can be given wherever pictures are asked for; beside it, NAME.json lists what was skipped and why.
    """

    source: Path
    """Folder of pictures (with its subfolders), .tar, folder of .tar shards, or MNIST images file."""
    out: Path
    """The .tar to write."""
    size: int = 256
    """Side length in pixels."""
    crop: Literal["center", "pad"] = "center"
    """Cut the centred square, or keep everything and repeat the border pixels."""
    limit: int | None = None
    """Use the first so many pictures only."""
    label: int | None = None
    """Use this class only (MNIST files)."""
    format: Literal["png", "jpg"] = "png"
    """png keeps every pixel; jpg (quality 95) is about five times smaller."""
    overwrite: bool = False
    """Replace an output that exists."""
