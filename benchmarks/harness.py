# SPDX-License-Identifier: Apache-2.0
"""Check, then time, all variants of a case: `compare` is what `python -m benchmarks` calls for every case.

All variants take turns in one process, with the same allocator (`timing.py`); every call returns new tensors as a user would get
them. Forward is timed without, forward+backward with recorded gradients. On CUDA every variant is warm before the clock starts,
its inputs are not in the cache, and a second measurement runs it within a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from benchmarks import graphs
from benchmarks.case import Case
from benchmarks.runner import check_agreement, runners
from benchmarks.timing import Plan, clock_of, interleave, summarise


@contextmanager
def thread_count(threads: int) -> Iterator[None]:
    """Within the block torch runs on so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def compare(case: Case, threads: int, *, plan: Plan | None = None, device: torch.device | str = "cpu") -> list[dict[str, Any]]:
    """Check and time all variants of a case.

    With more than one thread only the last pass is timed, and without torch.compile, which would compile it all again.

    Returns:
        One record for every pass, ready for JSON: operator, case, pass, threads, device, dtype, the case's bytes, operations and
        targets, and under "variants" what `summarise` says. A variant that torch.compile cannot compile has {"error": reason}.
        On CUDA "graphs" has the same for calls within a CUDA graph.

    Raises:
        Disagreement: the variants do not compute the same.
    """
    device = torch.device(device)
    with thread_count(threads):
        passes = case.passes if threads == 1 else case.passes[-1:]
        return [_record(case, what, threads, plan or Plan(), device) for what in passes]


def _record(case: Case, what: str, threads: int, plan: Plan, device: torch.device) -> dict[str, Any]:
    made, failures = runners(case, what, device, threads=threads)
    check_agreement(case, what, made)
    for runner in made:
        runner.warm_up(what)
    clock = clock_of(device)
    known = {runner.variant.name: runner.seconds for runner in made}
    samples = interleave({runner.variant.name: partial(runner.run, what) for runner in made}, plan, clock, known)
    aimed = case.everywhere or (what == case.passes[-1] and threads == 1)
    return {
        "operator": case.operator,
        "case": case.name,
        "pass": what,
        "threads": threads,
        "device": device.type,
        "dtype": case.number_format,
        "bytes": case.moved.get(what),
        "operations": case.operations.get(what),
        "targets": case.targets if aimed and device.type == "cpu" else {},
        "notes": {variant.name: variant.note for variant in case.variants if variant.note},
        "variants": {**summarise(samples), **failures},
        "graphs": graphs.times(made, what, plan, clock) if device.type == "cuda" else {},
    }
