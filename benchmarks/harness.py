# SPDX-License-Identifier: Apache-2.0
"""Interleaved timing of several ways to compute one thing.

How to write a benchmark. One file per operator, `bench_<operator>.py`, with one function `cases() -> list[Case]`; see
`bench_flow_regularizer.py`. A case has

- `inputs(device)`: builds the arguments, deterministically (torch's default generator is seeded before every call). Tensors
  made with `requires_grad_()` are those that the backward pass differentiates by. Every variant gets its own copy, so a
  variant may keep state in its arguments (an optimiser, say);
- `variants`: first "ours", then "reference" (the operator's `_reference`), "torch" (the best that a competent user would
  write with torch's own operators, in the layout that suits it), "compile" (`compiled(reference)`). All are called with the
  same arguments and return the same tensors; `prepare` may change their layout or type outside the clock;
- `moved` and `operations`: for every timed pass the bytes that any implementation has to move (each input read once, each
  output written once, what backward needs read once again) and the floating point operations that it has to do. They turn
  times into fractions of what the machine can do;
- `targets`: what the project wants on a CPU, for one thread and the case's last pass: `{"reference": 13, "compile": 5}` are ratios,
  `{"bandwidth": 0.5, "throughput": 1.0}` fractions of the limits, `{"memory": 0.5}` the peak against the reference's.

`compare(case, threads)` first checks that all variants agree and refuses to time them otherwise. Then it runs them in turn,
in one process, with the same allocator, the order rotated from round to round; every call returns new tensors as a user
would get them. A turn of what is quick begins with a call that is not timed: for milliseconds after a slow variant, or after
a pause, memory answers up to 1.5 times slower than in the midst of work. Forward is timed without, forward+backward with
recorded gradients.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from statistics import quantiles
from typing import Any

import torch
from torch import Tensor

FORWARD = "forward"
BOTH = "forward+backward"
SLOW = 0.3
VERY_SLOW = 1.0
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 5e-3}


class Disagreement(Exception):
    """Variants of one case compute different things, so that their times mean nothing."""


@dataclass(frozen=True)
class Variant:
    """One way to compute a case.

    name: "ours", "reference", "torch", "compile", or another short word; one of a kind within its case.
    function: called with the case's inputs; returns a tensor or a tuple or list of tensors.
    prepare: changes the inputs once, outside the clock (to channels-last, say).
    passes: the passes it takes part in; None means all of the case.
    note: how it does it, for the report.
    """

    name: str
    function: Callable[..., Any]
    prepare: Callable[[tuple[Any, ...]], tuple[Any, ...]] | None = None
    passes: tuple[str, ...] | None = None
    note: str = ""


@dataclass(frozen=True)
class Case:
    """One shape of one operator; see the module's docstring.

    tolerance: largest relative error ‖a - b‖/‖b‖ of every output against the reference, a tenth of what gradients may have;
    None means the one of `dtype`.
    kinks: share of every gradient's entries, those that differ most, that is left out of that: functions with kinks have
    several right gradients where the inputs hit one by chance.
    everywhere: the targets hold for every pass and number of threads, not only for the last pass on one.
    peak: measure every variant's peak memory too, each in a process of its own.
    """

    operator: str
    name: str
    inputs: Callable[[torch.device], tuple[Any, ...]]
    variants: tuple[Variant, ...]
    passes: tuple[str, ...] = (FORWARD, BOTH)
    dtype: torch.dtype = torch.float32
    moved: dict[str, float] = field(default_factory=dict)
    operations: dict[str, float] = field(default_factory=dict)
    targets: dict[str, float] = field(default_factory=dict)
    tolerance: float | None = None
    kinks: float = 0.0
    everywhere: bool = False
    peak: bool = False


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


def compiled(
    function: Callable[..., Any],
    *,
    passes: tuple[str, ...] | None = None,
    prepare: Callable[[tuple[Any, ...]], tuple[Any, ...]] | None = None,
) -> Variant:
    """The variant "compile": `torch.compile` with its defaults, static shapes."""
    function = torch.compile(function, dynamic=False)
    return Variant("compile", function, prepare, passes, note="torch.compile of the reference")


def channels_last(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """A `prepare` that puts every tensor of rank 4 into channels-last layout."""
    return tuple(
        value.contiguous(memory_format=torch.channels_last) if isinstance(value, Tensor) and value.dim() == 4 else value
        for value in inputs
    )


@contextmanager
def _thread_count(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [tensor for item in value for tensor in _tensors(item)] if isinstance(value, (tuple, list)) else []


class Runner:
    """One variant with its own inputs: `run(BOTH)` computes it once and returns outputs and gradients.

    Args:
        case: what is computed.
        variant: one of its variants.
        device: where the inputs are.
    """

    def __init__(self, case: Case, variant: Variant, device: torch.device) -> None:
        self.variant = variant
        torch.manual_seed(0)
        inputs = case.inputs(device)
        flags = [isinstance(value, Tensor) and value.requires_grad for value in inputs]
        with torch.no_grad():
            inputs = variant.prepare(inputs) if variant.prepare else inputs
        self.inputs = tuple(value.detach().requires_grad_() if flag else value for value, flag in zip(inputs, flags, strict=True))
        self.leaves = [value for value, flag in zip(self.inputs, flags, strict=True) if flag]
        self.seconds = 0.0
        self._cotangents: list[Tensor] = []

    def run(self, what: str) -> list[Tensor]:
        """The outputs, and behind them the gradients where `what` has a backward."""
        if what == FORWARD:
            with torch.no_grad():
                return _tensors(self.variant.function(*self.inputs))
        outputs = _tensors(self.variant.function(*self.inputs))
        if not self._cotangents:
            torch.manual_seed(1)
            # In the layout of the outputs, as the next layer's backward would hand them over.
            for output in outputs:
                values = torch.randn(output.shape, dtype=torch.float32).to(output.device)
                self._cotangents.append(torch.empty_like(output, requires_grad=False).copy_(values))
        return [*outputs, *torch.autograd.grad(outputs, self.leaves, self._cotangents)]


def check_agreement(case: Case, runners: list[Runner], what: str) -> None:
    """Run every variant once, note its seconds, and raise Disagreement unless all agree with the reference (or the first)."""
    judge = next((runner for runner in runners if runner.variant.name == "reference"), runners[0])

    def timed(runner: Runner) -> list[Tensor]:
        start = time.perf_counter()
        found = runner.run(what)
        runner.seconds = time.perf_counter() - start
        return found

    expected = [tensor.detach().double() for tensor in timed(judge)]
    tolerance = TOLERANCES[case.dtype] if case.tolerance is None else case.tolerance
    for runner in runners:
        if runner is judge:
            continue
        found = timed(runner)
        if [tensor.shape for tensor in found] != [tensor.shape for tensor in expected]:
            raise Disagreement(f"{case.operator} {case.name}: {runner.variant.name} and {judge.variant.name} differ in shapes.")
        for index, (a, b) in enumerate(zip(found, expected, strict=True)):
            gradient = what == BOTH and index >= len(found) - len(runner.leaves)
            difference = (a.detach().double() - b).flatten()
            if gradient and case.kinks:
                difference = difference.abs().sort().values[: math.ceil(len(difference) * (1 - case.kinks))]
            error = difference.norm().item() / (b.norm().item() or 1.0)
            allowed = tolerance * (10 if gradient else 1)
            if not error <= allowed:
                raise Disagreement(
                    f"{case.operator} {case.name}, {what}: result {index} of {runner.variant.name} differs from"
                    f" {judge.variant.name} by {error:.2g}, more than {allowed:.2g}."
                )


def _clock(device: torch.device) -> Callable[[Callable[[], Any], int], float]:
    """Seconds for `count` calls of a function: wall clock on a CPU, CUDA events on a CUDA device."""

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


def interleave(
    calls: dict[str, Callable[[], Any]],
    plan: Plan,
    clock: Callable[[Callable[[], Any], int], float],
    known: dict[str, float] | None = None,
) -> dict[str, list[float]]:
    """Seconds per call of every function, one sample per round, the first of a round another one each time. What is quicker than
    `SLOW` is called once more before every sample.

    known: seconds that a function took already; where it is slow, it is not called once more to find out.
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


def summarise(samples: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Per variant: median and quartiles in milliseconds, rounds, and the ratio of its median to that of "ours"."""
    summary = {}
    for name, values in samples.items():
        lower, median, upper = quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
        summary[name] = {"ms": median * 1e3, "lower_ms": lower * 1e3, "upper_ms": upper * 1e3, "rounds": len(values)}
    for values in summary.values():
        values["ratio"] = values["ms"] / summary["ours"]["ms"]
    return summary


def compare(case: Case, threads: int, *, plan: Plan | None = None, device: torch.device | str = "cpu") -> list[dict[str, Any]]:
    """Check and time all variants of a case.

    With more than one thread only the last pass is timed, and without torch.compile, which would compile it all again.

    Returns:
        One record for every pass, ready for JSON: operator, case, pass, threads, device, dtype, the case's bytes, operations and
        targets, and under "variants" what `summarise` says. A variant that torch.compile cannot compile has {"error": reason}.

    Raises:
        Disagreement: the variants do not compute the same.
    """
    device, plan = torch.device(device), plan or Plan()
    records = []
    with _thread_count(threads):
        for what in case.passes if threads == 1 else case.passes[-1:]:
            runners, failures = [], {}
            for variant in case.variants:
                if variant.passes is not None and what not in variant.passes:
                    continue
                if variant.name == "compile" and threads > 1:
                    continue
                runner = Runner(case, variant, device)
                if variant.name == "compile":
                    try:
                        runner.run(what)
                    except Exception as error:  # torch.compile fails in many ways, none of which is ours to repair
                        failures[variant.name] = {"error": (str(error).strip().splitlines() or [type(error).__name__])[0][:200]}
                        continue
                    runner = Runner(case, variant, device)
                runners.append(runner)
            check_agreement(case, runners, what)
            aimed = case.everywhere or (what == case.passes[-1] and threads == 1)
            calls = {runner.variant.name: partial(runner.run, what) for runner in runners}
            known = {runner.variant.name: runner.seconds for runner in runners}
            records.append(
                {
                    "operator": case.operator,
                    "case": case.name,
                    "pass": what,
                    "threads": threads,
                    "device": device.type,
                    "dtype": str(case.dtype).removeprefix("torch."),
                    "bytes": case.moved.get(what),
                    "operations": case.operations.get(what),
                    "targets": case.targets if aimed and device.type == "cpu" else {},
                    "notes": {variant.name: variant.note for variant in case.variants if variant.note},
                    "variants": {**summarise(interleave(calls, plan, _clock(device), known)), **failures},
                }
            )
    return records
