# SPDX-License-Identifier: Apache-2.0
"""Files in a tar, the same bytes in every run, named as WebDataset groups them: files of a sample share a name up to its dot."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import IO


class Packer:
    """Adds samples to an uncompressed tar that is written to `file`; `close` ends the tar. taken: the names so far."""

    def __init__(self, file: IO[bytes]) -> None:
        self._archive = tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT)  # noqa: SIM115 - until `close`
        self.taken: set[str] = set()

    def add(self, member: str, content: bytes) -> None:
        """One file under exactly this name."""
        header = tarfile.TarInfo(member)
        header.size, header.mode = len(content), 0o644
        self._archive.addfile(header, io.BytesIO(content))

    def add_sample(self, name: str, files: Mapping[str, bytes]) -> str:
        """The files of one sample by their endings, under a key made from `name` that no other sample has. Returns the key."""
        path = safe_path(name)
        key = path.with_name(path.with_suffix("").name.replace(".", "_")).as_posix()
        if key in self.taken:  # a.png beside a.jpg
            key = path.with_name(path.name.replace(".", "_")).as_posix()
        base = key
        while key in self.taken:
            key = f"{base}_{len(self.taken)}"
        self.taken.add(key)
        for ending, content in files.items():
            self.add(f"{key}.{ending}", content)
        return key

    def close(self) -> None:
        self._archive.close()


def safe_path(name: str) -> PurePosixPath:
    """A name as a path that stays inside the folder where a tar is unpacked."""
    parts = [part for part in PurePosixPath(name.replace("\0", "_")).parts if part not in ("/", "//", "..", ".")]
    return PurePosixPath(*parts or ["picture"])
