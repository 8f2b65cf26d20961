# SPDX-License-Identifier: Apache-2.0
"""What a run hands to a tracker of experiments: its figures at every line of the log, its pictures at every checkpoint.

Trackers are guests. log.jsonl and report.html are written without them, and a run goes on if one of them fails.
"""

from __future__ import annotations

import contextlib
import importlib
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from gangealing_fast.runtime.config import TrackerName
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.runtime.text import reason_of

PROJECT = "gangealing_fast"


class Tracker(Protocol):
    """Where figures and pictures go."""

    def figures(self, line: Mapping[str, float], step: int) -> None:
        """Figures of a line of the log, by name."""

    def pictures(self, paths: Mapping[str, Path], step: int) -> None:
        """PNG files, by name."""

    def close(self) -> None:
        """Write what is still held back."""


class _TensorBoard:
    def __init__(self, folder: Path) -> None:
        self._writer: Any = _module("torch.utils.tensorboard", "tensorboard").SummaryWriter(str(folder / "tensorboard"))

    def figures(self, line: Mapping[str, float], step: int) -> None:
        for name, value in line.items():
            self._writer.add_scalar(name, value, step)

    def pictures(self, paths: Mapping[str, Path], step: int) -> None:
        import numpy as np
        from PIL import Image

        for name, path in paths.items():
            with Image.open(path) as picture:
                self._writer.add_image(name, np.asarray(picture.convert("RGB")), step, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


class _Client:
    """Weights & Biases, and trackio, which has the same functions."""

    def __init__(self, name: str, folder: Path, **options: Any) -> None:
        self._module = _module(name, name)
        self._module.init(project=PROJECT, name=folder.name, resume="allow", **options)

    def figures(self, line: Mapping[str, float], step: int) -> None:
        self._module.log(dict(line), step=step)

    def pictures(self, paths: Mapping[str, Path], step: int) -> None:
        self._module.log({name: self._module.Image(str(path)) for name, path in paths.items()}, step=step)

    def close(self) -> None:
        self._module.finish()


def _wandb(folder: Path) -> Tracker:
    # The identity is that of the folder, so that a run that goes on continues its curves.
    identity = "".join(c if c.isalnum() else "-" for c in str(folder.resolve()))[-60:]
    return _Client("wandb", folder, dir=str(folder), id=identity)


_MAKERS: dict[TrackerName, Callable[[Path], Tracker]] = {
    "tensorboard": _TensorBoard,
    "wandb": _wandb,
    "trackio": lambda folder: _Client("trackio", folder),
}


class Reporting:
    """What the loop calls: nothing without a tracker, and nothing more from one that has failed."""

    def __init__(self, tracker: Tracker | None, name: str, folder: Path) -> None:
        self._tracker, self._name, self._folder = tracker, name, folder
        self._shown: dict[str, int] = {}

    def figures(self, line: Mapping[str, Any], step: int) -> None:
        """The finite numbers of a line of the log; its own step is left out."""
        numbers = {name: float(value) for name, value in line.items() if name != "step" and _is_number(value)}
        self._call(lambda tracker: tracker.figures(numbers, step))

    def pictures(self, step: int) -> None:
        """The pictures of the run's folder that are new or changed since the last call."""
        if self._tracker is None:
            return
        times = {path.name: path.stat().st_mtime_ns for path in sorted(self._folder.glob("*.png"))}
        changed = {name: self._folder / name for name, time in times.items() if self._shown.get(name) != time}
        self._shown = times
        if changed:
            self._call(lambda tracker: tracker.pictures({Path(name).stem: path for name, path in changed.items()}, step))

    def close(self) -> None:
        """At the end of the run, however it ends."""
        self._call(lambda tracker: tracker.close())

    def _call(self, action: Callable[[Tracker], None]) -> None:
        if self._tracker is None:
            return
        try:
            action(self._tracker)
        except Exception as error:
            self._tracker = None
            tqdm.write(f"notice: --tracker {self._name} failed ({reason_of(error)}); the run goes on without it")


@contextlib.contextmanager
def tracking(name: TrackerName, folder: Path) -> Iterator[Reporting]:
    """The tracker of that name for a run's folder while the block runs. Raises UserError if it cannot be had."""
    reporting = Reporting(_open(name, folder), name, folder)
    try:
        yield reporting
    finally:
        reporting.close()


def _open(name: TrackerName, folder: Path) -> Tracker | None:
    if name == "none":
        return None
    try:
        return _MAKERS[name](folder)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"--tracker {name} cannot be started ({reason_of(error, 200)}): set it up as its documents say, or leave it out"
        ) from None


def _module(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError(f"--tracker {package} needs the package {package}: pip install {package}") from None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
