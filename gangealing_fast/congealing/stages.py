# SPDX-License-Identifier: Apache-2.0
"""What the stages of a run found, kept in the results folder until the run is through, so that a killed run goes on after them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from gangealing_fast.runtime.errors import UserError
from gangealing_fast.runtime.text import printable
from gangealing_fast.storage.exports import export_safetensors, load_safetensors
from gangealing_fast.storage.files import make_folder, read_json, write_error, write_json

FOLDER = ".stages"
_RECORD = "run.json"


class Stages:
    """The stages of one run in `folder`/.stages: they belong to its options and pictures.

    options: plain values that change the numbers. pictures: (name, mark of its content) of every picture. Stages of other options
    are dropped. Raises UserError if the pictures are others than those of the stages.
    """

    def __init__(self, folder: Path, options: Mapping[str, Any], pictures: Sequence[tuple[str, str]]) -> None:
        self._folder, self._said = folder / FOLDER, False
        there = [list(picture) for picture in pictures]
        now = {"options": dict(options), "pictures": there}
        before = self._before()
        if before is not None and before["options"] == now["options"]:
            _check_same(folder, before["pictures"], there)
        else:
            self.remove()
        make_folder(self._folder)
        write_json(self._folder / _RECORD, now)

    def _before(self) -> dict[str, Any] | None:
        try:
            found = read_json(self._folder / _RECORD)
        except UserError:
            return None
        there = isinstance(found, dict) and isinstance(found.get("options"), dict) and isinstance(found.get("pictures"), list)
        return found if there else None

    def load(self, stage: str) -> dict[str, Tensor] | None:
        """What `save` kept of a stage; None if there is nothing, or if the file is damaged."""
        path = self._folder / f"{stage}.safetensors"
        if not path.exists():
            return None
        try:
            tensors, _ = load_safetensors(path, dtype=None)
        except UserError:
            return None
        if not self._said:
            print(f"going on after {stage}, as the run before left it")
            self._said = True
        return tensors

    def save(self, stage: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep what a stage found. Raises UserError if the file cannot be written."""
        export_safetensors(self._folder / f"{stage}.safetensors", tensors, {"stage": stage})

    def remove(self) -> None:
        """Forget all stages, as a run that is through does. Raises UserError if they cannot be removed."""
        try:
            shutil.rmtree(self._folder)
        except FileNotFoundError:
            return
        except OSError as error:
            raise write_error(self._folder, error) from error


def _check_same(folder: Path, before: list[Any], now: list[list[str]]) -> None:
    if before == now:
        return
    known = {tuple(item) for item in before if isinstance(item, list)}
    changed = next((name for name, mark in now if (name, mark) not in known), None)
    names = {name for name, _ in now}
    changed = changed or next((item[0] for item in before if isinstance(item, list) and item[0] not in names), "their order")
    raise UserError(
        f"{printable(folder)} holds the beginning of a run on other pictures ({len(before)} then, {len(now)} now; first "
        f"difference: {printable(str(changed))}); give the same pictures to go on, or choose another --out"
    )
