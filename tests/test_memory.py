# SPDX-License-Identifier: Apache-2.0
"""Keeping large blocks: a second allocation of the same size faults no pages in anew; nothing happens unasked."""

from __future__ import annotations

import subprocess
import sys

import pytest

from gangealing_fast.runtime import memory

FAULTS = """
import resource, sys
import torch
from gangealing_fast.runtime import memory
kept = memory.keep_large_blocks(int(sys.argv[1])) if len(sys.argv) > 1 else False
def touch():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty(64 << 20, dtype=torch.uint8).fill_(1)
    trimmed = memory.trim()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, trimmed
touched = [touch() for _ in range(30)]
print(int(kept), sum(faults > 1000 for faults, _ in touched), touched[-1][0], sum(trimmed for _, trimmed in touched), sep="|")
memory.release()
print(touch()[0], memory.describe(), sep="|")
"""


def faults(*cap: str) -> tuple[list[int], int, str]:
    """[whether kept, allocations of 30 that faulted pages in, faults of the last, trims], faults after release, description."""
    result = subprocess.run([sys.executable, "-c", FAULTS, *cap], capture_output=True, text=True, check=True)
    first, second = result.stdout.strip().splitlines()
    return [int(word) for word in first.split("|")], int(second.split("|")[0]), second.split("|")[1]


@pytest.mark.skipif(memory._libc() is None, reason="glibc only")
def test_blocks_are_kept_only_where_asked_up_to_the_cap_and_until_released():
    (kept, faulted, _, trimmed), _, words = faults()
    assert (kept, faulted, trimmed, words) == (0, 30, 0, "as malloc has it"), "this system keeps large blocks by itself"
    (kept, faulted, last, trimmed), after, words = faults(str(8 << 30))
    assert kept and faulted <= 15 and last < 100 and trimmed == 0 and words == "kept for reuse up to 8.0 GiB"
    assert after > 1000
    (kept, faulted, _, trimmed), _, _ = faults(str(1 << 20))
    assert kept and faulted == trimmed == 30
