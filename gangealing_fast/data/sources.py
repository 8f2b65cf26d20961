# SPDX-License-Identifier: Apache-2.0
"""Where encoded pictures lie: folders, tars, folders of tar shards. Lists names and reads bytes; decodes nothing."""

from __future__ import annotations

import os
import tarfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from gangealing_fast.data.decoding import ENDINGS
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.storage.files import read_error


@dataclass(frozen=True)
class Entry:
    """One encoded picture: `size` bytes at `offset` of the file `path` (a tar member), or all of it (`size` None)."""

    name: str
    path: Path
    offset: int = 0
    size: int | None = None

    def read(self) -> bytes:
        """The encoded bytes; OSError where the file cannot be read, ValueError where a tar ends too early."""
        with open(self.path, "rb", buffering=0 if self.size is not None else -1) as file:
            if self.size is None:
                return file.read()
            file.seek(self.offset)
            content = bytearray()
            while len(content) < self.size:
                part = file.read(self.size - len(content))
                if not part:
                    raise ValueError("the tar ends inside this picture")
                content += part
            return bytes(content)


def _is_picture(name: str) -> bool:
    parts = PurePosixPath(name).parts
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts if part not in (".", ".."))
    return not hidden and PurePosixPath(name).suffix.lower() in ENDINGS


def list_entries(path: str | os.PathLike[str]) -> list[Entry]:
    """All pictures of a folder (with its subfolders), of a .tar, or of a folder of .tar shards, sorted by name.

    Hidden files and files that are no pictures by their ending are left out.

    Raises:
        UserError: missing, neither a folder nor a tar, a compressed or damaged tar, or no picture in it.
    """
    path = Path(path)
    if path.is_dir():
        entries = _list_folder(path)
        shards = sorted(path.glob("*.tar"))
        if not entries and shards:
            entries = [entry for shard in shards for entry in _list_tar(shard)]
        if not entries:
            kinds = ", ".join(sorted(ending.lstrip(".") for ending in ENDINGS))
            raise UserError(
                f"the folder {path} {'is empty' if not any(path.iterdir()) else 'has no pictures in it'}; "
                f"give a folder with pictures ({kinds}) or .tar files"
            )
        return entries
    if not path.exists():
        raise UserError(f"there is no file or folder {path}; give a folder of pictures, a .tar or an MNIST images file")
    entries = _list_tar(path)
    if not entries:
        raise UserError(f"the tar {path} has no pictures in it; give one with .png, .jpg or other picture files")
    return entries


def _list_folder(folder: Path) -> list[Entry]:
    names: list[str] = []

    def refuse(error: OSError) -> None:
        raise read_error(error.filename or folder, error) from error

    for root, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if len(Path(root).relative_to(folder).parts) > 32:
            raise UserError(f"the folder {folder} is nested more than 32 levels deep; is there a link to itself in it?")
        names += [(Path(root) / name).relative_to(folder).as_posix() for name in files]
    return [Entry(name, folder / name) for name in sorted(names) if _is_picture(name)]


def _list_tar(path: Path) -> list[Entry]:
    entries = []
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                if member.isreg() and _is_picture(member.name):
                    entries.append(Entry(member.name, path, member.offset_data, member.size))
    except tarfile.ReadError as error:
        if entries:
            raise UserError(f"the tar {path} is truncated or damaged after {len(entries)} pictures; make it again") from error
        raise UserError(
            f"{path} is neither a folder, nor an uncompressed .tar, nor an MNIST images file; unpack it first if it is compressed"
        ) from error
    except tarfile.TarError as error:
        raise UserError(f"the tar {path} is damaged ({error}); make it again") from error
    except OSError as error:
        raise read_error(path, error) from error
    return sorted(entries, key=lambda entry: entry.name)
