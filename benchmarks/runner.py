# SPDX-License-Identifier: Apache-2.0
"""One variant of a case with its own inputs, and the comparison of what variants compute."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmarks.case import BOTH, COMPILE, FORWARD, Case, Inputs, Variant

TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 5e-3}
# Copies of the inputs on CUDA: a bound for inputs so small that thousands would be needed to fill the cache.
MOST_COPIES = 256
WARM_UP_CALLS = 3


class Disagreement(Exception):
    """Variants of one case compute different things, so that their times mean nothing."""


def tensors_in(value: Any) -> list[Tensor]:
    """All tensors of a tensor, tuple or list, those of lists within it included."""
    if isinstance(value, Tensor):
        return [value]
    return [tensor for item in value for tensor in tensors_in(item)] if isinstance(value, (tuple, list)) else []


def _copy(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone().requires_grad_(value.requires_grad)
    return type(value)(_copy(item) for item in value) if isinstance(value, (tuple, list)) else value


def synchronise(device: torch.device) -> None:
    """Wait until a CUDA device has done what it was given; on a CPU there is nothing to wait for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def copies_for(inputs: Inputs, device: torch.device) -> int:
    """How many copies of the inputs a variant takes in turn, so that none is still in a GPU's cache when its turn comes again.

    On a CPU one: the fractions of the report are those of a working set as it is.
    """
    if device.type != "cuda":
        return 1
    size = sum(tensor.nbytes for tensor in tensors_in(inputs))
    return min(max(1, math.ceil(2 * torch.cuda.get_device_properties(device).L2_cache_size / max(size, 1))), MOST_COPIES)


@dataclass
class _Arguments:
    """The inputs of one call, those that gradients are taken by, and the gradients of the outputs."""

    inputs: Inputs
    leaves: list[Tensor]
    cotangents: list[Tensor] = field(default_factory=list)


class Runner:
    """One variant with its own inputs: `run(BOTH)` computes it once and returns outputs and gradients.

    On CUDA the calls take several copies of the inputs in turn, see `copies_for`. A variant that keeps state in its arguments
    therefore needs inputs that are larger than the cache, of which there is one copy.

    Args:
        case: what is computed.
        variant: one of its variants.
        device: where the inputs are.
    """

    def __init__(self, case: Case, variant: Variant, device: torch.device) -> None:
        self.variant = variant
        self.device = device
        torch.manual_seed(0)
        inputs = case.inputs(device)
        flags = [isinstance(value, Tensor) and value.requires_grad for value in inputs]
        with torch.no_grad():
            inputs = variant.prepare(inputs) if variant.prepare else inputs
        inputs = tuple(value.detach().requires_grad_() if flag else value for value, flag in zip(inputs, flags, strict=True))
        self._turns: list[_Arguments] = []
        self._next = 0
        for copy in range(copies_for(inputs, device)):
            own = _copy(inputs) if copy else inputs
            self._turns.append(_Arguments(own, [value for value, flag in zip(own, flags, strict=True) if flag]))
        self.seconds = 0.0

    @property
    def copies(self) -> int:
        """How many copies of the inputs the calls take in turn."""
        return len(self._turns)

    @property
    def inputs(self) -> Inputs:
        """The arguments of the first call."""
        return self._turns[0].inputs

    @property
    def leaves(self) -> list[Tensor]:
        """Those of them that gradients are taken by."""
        return self._turns[0].leaves

    def run(self, what: str) -> list[Tensor]:
        """The outputs, and behind them the gradients where `what` has a backward."""
        turn = self._turns[self._next]
        self._next = (self._next + 1) % len(self._turns)
        if what == FORWARD:
            with torch.no_grad():
                return tensors_in(self.variant.function(*turn.inputs))
        outputs = tensors_in(self.variant.function(*turn.inputs))
        if not turn.cotangents:
            self._draw_cotangents(outputs)
        return [*outputs, *torch.autograd.grad(outputs, turn.leaves, turn.cotangents)]

    def _draw_cotangents(self, outputs: list[Tensor]) -> None:
        """The same for every copy, at the first call, so that no later one has to draw them within the clock."""
        torch.manual_seed(1)
        for output in outputs:
            values = torch.randn(output.shape, dtype=torch.float32).to(output.device)
            for turn in self._turns:
                # In the layout of the outputs, as the next layer's backward would hand them over.
                turn.cotangents.append(torch.empty_like(output, requires_grad=False).copy_(values))

    def timed(self, what: str) -> list[Tensor]:
        """What `run` returns; `seconds` holds how long that took, the work of the device included."""
        synchronise(self.device)
        start = time.perf_counter()
        found = self.run(what)
        synchronise(self.device)
        self.seconds = time.perf_counter() - start
        return found

    def warm_up(self, what: str) -> None:
        """Calls before the clock starts. On CUDA the first compiles Triton's kernels, tries their tiles and cuDNN's algorithms,
        and fills torch's cache of memory: none of that is the variant's time. On a CPU the call that was compared is enough."""
        if self.device.type == "cuda":
            for _ in range(WARM_UP_CALLS):
                self.timed(what)


def runners(case: Case, what: str, device: torch.device, *, threads: int = 1) -> tuple[list[Runner], dict[str, dict[str, str]]]:
    """A runner for every variant of the pass, and {"error": reason} by name for those that torch.compile cannot compile.

    With more than one thread torch.compile takes no part, as it would compile everything again.
    """
    made, failures = [], {}
    for variant in case.variants:
        if not variant.takes_part(what) or (variant.name == COMPILE and threads > 1):
            continue
        runner = Runner(case, variant, device)
        if variant.name == COMPILE:
            try:
                runner.run(what)
            except Exception as error:
                failures[variant.name] = {"error": first_line(error)}
                continue
            runner = Runner(case, variant, device)
        made.append(runner)
    return made, failures


def first_line(error: Exception) -> str:
    """An error as one line of at most 200 characters."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def judge_of(case: Case, what: str) -> Variant:
    """The variant that the others are compared with: the reference, or the first where there is none."""
    taking_part = [variant for variant in case.variants if variant.takes_part(what)]
    return next((variant for variant in taking_part if variant.name == "reference"), taking_part[0])


def wide(found: list[Tensor]) -> list[Tensor]:
    """Results as what others are compared with: detached, in float64."""
    return [tensor.detach().double() for tensor in found]


def check(case: Case, what: str, runner: Runner, expected: list[Tensor]) -> None:
    """Run a variant once, note its seconds, and raise Disagreement unless its results are the expected ones (see `wide`)."""
    found, judge = runner.timed(what), judge_of(case, what).name
    if [tensor.shape for tensor in found] != [tensor.shape for tensor in expected]:
        raise Disagreement(f"{case.operator} {case.name}: {runner.variant.name} and {judge} differ in shapes.")
    tolerance = TOLERANCES[case.dtype] if case.tolerance is None else case.tolerance
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
                f" {judge} by {error:.2g}, more than {allowed:.2g}."
            )


def check_agreement(case: Case, what: str, made: list[Runner]) -> None:
    """Run every variant once, note its seconds, and raise Disagreement unless all agree with the judge."""
    name = judge_of(case, what).name
    judge = next(runner for runner in made if runner.variant.name == name)
    expected = wide(judge.timed(what))
    for runner in made:
        if runner is not judge:
            check(case, what, runner, expected)
