# SPDX-License-Identifier: Apache-2.0
"""Options of `python -m gangealing_fast.prepare`. Imports nothing heavy, so that --help is quick."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from gangealing_fast.runtime.ranges import Count, Range, Side


@dataclass(frozen=True)
class PrepareConfig:
    """Bring pictures to one size and pack them into one tar, or into a folder of tars.

    Preparing once saves decoding and resizing large photographs at every start, and finds the unreadable ones beforehand. The tar
    can be given wherever pictures are asked for; beside it, NAME.json lists what was left out and why.
    """

    source: Path
    """Folder of pictures (with its subfolders), .tar, folder of .tar shards, .zip, LMDB, video, or MNIST images file."""
    out: Path
    """The .tar to write; with --shard a folder for 000000.tar, 000001.tar and so on."""
    size: Side = 256
    """Side length in pixels."""
    pad: Literal["center", "border", "zero", "shorter-side", "none"] = "center"
    """What becomes of pictures that are not square. center: the centred square is cut out. border, zero: all is kept, and filled up
    to a square by repeating the border pixels or with black. shorter-side: the shorter side becomes --size, the shape stays. none:
    pictures stay as large as they are."""
    limit: Count | None = None
    """Use the first so many pictures only."""
    label: Annotated[int, Range(0, 255)] | None = None
    """Use this class only (MNIST files)."""
    every: Count = 1
    """Take every so many frames of a video."""
    shard: Count | None = None
    """Write a folder of tars (WebDataset shards) of so many pictures each. If it is stopped, the same command goes on."""
    workers: Annotated[int, Range(1, 256)] = 2
    """How many pictures are decoded at once."""
    format: Literal["png", "jpg"] = "png"
    """png keeps every pixel; jpg (quality 95) is about five times smaller."""
    overwrite: bool = False
    """Replace an output that exists."""
