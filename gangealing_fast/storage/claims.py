# SPDX-License-Identifier: Apache-2.0
"""Who may write where: a results folder is new, empty, or the command's own, and used by one command at a time.

Every results folder has a `config.json`: {"command": ..., "options": ...}. A command that trains resumes its own folder
(`storage.runs`). Every other command replaces what it wrote there before once its new results are complete, and says so. A file is
replaced only if that was asked for.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gangealing_fast.runtime.errors import UserError
from gangealing_fast.runtime.ranges import check_ranges
from gangealing_fast.runtime.text import printable
from gangealing_fast.storage.files import make_folder, read_json, write_error, write_text
from gangealing_fast.storage.locks import locked

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

RECORD = "config.json"
BEGUN, COMPLETE = ".begun", ".complete"
"""Hidden folders for results that are to replace earlier ones: while they are made, and while they take their places."""


class Record(NamedTuple):
    """What a results folder says about itself. changes: what resuming changed of the options, in order."""

    command: str
    options: dict[str, Any]
    changes: list[dict[str, Any]]


def plain(config: DataclassInstance) -> dict[str, Any]:
    """A configuration dataclass as plain JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def read_record(folder: Path) -> Record | None:
    """The record of a results folder; None if it has none. Raises UserError if `config.json` is something else."""
    path = folder / RECORD
    if not path.exists():
        return None
    try:
        found = read_json(path)
    except (UserError, RecursionError):
        found = None
    if isinstance(found, dict) and isinstance(found.get("command"), str) and isinstance(found.get("options"), dict):
        changes = found.get("changes", [])
        if isinstance(changes, list) and all(isinstance(c, dict) and c.keys() >= {"option", "from", "to"} for c in changes):
            return Record(found["command"], found["options"], changes)
    raise UserError(f"{path} is not a run's configuration; choose another --out or delete the folder")


def write_record(folder: Path, command: str, config: DataclassInstance) -> None:
    """Make `folder` the command's own."""
    rewrite_record(folder, Record(command, plain(config), []))


def rewrite_record(folder: Path, record: Record) -> None:
    """Write a folder's record; one without changes does not mention them."""
    content = {"command": record.command, "options": record.options} | ({"changes": record.changes} if record.changes else {})
    write_text(folder / RECORD, json.dumps(content, indent=1) + "\n")


def keep_apart(out: Path, pictures: Mapping[str, Path | None]) -> None:
    """Raise UserError if results would land among the pictures that are read: they would be taken for pictures later.

    pictures: what is read, by the option that names it.
    """
    for option, path in pictures.items():
        if path is None or not path.exists():
            continue
        read, written = path.resolve(), out.resolve()
        if written == read or (path.is_dir() and read in written.parents):
            raise UserError(
                f"--out {out} lies in {option} {path}, so that results would be mixed with what is read; choose another --out"
            )


@contextlib.contextmanager
def held(folder: Path, command: str, config: DataclassInstance, pictures: Mapping[str, Path | None]) -> Iterator[Record | None]:
    """Hold a results folder while the block runs; gives its record, None if the folder is new or empty.

    What a command that failed leaves of a folder that was new is nothing, if it wrote nothing.
    Raises UserError if the folder is another command's, holds other files, or is in use; or for an option out of its range.
    """
    check_ranges(config)
    keep_apart(folder, pictures)
    before, is_new = _judged(folder, command), not folder.exists()
    make_folder(folder)
    try:
        with locked(folder, command):
            before = _judged(folder, command)
            yield before
    except BaseException:
        if before is None:
            _leave_nothing(folder, is_new)
        raise


def _judged(folder: Path, command: str) -> Record | None:
    try:
        is_other = folder.exists() and not folder.is_dir()
        record = None if is_other else read_record(folder)
        holds = [] if is_other or not folder.exists() else [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    except OSError as error:
        raise write_error(folder, error) from None
    if is_other:
        raise UserError(f"cannot use {folder} as a folder: a file of that name exists; choose another --out")
    if record is None and holds:
        raise UserError(f"{folder} is not empty and holds no results of {command}; choose another --out or empty it")
    if record is not None and record.command != command:
        raise UserError(f"{folder} holds a run of {record.command}, not of {command}; choose another --out")
    return record


def _leave_nothing(folder: Path, is_new: bool) -> None:
    with contextlib.suppress(OSError):
        if {entry.name for entry in folder.iterdir()} <= {RECORD}:
            (folder / RECORD).unlink(missing_ok=True)
            if is_new:
                folder.rmdir()


@contextlib.contextmanager
def results_folder(
    folder: Path,
    command: str,
    config: DataclassInstance,
    writes: str,
    *,
    pictures: Mapping[str, Path | None] | None = None,
    inputs: Sequence[tuple[str, Path]] = (),
) -> Iterator[Path]:
    """Hold `folder` for results that replace those of an earlier call of the same command, and give the folder to write to.

    That is `folder` itself if it is new. If it holds earlier results, it is a hidden folder in it. When the block has ended well,
    the new results replace the earlier ones name by name, and then what is left of the earlier ones is removed. If the block fails
    or is killed, the earlier results are all there as they were.

    writes: a regular expression that the names of all files that the command writes match; no other file is removed.
    pictures: as in `keep_apart`. inputs: whatever else is read, by the option that names it. Errors as in `held`, and for an input
    that lies in the folder.
    """
    with held(folder, command, config, pictures or {}) as before:
        if before is None:
            write_record(folder, command, config)
            yield folder
            return
        _keep_inputs(folder, [*(pictures or {}).items(), *inputs])
        begun, complete = folder / BEGUN, folder / COMPLETE
        with _named(folder):
            if complete.is_dir():  # an earlier call was killed while it replaced results
                _move(complete, folder)
            if begun.exists():
                shutil.rmtree(begun)
            begun.mkdir()
            earlier = _earlier(folder, command, writes)
        try:
            write_record(begun, command, config)
            yield begun
        except BaseException:
            shutil.rmtree(begun, ignore_errors=True)
            raise
        with _named(folder):
            begun.rename(complete)
            _move(complete, folder)
            for entry, changed in earlier.items():
                if os.path.lexists(entry) and entry.lstat().st_mtime_ns == changed:
                    entry.unlink()


def _keep_inputs(folder: Path, inputs: Sequence[tuple[str, Path | None]]) -> None:
    for option, path in inputs:
        if path is not None and folder.resolve() in (path.resolve(), *path.resolve().parents):
            raise UserError(f"{option} {path} lies in --out {folder}, whose files are replaced; choose another --out")


@contextlib.contextmanager
def _named(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise write_error(error.filename or folder, error) from error


def _earlier(folder: Path, command: str, writes: str) -> dict[Path, int]:
    """The files of an earlier call, each with the time of its last change, so that none is removed that was written since."""
    old = [entry for entry in folder.iterdir() if re.fullmatch(writes, entry.name, re.DOTALL) and not entry.is_dir()]
    if old:
        what = f"{len(old)} files of an earlier {command} are" if len(old) > 1 else f"a file of an earlier {command} is"
        print(f"{printable(folder)}: {what} replaced once the new results are complete")
    return {entry: entry.lstat().st_mtime_ns for entry in old}


def _move(source: Path, target: Path) -> None:
    """Move what lies in the folder `source` into `target`, file by file, and remove `source`. It may be called again if killed."""
    for entry in sorted(source.iterdir()):
        if entry.is_dir() and not entry.is_symlink():
            (target / entry.name).mkdir(exist_ok=True)
            _move(entry, target / entry.name)
        else:
            entry.replace(target / entry.name)
    source.rmdir()


@contextlib.contextmanager
def results_file(
    path: Path, command: str, config: DataclassInstance, *, overwrite: bool, inputs: Sequence[tuple[str, Path]]
) -> Iterator[Path]:
    """Hold a file that the block writes, in a folder that is made where missing.

    Raises UserError if it exists and is not to be replaced, is one of the files that are read (`inputs`, by option), or is in use;
    or for an option out of its range.
    """
    check_ranges(config)
    for option, read in inputs:
        if read.exists() and path.exists() and path.samefile(read):
            raise UserError(f"--out {path} is {option} itself; choose another --out")
    _check_replaceable(path, overwrite)
    make_folder(path.parent)
    with locked(path, command):
        _check_replaceable(path, overwrite)
        if path.exists():
            print(f"{printable(path)} is replaced")
        yield path


def _check_replaceable(path: Path, overwrite: bool) -> None:
    if path.is_dir():
        raise UserError(f"cannot write {path}: it is a folder; give the name of a file")
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists already; give another name, or --overwrite to replace it")
