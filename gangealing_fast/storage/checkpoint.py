# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: one format, written atomically, read without running code.

A checkpoint is a torch zip file holding `{"format": "gangealing_fast", "version": 1, "kind": ..., "state": {...}}`. The
state is built of tensors, numbers, strings, booleans, None, lists, tuples and dictionaries only, so that it loads with
`weights_only=True` too. A results folder keeps the newest (`checkpoint.pt`) and the one before (`checkpoint.previous.pt`).
Weights that are shipped go into safetensors files instead (`storage.exports`).
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import torch

from gangealing_fast.runtime.errors import UserError
from gangealing_fast.storage.files import atomic_write, read_bytes, read_error
from gangealing_fast.storage.pickles import Refused
from gangealing_fast.storage.torch_files import Damaged, NoPickle, numbers_in, read_torch_file, tensors_in

FORMAT = "gangealing_fast"
VERSION = 1
NEWEST = "checkpoint.pt"
PREVIOUS = "checkpoint.previous.pt"
_ZIP = b"PK\x03\x04"

_PLAIN = (type(None), bool, int, float, str, bytes, torch.Tensor, torch.dtype, torch.Size)


def _check_plain(value: object, place: str) -> None:
    """Refuse what `load` could not read back, by its place in the state."""
    if type(value).__module__ == "numpy" or not isinstance(value, (*_PLAIN, list, tuple, Mapping)):
        raise TypeError(
            f"a checkpoint cannot hold {place} of type {type(value).__name__}: make it a tensor, number, string, list or dict"
        )
    if isinstance(value, Mapping):
        for key, item in value.items():
            if isinstance(key, (tuple, torch.Tensor)):
                raise TypeError(
                    f"a checkpoint cannot hold {place} with a key of type {type(key).__name__}: make it a string or number"
                )
            _check_plain(key, f"a key of {place}")
            _check_plain(item, f"{place}[{key!r}]")
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            _check_plain(item, f"{place}[{index}]")


def save(path: str | os.PathLike[str], state: Mapping[str, Any], *, kind: str) -> None:
    """Write `state` to `path` in one step: the file is complete, or what was there before stays.

    Args:
        path: the file; its folder must exist.
        state: tensors and plain Python values, nested in dicts and lists.
        kind: what the state belongs to, for example "pretrain" or "train"; `load` compares it.

    Raises:
        UserError: the disk is full, or the folder is missing or read-only.
        TypeError: the state holds something that could not be loaded again.
    """
    _check_plain(state, "state")
    with atomic_write(path) as file:
        _dump({"format": FORMAT, "version": VERSION, "kind": kind, "state": dict(state)}, file)


class _Writer:
    """Passes writes on and keeps the OSError of a failed one: torch's zip writer reports only that something failed."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, content: bytes | memoryview) -> int:
        try:
            return self.file.write(content)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


def _dump(content: dict[str, Any], file: IO[bytes]) -> None:
    writer = _Writer(file)
    try:
        # The annotation asks for a whole IO[bytes]; the documentation, for an object with write and flush.
        torch.save(content, writer)  # type: ignore[arg-type]
    except Exception:
        if writer.error is not None:
            raise writer.error from None
        raise


def load(path: str | os.PathLike[str], *, kind: str | None = None) -> dict[str, Any]:
    """The state that `save` wrote, on the CPU; no code in the file is run.

    Args:
        path: the file.
        kind: the kind expected, or None for any.

    Raises:
        UserError: missing, truncated, corrupt, not a checkpoint of this package, of another version or another kind, or with
            values that are not finite.
    """
    header = _read(Path(path))
    if kind is not None and header["kind"] != kind:
        raise UserError(
            f"{path} is a checkpoint of kind '{header['kind']}', but one of kind '{kind}' is needed here; "
            f"give the checkpoint that '{kind}' wrote"
        )
    name = not_finite(header["state"])
    if name is not None:
        raise UserError(f"{path} holds values that are not finite ({name}), as training has diverged; {_instead(Path(path))}")
    return header["state"]


def kind_of(path: str | os.PathLike[str]) -> str:
    """The kind that a checkpoint was saved with; errors as in `load`, but values that are not finite."""
    return _read(Path(path))["kind"]


def not_finite(state: Mapping[str, Any]) -> str | None:
    """The name of a tensor in `state` with values that are not finite, or of a number that is NaN; None if there is none.

    A number may be infinite: the best score before there is one, for example.
    """
    for name, tensor in tensors_in(state):
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            return name
    return next((name for name, value in numbers_in(state) if math.isnan(value)), None)


def _instead(path: Path) -> str:
    """What to do about a checkpoint that cannot be used."""
    beside = path.with_name(PREVIOUS)
    if path.name == NEWEST and beside.exists():
        return f"use {PREVIOUS} beside it or start anew"
    return "give another file or start anew"


def _read(path: Path) -> dict[str, Any]:
    foreign = f"{path} is not a checkpoint of gangealing_fast; give a file that one of its commands wrote"
    try:
        with open(path, "rb") as file:
            start = file.read(4)
        if start and start != _ZIP:
            raise UserError(foreign)
        header = read_torch_file(path)
    except OSError as error:
        raise read_error(path, error) from error
    except Refused as error:
        raise UserError(f"{foreign} (it holds objects that would have to run code to load)") from error
    except NoPickle as error:
        raise UserError(foreign) from error
    except Damaged as error:
        raise UserError(f"the checkpoint {path} is truncated or corrupt ({error}); {_instead(path)}") from error
    if not isinstance(header, dict) or header.get("format") != FORMAT or not isinstance(header.get("state"), dict):
        raise UserError(foreign)
    if header.get("version") != VERSION:
        raise UserError(
            f"{path} has checkpoint version {header.get('version')}, this package reads version {VERSION}; "
            "install the release that wrote it"
        )
    if not isinstance(header.get("kind"), str):
        raise UserError(foreign)
    return header


def save_latest(folder: str | os.PathLike[str], state: Mapping[str, Any], *, kind: str) -> Path:
    """Write `folder/checkpoint.pt`, keeping the checkpoint before it as `checkpoint.previous.pt`.

    At every moment, a crash included, the folder holds at least one complete checkpoint, if it held one before.

    Returns:
        The path of the new checkpoint. Errors as in `save`; both old files then stay as they were.
    """
    _check_plain(state, "state")
    newest, previous = Path(folder) / NEWEST, Path(folder) / PREVIOUS
    with atomic_write(newest) as file:
        _dump({"format": FORMAT, "version": VERSION, "kind": kind, "state": dict(state)}, file)
        if newest.exists():
            file.flush()
            os.fsync(file.fileno())
            _keep_as(newest, previous)
    return newest


def _keep_as(newest: Path, previous: Path) -> None:
    """Give the newest file the previous one's name too, without a moment in which `newest` is missing."""
    second = previous.with_name(f".{previous.name}.tmp")
    with contextlib.suppress(FileNotFoundError):
        second.unlink()
    try:
        os.link(newest, second)
    except OSError:  # a file system without hard links: `newest` is missing until the new one is renamed
        os.replace(newest, previous)
        return
    os.replace(second, previous)


def keep_newest(folder: str | os.PathLike[str], name: str) -> Path:
    """Give the newest checkpoint of a results folder a second name, which no later checkpoint takes; returns its path.

    Raises UserError if the file cannot be written.
    """
    newest, kept = Path(folder) / NEWEST, Path(folder) / name
    second = kept.with_name(f".{name}.tmp")
    with contextlib.suppress(FileNotFoundError):
        second.unlink()
    try:
        os.link(newest, second)
        os.replace(second, kept)
    except OSError:  # a file system without hard links
        with atomic_write(kept) as file:
            file.write(read_bytes(newest))
    return kept


def load_latest(folder: str | os.PathLike[str], *, kind: str | None = None, say: Callable[[str], None] = print) -> dict[str, Any]:
    """The state of `folder/checkpoint.pt`, or of `checkpoint.previous.pt` if the newest is missing, damaged or not finite.

    Args:
        folder: a results folder.
        kind: as in `load`.
        say: called with one sentence if the previous checkpoint had to be used.

    Raises:
        UserError: no checkpoint there, or neither can be used.
    """
    newest, previous = Path(folder) / NEWEST, Path(folder) / PREVIOUS
    if not newest.exists() and not previous.exists():
        raise UserError(f"there is no {NEWEST} in {folder}; give the results folder of an earlier run, or start a new run")
    try:
        return load(newest, kind=kind)
    except UserError as error:
        if not previous.exists():
            raise
        try:
            state = load(previous, kind=kind)
        except UserError as second:
            reasons = f"{_reason(newest, error)}; {_reason(previous, second)}"
            raise UserError(f"no checkpoint in {folder} can be used ({reasons}); start a new run in another folder") from None
        say(f"{newest} cannot be used ({_reason(newest, error)}): going on from {previous.name}")
        return state


def _reason(path: Path, error: UserError) -> str:
    """Why a checkpoint cannot be used, without the advice that follows."""
    return str(error).rpartition("; ")[0].replace(str(path), path.name) if path.exists() else f"{path.name} is missing"


def has_checkpoint(folder: str | os.PathLike[str]) -> bool:
    """Whether `load_latest` would find a file to try."""
    return (Path(folder) / NEWEST).exists() or (Path(folder) / PREVIOUS).exists()
