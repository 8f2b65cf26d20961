# SPDX-License-Identifier: Apache-2.0
"""Interleaved timing: several functions in turn, in one process, the order rotating from round to round.

Whatever the machine does meanwhile (another process, a lower clock, a heap in another state) meets all of them alike, so that
their ratios hold. A turn of what is quick begins with a call that is not timed: for milliseconds after a slow variant, or after
a pause, memory answers up to 1.5 times slower than in the midst of work.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import quantiles
from typing import Any

import torch

SLOW = 0.3
VERY_SLOW = 1.0

# Seconds that a number of calls of a function takes.
Clock = Callable[[Callable[[], Any], int], float]


@dataclass(frozen=True)
class Plan:
    """How long to measure: `seconds` per variant on average, within `rounds` (least, most), a sample for at least `sample` seconds.

    Where a round of all variants alone takes longer than all variants' seconds, three rounds are made; what takes longer than
    `VERY_SLOW` alone sits out the last of them.
    """

    seconds: float = 0.3
    rounds: tuple[int, int] = (7, 60)
    sample: float = 0.003

    def rounds_for(self, round_seconds: float, variants: int) -> int:
        """Rounds for variants that together take `round_seconds` a round."""
        least = 3 if round_seconds > self.seconds * variants else self.rounds[0]
        return max(least, min(int(self.seconds * variants / round_seconds), self.rounds[1]))


QUICK = Plan(seconds=0.05, rounds=(3, 10))


def clock_of(device: torch.device) -> Clock:
    """Seconds for a number of calls of a function: wall clock on a CPU, CUDA events on a CUDA device.

    The events stand before the first launch and behind the last kernel, on a device that had nothing left to do: what they span
    is the longer of the time that the launches take and that the kernels take.
    """

    def wall(call: Callable[[], Any], count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            call()
        return time.perf_counter() - start

    def events(call: Callable[[], Any], count: int) -> float:
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize(device)
        first.record()
        for _ in range(count):
            call()
        last.record()
        last.synchronize()
        return first.elapsed_time(last) / 1000

    return events if device.type == "cuda" else wall


def timer_of(device: torch.device) -> Callable[[], float]:
    """The clock of pytest-benchmark: on CUDA each reading waits for the device first, so that a round is launches and kernels."""

    def synchronised() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return synchronised if device.type == "cuda" else time.perf_counter


def interleave(
    calls: dict[str, Callable[[], Any]], plan: Plan, clock: Clock, known: dict[str, float] | None = None
) -> dict[str, list[float]]:
    """Seconds per call of every function, one sample per round, the first of a round another one each time. What is quicker than
    `SLOW` is called once more before every sample.

    known: seconds that a function took already, warm and with the device's work included; where it is slow, it is not called
    once more to find out.
    """
    names = list(calls)
    known = {name: seconds for name, seconds in (known or {}).items() if seconds >= SLOW}
    once = {name: known[name] if name in known else clock(calls[name], 1) for name in names}
    counts = {name: min(max(1, math.ceil(plan.sample / max(seconds, 1e-9))), 100) for name, seconds in once.items()}
    turns = (max(plan.sample, seconds) + (seconds if seconds < SLOW else 0) for seconds in once.values())
    rounds = plan.rounds_for(sum(turns), len(names))
    samples: dict[str, list[float]] = {name: [] for name in names}
    for done in range(rounds):
        first = done % len(names)
        for name in names[first:] + names[:first]:
            if once[name] >= VERY_SLOW and done >= 2:
                continue
            if once[name] < SLOW:
                calls[name]()
            samples[name].append(clock(calls[name], counts[name]) / counts[name])
    return samples


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile; of one value that value three times."""
    lower, median, upper = quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return lower, median, upper


def summarise(samples: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Per variant: median and quartiles in milliseconds, rounds, and the ratio of its median to that of "ours", if there is one."""
    summary = {}
    for name, values in samples.items():
        lower, median, upper = quartiles(values)
        summary[name] = {"ms": median * 1e3, "lower_ms": lower * 1e3, "upper_ms": upper * 1e3, "rounds": len(values)}
    if "ours" in summary:
        for values_of in summary.values():
            values_of["ratio"] = values_of["ms"] / summary["ours"]["ms"]
    return summary
