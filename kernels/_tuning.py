# SPDX-License-Identifier: Apache-2.0
"""Which of several ways to do the same is fastest here: measured once per device, dtype and shape, and remembered.

Ways may round differently. So nothing is measured, and the first way is taken, while torch is told to be deterministic
(`torch.use_deterministic_algorithms`), under CUDA graph capture, or with `GGF_TUNE=0`. What was measured is kept in
`tuning.json` in `$GGF_CACHE` (default `~/.cache/gangealing_fast`), so that runs on one machine agree; delete it to measure anew.
"""

from __future__ import annotations

import functools
import json
import os
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import triton

from gangealing_fast.runtime.errors import UserError
from gangealing_fast.storage.files import atomic_write

REPETITIONS = 7

_known: dict[str, str] = {}


def cache_file() -> Path:
    """Where choices outlive the process."""
    folder = os.environ.get("GGF_CACHE") or Path.home() / ".cache" / "gangealing_fast"
    return Path(folder) / "tuning.json"


def _read() -> dict[str, str]:
    try:
        choices = json.loads(cache_file().read_text())
    except (OSError, ValueError):
        return {}
    return {k: v for k, v in choices.items() if isinstance(v, str)} if isinstance(choices, dict) else {}


@functools.cache
def _remembered() -> None:
    _known.update(_read())


def _remember(key: str, choice: str) -> None:
    _known[key] = choice
    path = cache_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        choices = _read() | {key: choice}
        with atomic_write(path) as file:
            file.write(json.dumps(choices, indent=1, sort_keys=True).encode())
    except (OSError, UserError):
        return  # a home that cannot be written to: this process remembers, the next one measures again


def may_measure(device: torch.device) -> bool:
    """Whether a choice may be made by measuring now."""
    if os.environ.get("GGF_TUNE", "1") == "0" or torch.are_deterministic_algorithms_enabled():
        return False
    return device.type == "cuda" and not torch.cuda.is_current_stream_capturing()


def device_name(device: torch.device) -> str:
    """The card's name."""
    return torch.cuda.get_device_name(device)


def device_time(run: Callable[[], None]) -> float:
    """Median milliseconds of `run` on the current CUDA device, after one run to warm up."""
    run()
    times = []
    for _ in range(REPETITIONS):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def fastest(
    what: str,
    settings: tuple[Any, ...],
    device: torch.device,
    candidates: Sequence[str],
    run: Callable[[str], Any],
    timer: Callable[[Callable[[], None]], float] = device_time,
) -> str:
    """The candidate whose `run(candidate)` takes least time for `settings` on `device`; the first where nothing is measured.

    A candidate that needs more of the device than there is, or that does not compile for it, is out of the race.
    """
    if len(candidates) == 1 or not may_measure(device):
        return candidates[0]
    _remembered()
    key = f"{device_name(device)} | torch {torch.__version__} | triton {triton.__version__} | {what} | {settings}"
    if _known.get(key) in candidates:
        return _known[key]
    times: dict[str, float] = {}
    for candidate in candidates:
        try:
            times[candidate] = timer(functools.partial(run, candidate))
        except (triton.runtime.errors.OutOfResources, triton.CompilationError, torch.OutOfMemoryError):
            continue
    choice = min(times, key=times.__getitem__) if times else candidates[0]
    _remember(key, choice)
    return choice
