# SPDX-License-Identifier: Apache-2.0
"""A folder of tars that are made one by one, so that a run can be stopped and go on: 000000.tar, 000001.tar and so on.

NNNNNN.json is written behind its tar and says that the tar is complete, and what is in it. A tar of which nothing is left has a
NNNNNN.json alone. listing.json says what is read, so that a run does not go on with other pictures.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from gangealing_fast.runtime.errors import UserError
from gangealing_fast.storage.files import read_json, write_json

LISTING = "listing.json"


class ShardFolder(NamedTuple):
    """Names and marks of the shards in `path`."""

    path: Path

    def tar(self, index: int) -> Path:
        return self.path / f"{index:06d}.tar"

    def record_path(self, index: int) -> Path:
        return self.path / f"{index:06d}.json"

    def is_done(self, index: int) -> bool:
        return self.record_path(index).exists()

    def leading(self) -> int:
        """How many shards from the first on are done."""
        index = 0
        while self.is_done(index):
            index += 1
        return index

    def finish(self, index: int, record: dict[str, Any]) -> None:
        """Mark a shard as complete."""
        write_json(self.record_path(index), record)

    def records(self, count: int) -> Iterator[dict[str, Any]]:
        """The records of the first `count` shards. Raises UserError if one is damaged."""
        for index in range(count):
            record = read_json(self.record_path(index))
            if not isinstance(record, dict) or not isinstance(record.get("pictures"), int):
                raise UserError(f"{self.record_path(index)} is not a shard's record; delete it and give the same command again")
            yield record

    def check_listing(self, option: str, names: Iterable[str]) -> None:
        """Note what is read when the run begins. Raises UserError if a run goes on with something else.

        option: what names the source, and the source. names: of all that is read, in order.
        """
        digest = hashlib.sha256()
        for name in names:
            digest.update(name.encode("utf-8", "backslashreplace") + b"\0")
        now = {"source": option, "names": digest.hexdigest()}
        path = self.path / LISTING
        if not path.exists():
            write_json(path, now)
        elif read_json(path) != now:
            raise UserError(f"the pictures of {option} are not those that {self.path} was begun with; choose another --out")
