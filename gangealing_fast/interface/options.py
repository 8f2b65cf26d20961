# SPDX-License-Identifier: Apache-2.0
"""What the page may ask of `congeal`, `pretrain` and `train`: a short list of options, each checked before a command sees it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gangealing_fast.runtime.errors import UserError
from gangealing_fast.runtime.text import printable
from gangealing_fast.storage.claims import read_record

PACKAGE_DIGITS, PACKAGE_CATS = "the package's generator of digits", "the package's generator of cats"
LOOKS = 64
"""Side at which an aligner looks at pictures, unless its generator makes smaller ones."""
COMMANDS = ("congeal", "train", "pretrain")


@dataclass(frozen=True)
class Number:
    """An option that is a number from `low` to `high`; whole if `default` is."""

    default: float
    low: float
    high: float
    about: str

    def words(self, value: Any, label: str) -> str:
        """The word for the command line. Raises UserError for anything else than such a number."""
        whole = isinstance(self.default, int)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise UserError(f"{label} must be a number")
        if not self.low <= value <= self.high or (whole and value != int(value)):
            kind = "a whole number" if whole else "a number"
            raise UserError(f"{label} must be {kind} from {self.low} to {self.high}")
        return str(int(value) if whole else float(value))


@dataclass(frozen=True)
class Choice:
    """An option that is one of `values`."""

    values: tuple[str, ...]
    about: str

    @property
    def default(self) -> str:
        return self.values[0]

    def words(self, value: Any, label: str) -> str:
        """The word for the command line. Raises UserError for anything else than one of the values."""
        if value not in self.values:
            raise UserError(f"{label} must be one of {', '.join(self.values)}")
        return str(value)


OPTIONS: dict[str, dict[str, Number | Choice]] = {
    "congeal": {
        "method": Choice(("features", "entropy"), "features for photographs, entropy for digits, letters and scans"),
        "clusters": Choice(("auto", "1", "2", "3", "4"), "how many templates"),
        "flips": Choice(("auto", "yes", "no"), "whether pictures may be mirrored"),
    },
    "train": {
        "steps": Number(2000, 1, 1_000_000, "how long"),
        "batch": Number(16, 1, 256, "samples a step"),
        "snapshot": Number(100, 1, 100_000, "steps from one picture to the next"),
        "seed": Number(0, 0, 2**31 - 1, "of what is drawn at random"),
    },
    "pretrain": {
        "size": Choice(("32", "16", "64", "128"), "side of the pictures"),
        "kimg": Number(100.0, 0.01, 100_000, "thousands of pictures shown to the critic"),
        "snapshot_kimg": Number(1.0, 0.005, 1000, "thousands of pictures from one sheet to the next"),
        "batch": Number(16, 2, 256, "pictures a step"),
        "seed": Number(0, 0, 2**31 - 1, "of what is drawn at random"),
    },
}
"""Of each command: the options that the page shows, by their names."""


def takes_pictures(command: str) -> bool:
    """Whether a command works on the pictures of the page."""
    return command in ("congeal", "pretrain")


def words_of(command: str, values: Mapping[str, Any]) -> list[str]:
    """The options of a command line, of those that the page shows. Raises UserError for others, and for wrong values."""
    if command not in OPTIONS:
        raise UserError(f"the page starts {', '.join(COMMANDS)} alone, not {printable(command)}")
    known = OPTIONS[command]
    unknown = [name for name in values if name not in known]
    if unknown:
        raise UserError(f"{command} has no option {printable(unknown[0])} on this page; use the command line for it")
    words = []
    for name, option in known.items():
        words += [f"--{name.replace('_', '-')}", option.words(values.get(name, option.default), name.replace("_", " "))]
    return words


def teacher_words(source: str, runs: Mapping[str, Path]) -> list[str]:
    """What `train` learns from: a generator of the package, or a run of the page that holds a generator or a set.

    Raises UserError for anything else.
    """
    if source == PACKAGE_DIGITS:
        return ["--preset", "digits"]
    if source == PACKAGE_CATS:
        return ["--preset", "cats"]
    folder = runs.get(source)
    if folder is not None and (folder / "generator.safetensors").exists():
        record = read_record(folder)
        size = record.options.get("size", LOOKS) if record is not None else LOOKS
        side = str(min(LOOKS, size if isinstance(size, int) else LOOKS))
        return ["--preset", "cats", "--generator", str(folder / "generator.safetensors"), "--flow-size", side]
    if folder is not None and (folder / "set.safetensors").exists():
        return ["--preset", "set", "--teach-from", str(folder)]
    raise UserError(f"there is no generator or set {printable(source)}; choose one of the list")
