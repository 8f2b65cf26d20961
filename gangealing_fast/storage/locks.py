# SPDX-License-Identifier: Apache-2.0
"""A lock on a results folder or file while a command writes there, which a killed command cannot leave behind.

The lock is a file that says who holds it, and that is locked (flock) by its holder. The system gives the lock back when the holder
ends, however it ends. What a killed holder leaves is a file that nobody has locked. It is taken over, unless it was written on
another machine: on some network disks a lock does not reach from one machine to another.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gangealing_fast.runtime.errors import UserError
from gangealing_fast.runtime.text import printable
from gangealing_fast.storage.files import write_error

try:
    import fcntl
except ImportError:  # Windows: the file alone says who holds it
    fcntl = None  # type: ignore[assignment]


def lock_path(path: Path) -> Path:
    """Where the lock of a results folder, or of a file, lies: hidden, in the folder itself or beside the file."""
    return path / ".lock" if path.is_dir() else path.with_name(f".{path.name}.lock")


@contextlib.contextmanager
def locked(path: Path, command: str) -> Iterator[None]:
    """Hold the lock of `path`, a folder that exists or a file that may.

    Raises UserError if another process holds it, or if one on another machine may.
    """
    place = lock_path(path)
    descriptor = _take(path, place)
    try:
        about = {"command": command, **_here(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(about).encode(), 0)
    except OSError as error:
        os.close(descriptor)
        raise write_error(place, error) from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            place.unlink()
        os.close(descriptor)


def _take(path: Path, place: Path) -> int:
    """The descriptor of the lock's file, locked. Raises UserError if it cannot be had."""
    while True:
        try:
            descriptor = os.open(place, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o644)
        except OSError as error:
            raise write_error(place, error) from error
        try:
            sure = _flock(descriptor)
            holder = _holder(descriptor)
            if sure is False or (holder is not None and not _is_over(holder, sure is not None)):
                raise UserError(_in_use(path, place, holder or {}, sure is False))
            # Whoever held it before may have removed the file between our opening and our locking of it.
            if _same_file(descriptor, place):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _flock(descriptor: int) -> bool | None:
    """Whether the file could be locked; None if this system or disk has no such locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _same_file(descriptor: int, place: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(place))
    except FileNotFoundError:
        return False


def _here() -> dict[str, Any]:
    """Which process this is, on which machine. Containers of one machine have names of their own, but one start of the kernel."""
    boot = ""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return {"pid": os.getpid(), "host": socket.gethostname(), "boot": boot}


def _holder(descriptor: int) -> dict[str, Any] | None:
    """What the lock's file says about who holds or held it; None if it is new or says nothing."""
    try:
        found = json.loads(os.pread(descriptor, 4096, 0))
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _is_over(holder: dict[str, Any], locks_work: bool) -> bool:
    """Whether a lock that nobody has locked was left behind by a process that is gone."""
    here = _here()
    if holder.get("host") != here["host"] and (not here["boot"] or holder.get("boot") != here["boot"]):
        return False
    return locks_work or not _is_alive(holder.get("pid"))


def _is_alive(pid: object) -> bool:
    if not isinstance(pid, int) or pid < 1:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _in_use(path: Path, place: Path, holder: dict[str, Any], sure: bool) -> str:
    who = f"process {holder.get('pid', '?')} on {printable(holder.get('host', '?'))}"
    doing = f"({printable(holder.get('command', '?'))}, since {printable(holder.get('since', '?'))})"
    if sure or holder.get("host") == socket.gethostname():
        return f"{path} is in use by {who} {doing}; wait for it to end, or choose another --out"
    return f"{path} was left in use by {who} {doing}; if that process is gone, delete {place}, else choose another --out"
