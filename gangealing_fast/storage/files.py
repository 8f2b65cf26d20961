# SPDX-License-Identifier: Apache-2.0
"""Files that are either complete or not there: atomic writes, JSON lines that survive a resume, pictures.

Nothing here imports torch. Every failure of the file system (disk full, permission, missing folder) becomes a
`UserError` that names the file and says what to do.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import math
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from gangealing_fast.runtime.errors import UserError

if TYPE_CHECKING:
    from numpy import ndarray
    from PIL.Image import Image
    from torch import Tensor

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}


def write_error(path: str | os.PathLike[str], error: OSError) -> UserError:
    """The sentence for an operating system error met while writing `path`."""
    path = Path(path)
    if error.errno in _FULL:
        return UserError(
            f"cannot write {path}: the disk is full; free some space and give the same command again, or choose another "
            "folder (an earlier version of the file is unchanged)"
        )
    if error.errno in _FORBIDDEN:
        return UserError(f"cannot write {path}: no permission; choose a folder you may write to")
    if error.errno == errno.ENOENT:
        return UserError(f"cannot write {path}: the folder {path.parent} does not exist; create it first")
    if error.errno == errno.ENOTDIR:
        return UserError(f"cannot write {path}: a part of {path.parent} is a file, not a folder; choose another path")
    if error.errno == errno.EISDIR:
        return UserError(f"cannot write {path}: it is a folder; give the name of a file")
    return UserError(f"cannot write {path}: {error.strerror or error}; choose another path or disk")


def read_error(path: str | os.PathLike[str], error: OSError) -> UserError:
    """The sentence for an operating system error met while reading `path`."""
    if error.errno == errno.ENOENT:
        return UserError(f"cannot read {path}: there is no such file; check the path")
    if error.errno in _FORBIDDEN:
        return UserError(f"cannot read {path}: no permission; make it readable for this user")
    if error.errno == errno.EISDIR:
        return UserError(f"cannot read {path}: it is a folder; give the name of a file")
    return UserError(f"cannot read {path}: {error.strerror or error}; check the path")


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Give a binary file to write; `path` gets its content in one step when the block ends, or keeps the old content.

    The content goes to a hidden temporary file in the same folder, is flushed to the disk, then renamed. The temporary
    name is fixed, so that what a killed run leaves behind is overwritten by the next write instead of piling up.

    Raises:
        UserError: the folder is missing, not writable, or the disk is full; the old file stays and the temporary goes.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        # An OSError about some other file was not caused by this write: it keeps its own name.
        if isinstance(error, OSError) and error.filename in (None, str(temporary), str(path)):
            raise write_error(path, error) from error
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make a rename durable where the system lets a folder be flushed (not on Windows)."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def make_folder(path: str | os.PathLike[str]) -> Path:
    """Create the folder and its parents where missing; a `UserError` says why that is not possible."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise UserError(f"cannot use {folder} as a folder: a file of that name exists; choose another name") from error
    except OSError as error:
        raise write_error(folder, error) from error
    return folder


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Write `content` atomically."""
    with atomic_write(path) as file:
        file.write(content)


def write_text(path: str | os.PathLike[str], content: str) -> None:
    """Write `content` atomically as UTF-8 with the line ends it has; what is no character (a name's byte) is written out."""
    write_bytes(path, content.encode("utf-8", "backslashreplace"))


def json_bytes(value: Any) -> bytes:
    """`value` as one line of JSON; numbers that are not finite become null."""
    return json.dumps(_finite(value), allow_nan=False).encode()


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` atomically as indented JSON; numbers that are not finite become null."""
    write_text(path, json.dumps(_finite(value), indent=2, allow_nan=False) + "\n")


def open_regular(path: str | os.PathLike[str]) -> IO[bytes]:
    """Open a file to read it. Raises OSError for what is no file: a pipe would keep the reader waiting, a device may never end."""
    # Opening a pipe without this flag waits for somebody who writes to it. On a file it changes nothing.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "it is a pipe, a socket or a device, not a file", str(path))
        return os.fdopen(descriptor, "rb", buffering=0)
    except BaseException:
        os.close(descriptor)
        raise


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """The content of a file, or a `UserError`."""
    try:
        with open_regular(path) as file:
            return file.read()
    except OSError as error:
        raise read_error(path, error) from error
    except MemoryError:
        raise UserError(f"cannot read {path}: it is larger than the memory; give another file") from None


def read_json(path: str | os.PathLike[str]) -> Any:
    """The value of a JSON file, or a `UserError`."""
    try:
        return json.loads(read_bytes(path))
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        raise UserError(f"cannot read {path}: it is not valid JSON ({error}); delete it or restore it") from error


def _finite(value: Any) -> Any:
    """`value` with NaN and infinities replaced by None: JSON has no word for them."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


class JsonLines:
    """One JSON object per line, appended while a run goes on.

    Args:
        path: the file.
        resume_step: None starts a new file. A number N keeps the lines up to and including step N and drops what an
            interrupted run wrote after its last checkpoint, an unfinished last line included, so that a resumed run's
            file equals that of an uninterrupted one.
    """

    def __init__(self, path: str | os.PathLike[str], resume_step: int | None = None) -> None:
        self.path = Path(path)
        kept: list[bytes] = []
        if resume_step is not None and self.path.exists():
            for line in read_bytes(self.path).splitlines(keepends=True):
                record = _parse_line(line)
                if record is None or record.get("step", -1) > resume_step:
                    break
                kept.append(line)
        write_bytes(self.path, b"".join(kept))
        try:
            self._file = open(self.path, "ab")  # noqa: SIM115 - lives as long as the object
        except OSError as error:
            raise write_error(self.path, error) from error

    def append(self, record: dict[str, Any]) -> None:
        """Add one line and hand it to the operating system; non-finite numbers become null."""
        line = json.dumps(_finite(record), allow_nan=False) + "\n"
        try:
            self._file.write(line.encode("utf-8"))
            self._file.flush()
        except OSError as error:
            raise write_error(self.path, error) from error

    def close(self) -> None:
        """Close the file; nothing may be appended afterwards."""
        try:
            self._file.close()
        except OSError as error:
            raise write_error(self.path, error) from error

    def __enter__(self) -> JsonLines:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _parse_line(line: bytes) -> dict[str, Any] | None:
    """The record of a complete line, else None."""
    if not line.endswith(b"\n"):
        return None
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    is_record = isinstance(record, dict) and isinstance(record.get("step", -1), (int, float))
    return record if is_record else None


def read_json_lines(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The complete records of a JSON-lines file, up to the first unreadable line; [] where there is no file."""
    if not Path(path).exists():
        return []
    records = []
    for line in read_bytes(path).splitlines(keepends=True):
        record = _parse_line(line)
        if record is None:
            break
        records.append(record)
    return records


def to_picture(values: Image | Tensor | ndarray) -> Image:
    """A PIL picture of another, of a uint8 array `[H, W]` or `[H, W, 3]`, or of a tensor `[3, H, W]` or `[1, H, W]`
    that is uint8 or floating in [-1, 1] (values outside are clipped)."""
    import numpy
    from PIL import Image

    if isinstance(values, Image.Image):
        return values
    if hasattr(values, "detach"):
        tensor = values.detach().cpu()
        if tensor.is_floating_point():
            tensor = tensor.float().add(1).mul(127.5).round().clamp(0, 255)
        values = tensor.numpy().astype(numpy.uint8).transpose(1, 2, 0)
    array = numpy.asarray(values)
    if array.dtype != numpy.uint8 or array.ndim not in (2, 3):
        raise TypeError(
            f"a picture must be a uint8 array [H, W] or [H, W, 3] or a tensor [3, H, W], got {array.dtype} "
            f"of shape {list(array.shape)}"
        )
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    return Image.fromarray(numpy.ascontiguousarray(array))


def picture_bytes(values: Image | Tensor | ndarray, *, file_format: str = "png", quality: int = 92) -> bytes:
    """The encoded file of a picture (see `to_picture`); `quality` is for jpeg and webp only."""
    buffer = io.BytesIO()
    options: dict[str, Any] = {} if file_format.lower() == "png" else {"quality": quality}
    to_picture(values).save(buffer, format="jpeg" if file_format.lower() == "jpg" else file_format, **options)
    return buffer.getvalue()


def save_picture(path: str | os.PathLike[str], values: Image | Tensor | ndarray) -> None:
    """Write a picture (see `to_picture`) atomically, in the format that the name's ending says: .png, .jpg or .webp.

    Raises:
        UserError: another ending, or the file cannot be written.
    """
    ending = Path(path).suffix.lower().lstrip(".")
    if ending not in ("png", "jpg", "jpeg", "webp"):
        raise UserError(f"cannot write the picture {path}: its name must end in .png, .jpg or .webp")
    write_bytes(path, picture_bytes(values, file_format=ending))
