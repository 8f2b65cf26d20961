# SPDX-License-Identifier: Apache-2.0
"""One encoded picture, wherever it lies, and a listing of many."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from gangealing_fast.data.decoding import ENDINGS
from gangealing_fast.data.tars import LARGEST_FILE
from gangealing_fast.storage.files import open_regular

PART = 1 << 24
"""Bytes that are read at a time."""


@dataclass(frozen=True)
class Entry:
    """One encoded picture: `size` bytes at `offset` of the file `path` (a tar member), or all of it (`size` None)."""

    name: str
    path: Path
    offset: int = 0
    size: int | None = None

    def read(self) -> bytes:
        """The encoded bytes; OSError where the file cannot be read, ValueError where it is too large or a tar ends too early."""
        with open_regular(self.path) as file:
            size = os.fstat(file.fileno()).st_size if self.size is None else self.size
            if size > LARGEST_FILE:
                raise ValueError(f"{size:,} bytes are more than the {LARGEST_FILE:,} of the largest file that is read")
            file.seek(self.offset)
            content = bytearray()
            while len(content) < size:
                part = file.read(min(PART, size - len(content)))
                if not part:
                    raise ValueError("the tar ends inside this picture" if self.size is not None else "the file became shorter")
                content += part
            return bytes(content)


@dataclass
class Listing:
    """entries: the pictures, sorted by name. skipped: (name, reason) of what could not be looked into. others: names of files that
    are no pictures."""

    entries: list[Entry] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    others: list[str] = field(default_factory=list)


def has_ending(name: str) -> bool:
    """Whether a name ends as those of pictures do."""
    return PurePosixPath(name).suffix.lower() in ENDINGS


def is_hidden(name: str) -> bool:
    """Whether a name, or a folder in it, is one that is left out."""
    return any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(name).parts if part not in (".", ".."))
