# SPDX-License-Identifier: Apache-2.0
"""Memory that a training process frees and needs again in the next step, kept instead of handed back.

glibc's malloc maps a block of more than 32 MB anew on every allocation and unmaps it when it is freed, so that the kernel
has to zero each of its pages again: for the large temporaries of a training step that costs several times the arithmetic.
Nothing here happens at import. The commands that train say so when they call `keep_large_blocks`, in their own process.
"""

from __future__ import annotations

import ctypes
import os
import sys

# mallopt's parameters, from glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_cap: int | None = None


def _libc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "gnu_get_libc_version") else None


def keep_large_blocks(cap: int | None = None) -> bool:
    """Let this process's malloc keep what is freed, whatever its size, for the next allocation.

    Concerns all of the process that allocates by malloc, torch's CPU tensors among it; CUDA memory has an allocator of its own.
    It takes a handful of allocations of each size until all are served from kept memory, and blocks of mixed sizes leave gaps.

    Args:
        cap: bytes of resident memory beyond which `trim` hands back what is free; where None half of the machine's, shared by the
            processes that torchrun started on it.

    Returns:
        Whether it was done: False where the C library is not glibc, or the system does not say how much memory it has.
    """
    global _cap
    libc = _libc()
    try:
        if cap is None:
            sharing = 2 * int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
            cap = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // sharing
    except (ValueError, OSError):
        return False
    if libc is None or not (libc.mallopt(_M_MMAP_MAX, 0) and libc.mallopt(_M_TRIM_THRESHOLD, -1)):
        return False
    _cap = cap
    return True


def trim() -> bool:
    """Call it after every step: hands back what is free where the process has grown beyond the cap. Returns whether it did."""
    if _cap is None:
        return False
    with open("/proc/self/statm") as file:
        resident = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return resident > _cap and release()


def release() -> bool:
    """Hand memory that is free now back to the system; returns whether there was any. What is freed later is kept again."""
    libc = _libc()
    return libc is not None and bool(libc.malloc_trim(0))


def describe() -> str:
    """One line on how this process's malloc treats large blocks."""
    if _cap is not None:
        return f"kept for reuse up to {_cap / 2**30:.1f} GiB"
    return "as malloc has it" if _libc() is not None else "as malloc has it (not glibc: keep_large_blocks does nothing here)"
