# SPDX-License-Identifier: Apache-2.0
"""Options of `python -m gangealing_fast.studio`. Imports nothing heavy, so that --help is quick."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from gangealing_fast.runtime.ranges import Range, Threads


@dataclass(frozen=True)
class StudioConfig:
    """Serve a page on which an aligner is used: draw on its template, carry points, browse pictures, start and watch runs.

    Without options it serves this machine alone, with an aligner of handwritten digits that comes with the package.
    """

    out: Path = Path("runs/studio")
    """Folder of the studio: what it starts is written below it."""
    checkpoint: Path | None = None
    """Whatever holds an aligner: a folder of `congeal`, `train` or `classify`, or an aligner.safetensors. None: the digits'."""
    data: Path | None = None
    """Pictures that every browser sees. None: those of the set, or held-out digits."""
    host: str = "127.0.0.1"
    """The address that is listened at. Any other than this machine's own asks browsers for a token."""
    port: Annotated[int, Range(0, 65535)] = 7860
    """0 takes one that is free."""
    token: str = ""
    """What a browser has to know, at least 16 characters. Empty: none on this machine alone, otherwise one that is made up."""
    sessions: Annotated[int, Range(1, 64)] = 8
    """How many browsers are served at a time."""
    idle_minutes: Annotated[int, Range(1, 10_000)] = 240
    """A browser that asks for nothing for so long is forgotten, with its pictures."""
    pictures: Annotated[int, Range(1, 2000)] = 200
    """How many pictures a browser may have, those of --data among them."""
    megabytes: Annotated[int, Range(1, 4096)] = 64
    """Most of one uploaded file."""
    megapixels: Annotated[int, Range(1, 1000)] = 50
    """Most of one uploaded picture."""
    frames: Annotated[int, Range(1, 100_000)] = 1500
    """How many frames of an uploaded video are used."""
    runs: Annotated[int, Range(0, 16)] = 1
    """How many runs the page may have going at a time; 0 for none at all."""
    threads: Threads = 0
    """CPU threads of the studio, and of each run that it starts; 0 leaves torch's choice."""
