# SPDX-License-Identifier: Apache-2.0
"""A run's folder: its configuration, its log, its checkpoints; and what resuming needs.

config.json      the command and its options, written once; a folder with other options is refused
log.jsonl        one line of statistics per tick
checkpoint.pt    the state after the last snapshot (and checkpoint.previous.pt before it)
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gangealing_fast.runtime.errors import UserError
from gangealing_fast.storage.files import write_text

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

# What a resumed run may change without becoming another run.
FREE = {"threads", "out", "tensorboard", "reuse_memory", "patience", "cuda_graphs", "goals"}


def plain(config: DataclassInstance) -> dict[str, Any]:
    """A configuration dataclass as plain JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def open_run(folder: Path, command: str, config: DataclassInstance, *, free: set[str] = FREE) -> bool:
    """Claim `folder` for a run; returns whether it already holds this very run and should be resumed.

    Raises UserError where the folder holds something else: another command's run, other options, or unknown files.
    """
    path = folder / "config.json"
    options = plain(config)
    if not path.exists():
        if folder.exists() and (not folder.is_dir() or any(not entry.name.startswith(".") for entry in folder.iterdir())):
            raise UserError(f"{folder} is not empty and holds no run; choose another --out or empty it")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"the results folder {folder} cannot be made ({error.strerror}); choose another --out") from None
        write_text(path, json.dumps({"command": command, "options": options}, indent=1) + "\n")
        return False
    try:
        found = json.loads(path.read_text())
        there, before = found["command"], found["options"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{path} is not a run's configuration; choose another --out or delete the folder") from None
    if there != command:
        raise UserError(f"{folder} holds a run of {there}, not of {command}; choose another --out")
    for field in dataclasses.fields(config):  # an option younger than the run had its default then
        if field.name not in before and field.default is not dataclasses.MISSING:
            before[field.name] = json.loads(json.dumps(field.default, default=str))
    differing = [k for k in options if k not in free and before.get(k, "(absent)") != options[k]]
    if differing:
        changes = ", ".join(f"{k}: {before.get(k, '(absent)')} there, {options[k]} now" for k in differing)
        raise UserError(f"{folder} holds another run ({changes}); choose another --out, or the same options to resume it")
    return True
