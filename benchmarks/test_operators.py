# SPDX-License-Identifier: Apache-2.0
"""Every operator under pytest-benchmark: the cases of the interleaved harness, a group for each operator, case and pass.

pytest-benchmark times one variant after the other. Whatever the machine does in between lands in their ratios, which the pages
of this project therefore take from `python -m benchmarks`. This is for what pytest-benchmark is good at: one variant of one case
(`-k`), kept (`--benchmark-autosave`) and compared with itself after a change (`--benchmark-compare`).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from benchmarks import cases, machine, operators
from benchmarks.case import COMPILE, Case, Variant
from benchmarks.runner import Disagreement, Runner, check, first_line, judge_of, wide

# torch.compile takes long to compile; one operator shows that it is measured.
COMPILED_IN_QUICK = "flow_regularizer"


@dataclass(frozen=True)
class Measured:
    """One variant in one pass of one case."""

    case: Case
    what: str
    variant: Variant

    @property
    def group(self) -> str:
        """What is compared with each other: operator, case and pass."""
        return f"{self.case.operator} {self.case.name} {self.case.number_format}, {self.what}"

    @property
    def identifier(self) -> str:
        """The same and the variant, without characters that pytest would escape."""
        return f"{self.group}, {self.variant.name}".replace("²", "^2")

    def is_quick(self, quick: Case) -> bool:
        """Whether it belongs to the selection `-m quick`: the smallest case of every operator."""
        return self.case is quick and (self.variant.name != COMPILE or self.case.operator == COMPILED_IN_QUICK)


def everything() -> Iterator[object]:
    """All operators, cases, passes and variants, with a mark on what is quick."""
    for operator in operators():
        found = cases(operator)
        quick = min(found, key=Case.work)
        for case in found:
            for what in case.passes:
                for variant in case.variants:
                    if variant.takes_part(what):
                        measured = Measured(case, what, variant)
                        marks = [pytest.mark.quick] if measured.is_quick(quick) else []
                        yield pytest.param(measured, id=measured.identifier, marks=marks)


class Expected:
    """Results of the judge, for the case and pass at hand: computed once for all variants of a group, which follow each other."""

    def __init__(self) -> None:
        self.group, self.results = "", list[Tensor]()

    def of(self, measured: Measured, device: torch.device) -> list[Tensor]:
        """What every variant of that group has to compute, in float64."""
        if measured.group != self.group:
            self.results.clear()
            machine.release(device)
            torch.compiler.reset()
            case, what = measured.case, measured.what
            self.results = wide(Runner(case, judge_of(case, what), device).run(what))
            self.group = measured.group
        return self.results


@pytest.fixture(scope="session")
def expected() -> Expected:
    return Expected()


def warm_runner(measured: Measured, expected: Expected, device: torch.device) -> Runner:
    """The variant, compiled, compared and ready for the clock; skips where torch.compile cannot compile it."""
    case, what = measured.case, measured.what
    results = expected.of(measured, device)
    runner = Runner(case, measured.variant, device)
    if measured.variant.name == COMPILE:
        try:
            runner.run(what)
        except Exception as error:
            pytest.skip(f"torch.compile fails: {first_line(error)}")
        runner = Runner(case, measured.variant, device)
    try:
        check(case, what, runner, results)
    except Disagreement as error:
        pytest.fail(f"not timed: {error}", pytrace=False)
    runner.warm_up(what)
    return runner


@pytest.mark.parametrize("measured", list(everything()))
def test_operator(measured: Measured, expected: Expected, benchmark: BenchmarkFixture, request: pytest.FixtureRequest) -> None:
    if measured.variant.slow and not request.config.getoption("--compiled-steps"):
        pytest.skip("a training step takes many minutes to compile; --compiled-steps runs it")
    device = torch.device(request.config.getoption("--device"))
    runner = warm_runner(measured, expected, device)
    benchmark.group = measured.group
    benchmark.extra_info.update(
        variant=measured.variant.name,
        threads=torch.get_num_threads(),
        device=device.type,
        bytes=measured.case.moved.get(measured.what),
        operations=measured.case.operations.get(measured.what),
    )
    benchmark(functools.partial(runner.run, measured.what))
