# SPDX-License-Identifier: Apache-2.0
"""The pictures in a .zip, each read on its own: no picture is unpacked to the disk, and none larger than allowed to the memory."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from gangealing_fast.data.decoding import is_picture
from gangealing_fast.data.entries import PART, Entry, Listing, has_ending, is_hidden
from gangealing_fast.data.tars import LARGEST_FILE
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.storage.files import open_regular, read_error

_LOCAL = struct.Struct("<4s5H3L2H")
"""The header before each file (PKWARE's APPNOTE.TXT, 4.3.7); its last two fields are the lengths of a name and an extra field."""
_ENCRYPTED = 1


@dataclass(frozen=True)
class ZipEntry(Entry):
    """A file in a zip: `packed` bytes, stored or deflated, behind the header at `offset`; `size` bytes unpacked."""

    packed: int = 0
    deflated: bool = False
    checksum: int = 0

    def read(self) -> bytes:
        """The unpacked bytes; OSError and ValueError as in `Entry.read`, ValueError for damaged ones."""
        assert self.size is not None
        if self.size > LARGEST_FILE:
            raise ValueError(f"{self.size:,} bytes are more than the {LARGEST_FILE:,} of the largest file that is read")
        with open_regular(self.path) as file:
            file.seek(self.offset)
            header = file.read(_LOCAL.size)
            if len(header) < _LOCAL.size or not header.startswith(b"PK\3\4"):
                raise ValueError("the zip is damaged at this picture")
            *_, name, extra = _LOCAL.unpack(header)
            file.seek(self.offset + _LOCAL.size + name + extra)
            content = self._unpack(file)
        if len(content) != self.size or zlib.crc32(content) != self.checksum:
            raise ValueError("the zip is damaged in this picture")
        return content

    def _unpack(self, file: IO[bytes]) -> bytes:
        assert self.size is not None
        inflate, content, left = zlib.decompressobj(-zlib.MAX_WBITS), bytearray(), self.packed
        try:
            while left > 0 and len(content) <= self.size and (part := file.read(min(PART, left))):
                left -= len(part)
                content += inflate.decompress(part, self.size + 1 - len(content)) if self.deflated else part
        except zlib.error as error:
            raise ValueError(f"the zip is damaged in this picture ({error})") from None
        return bytes(content)


def is_zip(path: Path) -> bool:
    """Whether a file begins as a zip does."""
    try:
        with open_regular(path) as file:
            return file.read(4) in (b"PK\3\4", b"PK\5\6")
    except OSError:
        return False


def list_zip(path: Path) -> Listing:
    """All pictures of a zip, sorted by name; there may be none. Raises UserError for a damaged one."""
    found = Listing()
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except OSError as error:
        raise read_error(path, error) from error
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error, OverflowError, MemoryError) as error:
        raise UserError(f"the zip {path} is damaged or cut short ({error}); make it again") from None
    for member in members:
        name = member.filename
        if member.is_dir() or is_hidden(name):
            continue
        reason = _not_read(member)
        if reason is None:
            deflated = member.compress_type == zipfile.ZIP_DEFLATED
            entry = ZipEntry(name, path, member.header_offset, member.file_size, member.compress_size, deflated, member.CRC)
            if has_ending(name) or _begins_as_picture(entry):
                found.entries.append(entry)
            else:
                found.others.append(name)
        elif has_ending(name):
            found.skipped.append((name, reason))
        else:
            found.others.append(name)
    found.entries.sort(key=lambda entry: entry.name)
    found.skipped.sort()
    found.others.sort()
    return found


def _not_read(member: zipfile.ZipInfo) -> str | None:
    if member.flag_bits & _ENCRYPTED:
        return "encrypted in a zip"
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return "compressed in a zip by a method that is not read"
    return None


def _begins_as_picture(entry: ZipEntry) -> bool:
    try:
        return is_picture(io.BytesIO(entry.read()))
    except (OSError, ValueError):
        return False
