# SPDX-License-Identifier: Apache-2.0
"""Which picture a table speaks of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from gangealing_fast.data.sources import Entry
from gangealing_fast.runtime.errors import UserError


class PictureNames:
    """Pictures by their names: in full, or without the folders if only one picture is called so."""

    def __init__(self, entries: Sequence[Entry], table: Path) -> None:
        self._table = table
        self._full = {entry.name: row for row, entry in enumerate(entries)}
        self._short: dict[str, int | None] = {}
        for row, entry in enumerate(entries):
            short = PurePosixPath(entry.name).name
            self._short[short] = None if short in self._short else row

    def row(self, name: str) -> int:
        """The picture's place. Raises UserError for a name that none or several have."""
        row = self._full.get(name, self._short.get(PurePosixPath(name).name))
        if row is None:
            many = "several pictures" if PurePosixPath(name).name in self._short else "no picture"
            raise UserError(f"{self._table} names {name}, but {many} of that name lie among the pictures; correct the name")
        return row
