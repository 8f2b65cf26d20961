# SPDX-License-Identifier: Apache-2.0
"""What each browser has on its desk: pictures, an aligner, edits, a video. Nothing of it is seen by another browser.

A browser is known by a cookie that it cannot guess for another. Its files lie in a folder of its own, which is removed with it.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from gangealing_fast.applications.aligner import Aligner
from gangealing_fast.applications.blending import Blend
from gangealing_fast.interface.pictures import Picture
from gangealing_fast.interface.workbench import Standing, Workbench, computing
from gangealing_fast.runtime.errors import UserError

KEY = re.compile(r"[A-Za-z0-9_-]{32}")
"""What the cookie of a browser looks like."""
_LEFT = 300.0
"""Seconds after which a browser that asks for nothing may give way to another: an open page asks every few seconds."""
_WORKBENCHES = 4
"""Aligners that are kept loaded; beside them those that browsers use at the moment."""


def new_key() -> str:
    """A cookie for a browser."""
    return secrets.token_urlsafe(24)


class Workbenches:
    """Aligners that are loaded once for all browsers, by their path."""

    def __init__(self) -> None:
        self._loaded: dict[tuple[Path, int], Workbench] = {}

    def of(self, path: Path) -> Workbench:
        """Raises UserError if there is no aligner at `path`."""
        with computing:
            place = path / "set.safetensors" if (path / "set.safetensors").exists() else path
            place = path / "aligner.safetensors" if (path / "aligner.safetensors").exists() else place
            mark = (path.resolve(), place.stat().st_mtime_ns if place.exists() else 0)
            if mark not in self._loaded:
                aligner = Aligner.load(path, say=lambda text: None)
                aligner.check_classifier()
                while len(self._loaded) >= _WORKBENCHES:
                    del self._loaded[next(iter(self._loaded))]
                self._loaded[mark] = Workbench(aligner, path)
            return self._loaded[mark]


@dataclass
class Clip:
    """An uploaded video. path: the file. strip: some of its frames. seconds: between two of them. frames: how many are used."""

    name: str
    path: Path
    strip: list[Picture]
    seconds: float
    frames: int


@dataclass
class Desk:
    """Of one browser. lock: held while it is changed. drawn: counts the changes of edits. made: names of files to download."""

    key: str
    folder: Path
    bench: Workbench
    pictures: list[Picture]
    used: float = field(default_factory=time.monotonic)
    lock: threading.RLock = field(default_factory=threading.RLock)
    edits: dict[int, Tensor] = field(default_factory=dict)
    opacity: float = 1.0
    blend: Blend = "alpha"
    drawn: int = 0
    clip: Clip | None = None
    made: dict[str, Path] = field(default_factory=dict)
    jobs: list[Callable[[], None]] = field(default_factory=list)
    _templates: dict[int, Tensor] | None = None
    _standings: dict[str, Standing] = field(default_factory=dict)
    gone: bool = False

    def picture(self, key: str) -> Picture:
        """One of this browser's pictures or frames. Raises UserError if there is none of that key."""
        strip = self.clip.strip if self.clip is not None else []
        for picture in [*self.pictures, *strip]:
            if secrets.compare_digest(picture.key, key):
                return picture
        raise UserError("there is no such picture on this page any more; reload it")

    def templates(self) -> dict[int, Tensor]:
        """What is drawn on, made once for these pictures."""
        with computing:
            if self._templates is None:
                self._templates = self.bench.templates(self.pictures)
            return self._templates

    def standing(self, picture: Picture) -> Standing:
        """How a picture stands among these."""
        with computing:
            if picture.key not in self._standings:
                self._standings[picture.key] = self.bench.standing(picture, self.templates())
            return self._standings[picture.key]

    def changed(self, *, aligner: bool = False) -> None:
        """Forget what followed from the pictures that there were; with another aligner the edits too."""
        self._templates = None
        self._standings.clear()
        if aligner:
            self.edits.clear()
        self.drawn += 1

    def edit_file(self, cluster: int) -> Path:
        """Where the edit of a template lies as a PNG file, as `propagate` reads it."""
        return self.folder / f"edit-{cluster}.png"

    def keep(self, name: str, path: Path) -> None:
        """Offer a file for download under `name`, in place of the last of that name."""
        before = self.made.get(name)
        self.made[name] = path
        if before is not None and before != path:
            before.unlink(missing_ok=True)


class Desks:
    """The desks of all browsers, at most `most`. start: the pictures that everybody begins with, for a workbench."""

    def __init__(self, folder: Path, most: int, idle: float, bench: Workbench, start: Sequence[Picture]) -> None:
        self._folder, self._most, self._idle = folder, most, idle
        self.bench, self.start = bench, list(start)
        self._desks: dict[str, Desk] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._desks)

    def of(self, key: str) -> Desk:
        """The desk of a browser, set up if it has none. Raises UserError if there are too many."""
        with self._lock:
            desk = self._desks.get(key)
            gone = [] if desk is not None else self._idle_ones(time.monotonic())
            if desk is None:
                if len(self._desks) - len(gone) >= self._most:
                    gone = self._longest_left(time.monotonic())
                if len(self._desks) - len(gone) >= self._most:
                    raise UserError(
                        f"this studio serves {self._most} browsers at a time and they are all at work; "
                        "close one and wait 5 minutes, or start it with a larger --sessions"
                    )
                for one in gone:
                    del self._desks[one.key]
                folder = self._folder / secrets.token_hex(16)
                folder.mkdir(parents=True)
                desk = self._desks[key] = Desk(key, folder, self.bench, list(self.start))
            desk.used = time.monotonic()
        for one in gone:
            self._clear(one)
        return desk

    def _idle_ones(self, now: float) -> list[Desk]:
        return [desk for desk in self._desks.values() if now - desk.used > self._idle]

    def _longest_left(self, now: float) -> list[Desk]:
        """The desk that was left the longest ago, if its page is closed."""
        longest = min(self._desks.values(), key=lambda desk: desk.used)
        return [longest] if now - longest.used > _LEFT else []

    def tidy(self) -> None:
        """Remove the desks of browsers that ask for nothing any more."""
        with self._lock:
            gone = self._idle_ones(time.monotonic())
            for desk in gone:
                del self._desks[desk.key]
        for desk in gone:
            self._clear(desk)

    def close(self, key: str) -> None:
        """Remove the desk of a browser that wants to be forgotten."""
        with self._lock:
            desk = self._desks.pop(key, None)
        if desk is not None:
            self._clear(desk)

    def close_all(self) -> None:
        """Remove all desks."""
        for key in list(self._desks):
            self.close(key)

    def _clear(self, desk: Desk) -> None:
        with desk.lock:
            desk.gone = True
            for stop in desk.jobs:
                with contextlib.suppress(OSError):
                    stop()
            desk.bench.forget([picture for picture in desk.pictures if picture.own])
            shutil.rmtree(desk.folder, ignore_errors=True)
