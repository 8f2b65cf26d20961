# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: one format, written atomically, read without running code.

A checkpoint is a torch zip file holding `{"format": "gangealing_fast", "version": 1, "kind": ..., "state": {...}}`. The
state is built of tensors, numbers, strings, booleans, None, lists, tuples and dictionaries only, so that it loads with
`weights_only=True`. A results folder keeps the newest (`checkpoint.pt`) and the one before (`checkpoint.previous.pt`).
Weights that are shipped go into safetensors files instead (`export_safetensors`).
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import torch

from gangealing_fast.runtime.errors import UserError
from gangealing_fast.storage.files import atomic_write, read_bytes, read_error

FORMAT = "gangealing_fast"
VERSION = 1
NEWEST = "checkpoint.pt"
PREVIOUS = "checkpoint.previous.pt"

_PLAIN = (type(None), bool, int, float, str, bytes, torch.Tensor, torch.dtype, torch.Size)


def _check_plain(value: object, place: str) -> None:
    """Refuse what `weights_only=True` could not read back, by its place in the state."""
    if type(value).__module__ == "numpy" or not isinstance(value, (*_PLAIN, list, tuple, Mapping)):
        raise TypeError(
            f"a checkpoint cannot hold {place} of type {type(value).__name__}: make it a tensor, number, string, list or dict"
        )
    if isinstance(value, Mapping):
        for key, item in value.items():
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


def load(path: str | os.PathLike[str], *, kind: str | None = None, map_location: torch.device | str = "cpu") -> dict[str, Any]:
    """The state that `save` wrote; no code in the file is run.

    Args:
        path: the file.
        kind: the kind expected, or None for any.
        map_location: as in `torch.load`.

    Raises:
        UserError: missing, truncated, corrupt, not a checkpoint of this package, of another version or another kind.
    """
    header = _read(Path(path), map_location)
    if kind is not None and header["kind"] != kind:
        raise UserError(
            f"{path} is a checkpoint of kind '{header['kind']}', but one of kind '{kind}' is needed here; "
            f"give the checkpoint that '{kind}' wrote"
        )
    return header["state"]


def kind_of(path: str | os.PathLike[str]) -> str:
    """The kind that a checkpoint was saved with; errors as in `load`."""
    return _read(Path(path), "cpu")["kind"]


def _read(path: Path, map_location: torch.device | str) -> dict[str, Any]:
    damaged = f"the checkpoint {path} is truncated or corrupt; use {PREVIOUS} beside it or start anew"
    foreign = f"{path} is not a checkpoint of gangealing_fast; give a file that one of its commands wrote"
    try:
        with open(path, "rb") as file:
            start = file.read(4)
        if start != b"PK\x03\x04":
            raise UserError(damaged if not start else foreign)
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:  # torch itself does not compare the tensors' checksums
                raise UserError(damaged)
            if not any(name.endswith("data.pkl") for name in archive.namelist()):
                raise UserError(foreign)
        header = torch.load(path, map_location=map_location, weights_only=True)
    except OSError as error:
        raise read_error(path, error) from error
    except pickle.UnpicklingError as error:
        raise UserError(f"{foreign} (it holds objects that would have to run code to load)") from error
    except (zipfile.BadZipFile, RuntimeError, EOFError, ValueError, KeyError, NotImplementedError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(damaged) from error
    if not isinstance(header, dict) or header.get("format") != FORMAT or not isinstance(header.get("state"), dict):
        raise UserError(foreign)
    if header.get("version") != VERSION:
        raise UserError(
            f"{path} has checkpoint version {header.get('version')}, this package reads version {VERSION}; "
            "install the release that wrote it"
        )
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


def load_latest(
    folder: str | os.PathLike[str],
    *,
    kind: str | None = None,
    map_location: torch.device | str = "cpu",
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """The state of `folder/checkpoint.pt`, or of `checkpoint.previous.pt` where the newest is missing or damaged.

    Args:
        folder: a results folder.
        kind: as in `load`.
        map_location: as in `torch.load`.
        say: called with one sentence when the previous checkpoint had to be used.

    Raises:
        UserError: no checkpoint there, or neither can be used.
    """
    newest, previous = Path(folder) / NEWEST, Path(folder) / PREVIOUS
    if not newest.exists() and not previous.exists():
        raise UserError(f"there is no {NEWEST} in {folder}; give the results folder of an earlier run, or start a new run")
    try:
        return load(newest, kind=kind, map_location=map_location)
    except UserError as error:
        if not previous.exists():
            raise
        try:
            state = load(previous, kind=kind, map_location=map_location)
        except UserError:
            raise error from None
        say(
            f"{newest} cannot be used ({'missing' if not newest.exists() else 'truncated or corrupt'}): "
            f"going on from {previous.name}"
        )
        return state


def has_checkpoint(folder: str | os.PathLike[str]) -> bool:
    """Whether `load_latest` would find a file to try."""
    return (Path(folder) / NEWEST).exists() or (Path(folder) / PREVIOUS).exists()


def export_safetensors(
    path: str | os.PathLike[str], tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any], *, half: bool = False
) -> None:
    """Write weights to ship: tensors and a JSON configuration, in one safetensors file.

    Args:
        path: the file, named `*.safetensors`.
        tensors: a state dict; stored on the CPU, contiguous.
        config: JSON values only (what is needed to build the model, data, steps, score).
        half: store floating tensors in float16 (values beyond its range raise ValueError).

    Raises:
        UserError: the file cannot be written.
    """
    from safetensors.torch import save as serialise

    stored: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu()
        if half and tensor.is_floating_point():
            narrow = tensor.half()
            if not torch.equal(torch.isfinite(narrow), torch.isfinite(tensor)):
                raise ValueError(f"tensor {name} does not fit into half precision (largest value {tensor.abs().max():.3g})")
            tensor = narrow
        stored[name] = tensor.contiguous().clone()  # safetensors refuses tensors that share memory
    metadata = {"format": "pt", "producer": FORMAT, "config": json.dumps(dict(config), sort_keys=True, allow_nan=False)}
    content = serialise(stored, metadata=metadata)
    with atomic_write(path) as file:
        file.write(content)


def load_safetensors(
    path: str | os.PathLike[str], *, dtype: torch.dtype | None = torch.float32
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors and configuration that `export_safetensors` wrote.

    Args:
        path: the file.
        dtype: floating tensors are converted to it; None keeps them as stored.

    Returns:
        `(tensors, config)`; `config` is {} where a foreign file has none.

    Raises:
        UserError: missing, truncated or not a safetensors file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load as deserialise

    content = read_bytes(path)
    try:
        tensors = deserialise(content)
        length = int.from_bytes(content[:8], "little")
        metadata = json.loads(content[8 : 8 + length]).get("__metadata__", {})
        config = json.loads(metadata.get("config", "{}"))
    except (SafetensorError, ValueError) as error:
        raise UserError(f"{path} is truncated or not a safetensors file; restore it or install the package again") from error
    if dtype is not None:
        tensors = {name: t.to(dtype) if t.is_floating_point() else t for name, t in tensors.items()}
    return tensors, config
