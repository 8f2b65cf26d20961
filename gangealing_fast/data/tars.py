# SPDX-License-Identifier: Apache-2.0
"""What lies where in a tar, and whether all of the tar was read.

Python's `tarfile` takes a damaged header for the end of the archive. A tar ends with two blocks of zeros (POSIX.1-2017, pax, "ustar
Interchange Format"). So whatever else lies where reading stopped is a damage, and is named.
"""

from __future__ import annotations

import os
import tarfile
from pathlib import Path
from typing import IO, NamedTuple

from gangealing_fast.runtime.errors import UserError
from gangealing_fast.storage.files import open_regular

_BLOCK = tarfile.BLOCKSIZE
_CHUNK = 1 << 20
LARGEST_FILE = 1 << 30
"""Bytes of an encoded picture; larger ones are skipped."""


class Member(NamedTuple):
    """A file in a tar: `size` bytes at `offset`.

    link: the name of the member whose content it has, if it is a hard link. reason: why it has no content of its own that could be
    read, else None.
    """

    name: str
    offset: int
    size: int
    link: str | None = None
    reason: str | None = None


def read_members(path: Path) -> tuple[list[Member], str | None]:
    """All files of an uncompressed tar in the order of the tar, and a remark if it has no end mark.

    Raises:
        UserError: it is no uncompressed tar, or it is damaged: truncated, with a damaged header, or with something behind its end.
        OSError: it cannot be read.
    """
    members: list[Member] = []
    try:
        with open_regular(path) as file:
            length = os.fstat(file.fileno()).st_size
            with tarfile.open(fileobj=file, mode="r:") as archive:
                for entry in archive:
                    if not entry.isdir():
                        members.append(_member(entry))
                    if entry.isreg() and not entry.issparse() and entry.size > LARGEST_FILE and archive.offset > length:
                        reason = f"claims {entry.size:,} bytes, which the tar does not hold: whatever follows is not read"
                        return [*members[:-1], members[-1]._replace(reason=reason)], None
                stopped = archive.offset
            return members, _check_end(path, file, stopped, length, len(members))
    except tarfile.ReadError as error:
        if members:
            raise UserError(
                f"the tar {path} is truncated or damaged after {len(members)} files ({error}); make it again"
            ) from error
        raise UserError(
            f"{path} is neither a folder, nor an uncompressed .tar, nor an MNIST images file; unpack it first if it is compressed"
        ) from error
    except (tarfile.TarError, ValueError, OverflowError, MemoryError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        reason = " ".join(str(error).split()) or "a header claims more than the memory holds"
        raise UserError(f"the tar {path} is damaged after {len(members)} files ({reason}); make it again") from error


def _member(entry: tarfile.TarInfo) -> Member:
    if entry.islnk():
        return Member(entry.name, 0, 0, entry.linkname, "a link in a tar to a file that is not in it")
    if entry.issym():
        return Member(entry.name, 0, 0, None, "a symbolic link in a tar")
    if not entry.isreg():
        return Member(entry.name, 0, 0, None, "a pipe or device in a tar")
    if entry.issparse():
        return Member(entry.name, 0, 0, None, "stored with holes in a tar (a sparse file)")
    return Member(entry.name, entry.offset_data, entry.size)


def _check_end(path: Path, file: IO[bytes], stopped: int, length: int, count: int) -> str | None:
    """A remark if the end mark lacks. Raises UserError if there is more in the file than what was read."""
    file.seek(stopped)
    head = file.read(_BLOCK)
    if not head:
        return f"the tar has no end mark after {count} files, so that some may be missing"
    if head.count(0) != len(head):
        raise UserError(
            f"the tar {path} is truncated or damaged after {count} files: at byte {stopped:,} of {length:,} there is no header; "
            "make it again"
        )
    place = stopped + len(head)
    while part := file.read(_CHUNK):
        if part.count(0) != len(part):
            begin = place + next(index for index, value in enumerate(part) if value)
            more = f"more follows at byte {begin // _BLOCK * _BLOCK:,} (was a second archive appended?)"
            raise UserError(
                f"the tar {path} ends after {count} files at byte {stopped:,}, but {more}; unpack both and make one tar"
            )
        place += len(part)
    return None
