# SPDX-License-Identifier: Apache-2.0
"""Where encoded pictures lie: folders, tars, folders of tar shards, zips, LMDBs. Lists names; decodes nothing.

What is a picture: a file with one of the usual endings, whole or damaged, and any other file that begins as a picture does.
"""

from __future__ import annotations

import collections
import io
import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from gangealing_fast.data.decoding import ENDINGS, is_picture
from gangealing_fast.data.entries import PART, Entry, Listing, has_ending, is_hidden
from gangealing_fast.data.lmdbs import is_lmdb, list_lmdb
from gangealing_fast.data.tars import Member, read_members
from gangealing_fast.data.zips import is_zip, list_zip
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.runtime.text import printable
from gangealing_fast.storage.files import open_regular, read_error

_DEEPEST = 32


def others_summary(others: Sequence[str]) -> str:
    """How many files are no pictures, by their endings, and the first of them."""
    endings = collections.Counter(PurePosixPath(name).suffix.lower() or "no ending" for name in others)
    kinds = ", ".join(f"{count} {printable(ending)}" for ending, count in endings.most_common(5))
    rest = ", ..." if len(endings) > 5 else ""
    are = "files are no pictures" if len(others) != 1 else "file is no picture"
    return f"{len(others)} other {are} and left out ({kinds}{rest}; first: {printable(others[0])})"


def list_entries(path: str | os.PathLike[str]) -> Listing:
    """All pictures of a folder (with its subfolders), a .tar, a folder of .tar shards, a .zip or an LMDB, sorted by name.

    Hidden files are left out.

    Raises:
        UserError: missing, nothing of these, a compressed or damaged archive, or no picture in it.
    """
    path = Path(path)
    if is_lmdb(path):
        return list_lmdb(path)
    if path.is_dir():
        found = _list_folder(path)
        return found if found.entries else _list_shards(path, found)
    if not path.exists():
        raise UserError(f"there is no file or folder {path}; give a folder of pictures, a .tar, a .zip or an MNIST images file")
    zipped = is_zip(path)
    found = list_zip(path) if zipped else list_tar(path)
    if not found.entries:
        raise UserError(
            f"the {'zip' if zipped else 'tar'} {path} has no pictures in it; give one with .png, .jpg or other picture files"
        )
    return found


def _list_folder(folder: Path) -> Listing:
    """Iterative: a folder may be nested deeper than Python's calls."""
    found = Listing()
    pending: list[tuple[str, int, tuple[tuple[int, int], ...]]] = [("", 0, (_identity(folder),))]
    while pending:
        below, depth, above = pending.pop()
        try:
            with os.scandir(folder / below) as items:
                entries = [item for item in items if not is_hidden(item.name)]
        except OSError as error:
            if not below:
                raise read_error(folder, error) from error
            found.skipped.append((below, f"the folder cannot be read ({error.strerror or error})"))
            continue
        for item in entries:
            name = f"{below}/{item.name}" if below else item.name
            if not _is_folder(item):
                _sort_in(found, Entry(name, folder / name))
            elif item.is_symlink() and _identity(folder / name) in above:
                found.skipped.append((name, "a link to a folder that it lies in"))
            elif depth >= _DEEPEST:
                found.skipped.append((name, f"a folder nested more than {_DEEPEST} levels deep"))
            else:
                pending.append((name, depth + 1, (*above, _identity(folder / name))))
    return _sorted(found)


def _identity(folder: Path) -> tuple[int, int]:
    try:
        about = folder.stat()
    except OSError:
        return (-1, -1)
    return about.st_dev, about.st_ino


def _is_folder(item: os.DirEntry[str]) -> bool:
    try:
        return item.is_dir()
    except OSError:  # a link to itself
        return False


def _sort_in(found: Listing, entry: Entry) -> None:
    """A file or tar member among the pictures, or among the rest."""
    if has_ending(entry.name):
        found.entries.append(entry)
        return
    try:
        with open_regular(entry.path) as file:
            file.seek(entry.offset)
            if entry.size is None:
                picture = is_picture(file)
            else:
                picture = is_picture(io.BytesIO(file.read(min(entry.size, PART // 16))))
    except (OSError, ValueError, OverflowError):
        picture = False
    if picture:
        found.entries.append(entry)
    else:
        found.others.append(entry.name)


def _sorted(found: Listing) -> Listing:
    found.entries.sort(key=lambda entry: entry.name)
    found.skipped.sort()
    found.others.sort()
    return found


def shards_of(folder: Path) -> list[Path]:
    """The .tar files of a folder, sorted by name; [] if it is none."""
    return sorted(path for path in folder.glob("*.tar") if not is_hidden(path.name)) if folder.is_dir() else []


def _list_shards(folder: Path, among: Listing) -> Listing:
    """The pictures in a folder's .tar files; `among` is what else lies in the folder (.json files beside tars describe them)."""
    shards = shards_of(folder)
    names = {path.name for path in shards}
    described = [name for name in among.others if name not in names and not (shards and name.endswith(".json"))]
    found = Listing([], list(among.skipped), described)
    for shard in shards:
        part = list_tar(shard)
        found.entries += part.entries
        found.skipped += part.skipped
        found.others += part.others
    if not found.entries:
        kinds = ", ".join(sorted(ending.lstrip(".") for ending in ENDINGS))
        empty = "is empty" if not any(folder.iterdir()) else "has no pictures in it"
        about = f" ({others_summary(found.others)})" if found.others else ""
        raise UserError(f"the folder {folder} {empty}{about}; give a folder with pictures ({kinds}, ...) or .tar files")
    return found


def list_tar(path: Path) -> Listing:
    """All pictures of a tar; there may be none. Raises UserError for another file, or a damaged one."""
    found, places = Listing(), dict[str, Member]()
    try:
        members, note = read_members(path)
    except OSError as error:
        raise read_error(path, error) from error
    for member in members:
        if is_hidden(member.name):
            continue
        target = places.get(member.link, member) if member.link is not None else member
        if target.reason is None:
            places[member.name] = target
            _sort_in(found, Entry(member.name, path, target.offset, target.size))
        elif has_ending(member.name):
            found.skipped.append((member.name, target.reason))
        else:
            found.others.append(member.name)
    if note:
        found.skipped.append((path.name, note))
    return _sorted(found)
