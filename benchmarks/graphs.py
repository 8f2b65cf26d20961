# SPDX-License-Identifier: Apache-2.0
"""CUDA graphs of a case's variants: what they take without the launches, which are most of the time of a small case."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.runner import Runner, first_line
from benchmarks.timing import Clock, Plan, interleave, summarise

# A graph holds so many calls at least: a replay is a launch of its own.
LEAST_CALLS = 16


def record(runner: Runner, what: str) -> tuple[Callable[[], Any], int]:
    """Calls of a warm runner as a CUDA graph: what replays them, and how many they are. Each copy of the inputs has its turn."""
    device, calls = runner.device, math.ceil(LEAST_CALLS / runner.copies) * runner.copies
    # As torch asks for: work that is to be recorded has run before on a stream other than the default one.
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        runner.run(what)
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            runner.run(what)
    return graph.replay, calls


def times(runners: list[Runner], what: str, plan: Plan, clock: Clock) -> dict[str, dict[str, Any]]:
    """Per variant what `summarise` says of one call within a graph, or {"error": reason} if it cannot be recorded.

    It comes after everything else of a case, as a recording that fails leaves nothing behind that could be trusted.
    """
    replays, counts, failures = {}, {}, {}
    for runner in runners:
        name = runner.variant.name
        try:
            replays[name], counts[name] = record(runner, what)
            replays[name]()
            torch.cuda.synchronize(runner.device)
        except Exception as error:
            replays.pop(name, None)
            failures[name] = {"error": first_line(error)}
    samples = interleave(replays, plan, clock) if replays else {}
    each = {name: [seconds / counts[name] for seconds in values] for name, values in samples.items()}
    return {**summarise(each), **failures}
