# SPDX-License-Identifier: Apache-2.0
"""The pictures in an LMDB, a folder with data.mdb or a file: LSUN's, those of StyleGAN2's programs in PyTorch, or any other.

A value is a picture if it begins as one. Programs that train StyleGAN2 keep a picture in several sizes, under `SIZE-NUMBER`: of
these the largest size is taken.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gangealing_fast.data.decoding import is_picture
from gangealing_fast.data.entries import Entry, Listing
from gangealing_fast.data.tars import LARGEST_FILE
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.storage.files import open_regular

if TYPE_CHECKING:
    import lmdb

_MAGIC = (0xBEEFC0DE).to_bytes(4, "little")
_SIZED = re.compile(rb"(\d+)-\d+")
_HEAD = 1 << 16


@dataclass(frozen=True)
class LmdbEntry(Entry):
    """The value of one key."""

    key: bytes = b""

    def read(self) -> bytes:
        """The encoded bytes; OSError and ValueError as in `Entry.read`."""
        with _damage(), _environment(str(self.path), os.getpid()).begin(buffers=True) as values:
            value = values.get(self.key)
            if value is None:
                raise ValueError("it is no longer in the LMDB")
            if len(value) > LARGEST_FILE:
                raise ValueError(f"{len(value):,} bytes are more than the {LARGEST_FILE:,} of the largest file that is read")
            return bytes(value)


@contextlib.contextmanager
def _damage() -> Iterator[None]:
    import lmdb

    try:
        yield
    except lmdb.Error as error:
        raise ValueError(f"the LMDB cannot be read ({error})") from None


@functools.lru_cache(maxsize=8)
def _environment(path: str, process: int) -> lmdb.Environment:
    """Opened once in each process: an environment must not be used across a fork."""
    import lmdb

    return lmdb.open(path, subdir=os.path.isdir(path), readonly=True, lock=False, readahead=False, max_readers=512)


def is_lmdb(path: Path) -> bool:
    """Whether a folder holds an LMDB, or a file is one, by its first page."""
    try:
        with open_regular(path / "data.mdb" if path.is_dir() else path) as file:
            return file.read(20)[16:] == _MAGIC
    except OSError:
        return False


def list_lmdb(path: Path) -> Listing:
    """All pictures of an LMDB, sorted by key. Raises UserError if it has none, is damaged, or the package lmdb is missing."""
    try:
        import lmdb
    except ImportError:
        raise UserError(f"{path} is an LMDB, which the package lmdb reads: pip install gangealing_fast[scale]") from None
    found, sizes = Listing(), set()
    try:
        with _environment(str(path), os.getpid()).begin(buffers=True) as values:
            for key, value in values.cursor():
                sized = _SIZED.fullmatch(key)
                name = bytes(key).decode("utf-8", "backslashreplace")
                if sized is not None or is_picture(io.BytesIO(bytes(value[:_HEAD]))):
                    found.entries.append(LmdbEntry(name, path, key=bytes(key)))
                    sizes.add(None if sized is None else int(sized[1]))
                else:
                    found.others.append(name)
    except lmdb.Error as error:
        raise UserError(f"the LMDB {path} cannot be read ({error}); make it again") from None
    if not found.entries:
        raise UserError(f"the LMDB {path} has no pictures in it; give one whose values are picture files")
    if None not in sizes and len(sizes) > 1:
        largest = str(max(size for size in sizes if size is not None))
        found.entries = [entry for entry in found.entries if entry.name.startswith(f"{largest}-")]
    return found
