# SPDX-License-Identifier: Apache-2.0
"""Which of several ways to do the same is fastest here: measured once per device, dtype and shape, and remembered.

Ways may round differently. So the first way is always taken while torch is told to be deterministic
(`torch.use_deterministic_algorithms`), or with `GGF_TUNE=0`. Under CUDA graph capture nothing can be measured: the known choice is
taken, else the first way. What was measured is kept in `tuning.json` in `$GGF_CACHE` (default `~/.cache/gangealing_fast`), so that
runs on one machine agree; delete it to measure anew.
"""

from __future__ import annotations

import fcntl
import functools
import json
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import triton

from gangealing_fast.kernels._launch import compile_ahead, recorded
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.storage.files import atomic_write

REPETITIONS = 7
TELL_EVERY = 10.0  # seconds

_known: dict[str, str] = {}
_one_at_a_time = threading.RLock()


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
    """Add a choice to the file, beside those that other processes add."""
    _known[key] = choice
    path = cache_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            choices = _read() | {key: choice}
            with atomic_write(path) as file:
                file.write(json.dumps(choices, indent=1, sort_keys=True).encode())
    except (OSError, UserError):
        return  # a home that cannot be written to: this process remembers, the next one measures again
    _known.update({other: choices[other] for other in choices.keys() - _known.keys()})


def may_choose(device: torch.device) -> bool:
    """Whether another way than the first may be taken."""
    if os.environ.get("GGF_TUNE", "1") == "0" or torch.are_deterministic_algorithms_enabled():
        return False
    return device.type == "cuda"


def capturing(device: torch.device) -> bool:
    """Whether the device's current stream records a CUDA graph, so that nothing can be timed."""
    with torch.cuda.device(device):
        return torch.cuda.is_current_stream_capturing()


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


class _Narrator:
    """Says on the error stream what the first step is waiting for."""

    def __init__(self) -> None:
        self.shapes, self.seconds, self.told = 0, 0.0, 0.0

    def say(self, text: str) -> None:
        print(f"gangealing_fast: {text}", file=sys.stderr, flush=True)

    def begin(self, what: str, device: torch.device) -> None:
        if self.shapes == 0:
            self.say(
                f"trying ways to compute {what} on {device_name(device)}, once for each shape. The first step takes longer. "
                f"Later runs read {cache_file()}. GGF_TUNE=0 tries nothing."
            )
            self.told = time.monotonic()

    def end(self, seconds: float) -> None:
        self.shapes, self.seconds = self.shapes + 1, self.seconds + seconds
        if time.monotonic() - self.told >= TELL_EVERY:
            self.say(f"{self.shapes} shapes tried in {self.seconds:.0f} s")
            self.told = time.monotonic()


_narrator = _Narrator()


def _compile(candidates: Sequence[str], run: Callable[[str], Any]) -> None:
    """Compile the kernels of all candidates in threads. What fails is left to the timing, where it fails again at once."""
    launches = []
    for candidate in candidates:
        with recorded() as asked:
            try:
                run(candidate)
            except torch.AcceleratorError:
                raise
            except Exception:  # noqa: S112
                continue
        launches += asked
    if launches:
        compile_ahead(launches)


def _times(candidates: Sequence[str], run: Callable[[str], Any], timer: Callable[[Callable[[], None]], float]) -> dict[str, float]:
    """What each candidate takes; those that fail are named and left out.

    Compilers fail in many ways: with errors of Triton's own, with errors of the runtime (MLIR, LLVM), with a program that ends
    (ptxas). None of them may end a training that another candidate can serve. An error of the device itself spoils whatever
    follows: it is raised.
    """
    times: dict[str, float] = {}
    for candidate in candidates:
        try:
            times[candidate] = timer(functools.partial(run, candidate))
        except torch.AcceleratorError:
            raise
        except triton.runtime.errors.OutOfResources:
            continue  # as many cards have less shared memory than the largest tiles take
        except Exception as error:
            reason = (str(error).strip().splitlines() or [""])[0]
            _narrator.say(f"{candidate} does not work here and is left out ({type(error).__name__}: {reason})")
    return times


def fastest(
    what: str,
    settings: tuple[Any, ...],
    device: torch.device,
    candidates: Sequence[str],
    run: Callable[[str], Any],
    timer: Callable[[Callable[[], None]], float] = device_time,
) -> str:
    """The candidate whose `run(candidate)` takes least time for `settings` on `device`; the first if nothing is measured."""
    if len(candidates) == 1 or not may_choose(device):
        return candidates[0]
    _remembered()
    key = f"{device_name(device)} | torch {torch.__version__} | triton {triton.__version__} | {what} | {settings}"
    if _known.get(key) in candidates:
        return _known[key]
    if capturing(device):
        return candidates[0]
    with _one_at_a_time, torch.cuda.device(device):
        began = time.monotonic()
        _narrator.begin(what, device)
        _compile(candidates, run)
        times = _times(candidates, run, timer)
        _narrator.end(time.monotonic() - began)
    if not times:
        return candidates[0]
    choice = min(times, key=times.__getitem__)
    _remember(key, choice)
    return choice
