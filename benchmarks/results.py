# SPDX-License-Identifier: Apache-2.0
"""The results file: what has been measured, piece by piece, in one JSON object. Imports no torch.

`machine` and `limits` describe where; `records` are those of `harness.compare`, `memory` those of `peaks`, `training_step`
those of the whole step. New measurements replace older ones of the same thing and leave the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from gangealing_fast.storage.files import read_json, write_json

Record = dict[str, Any]
SECTIONS = ("records", "refused", "memory", "training_step")


def load(path: Path) -> Record:
    """The content of a results file; an empty one where there is none."""
    found = read_json(path) if path.exists() else {}
    return {"machine": {}, "limits": {}, **{section: [] for section in SECTIONS}, **found}


def merge(path: Path, *, replaces: Callable[[str, Record], bool], **new: Any) -> None:
    """Write `new` into the file: `machine` and `limits` are updated; of every section named, the old records for which
    `replaces(section, record)` holds are dropped and the new ones added."""
    results = load(path)
    for name, value in new.items():
        if name in SECTIONS:
            results[name] = [record for record in results[name] if not replaces(name, record)] + value
        else:
            results[name] = {**results[name], **value}
    write_json(path, results)
