# SPDX-License-Identifier: Apache-2.0
"""The whole training step under pytest-benchmark: the configurations and variants of `python -m benchmarks.training_step`.

Every variant runs in a process of its own, as a user would run it, one after the other. The losses of its first step are compared
with those of `--ops reference` before any is timed. Only the time is measured here; `python -m benchmarks.training_step` says what
memory they take, and what their ratios are.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.step_process import Made, StepProcess, disagreement, write_weights
from benchmarks.training_step import ALL_VARIANTS, BASE, COMPILED, CONFIGURATIONS, GRAPHS, step_of

QUICK = ("64", ("ours, float32", BASE))
ROUNDS = 3

# Seconds that the processes have said so far: the clock, without the pipe and what a process does between its timed steps.
_said = 0.0


def said_by_the_processes() -> float:
    """The timer of these benchmarks."""
    return _said


def timed(process: StepProcess) -> Made:
    """A step of the process; its seconds go to the clock."""
    global _said
    made = process.step()
    _said += made.seconds
    return made


class Expected:
    """Losses of the first step of `--ops reference`, and the networks' weights: made once for each configuration.

    Args:
        folder: where the weights go.
        device: "cpu" or "cuda".
        threads: of every process.
    """

    def __init__(self, folder: Path, device: str, threads: int) -> None:
        self.folder, self.device, self.threads = folder, device, threads
        self.losses: dict[str, dict[str, float]] = {}

    def process(self, key: str, variant: str) -> StepProcess:
        """A process that makes steps of that variant."""
        configuration = CONFIGURATIONS[key]
        folder = self.folder / str(configuration.size)
        if not folder.exists():
            folder.mkdir()
            write_weights(folder, configuration.size)
        return StepProcess(step_of(configuration, variant, folder, threads=self.threads, device=self.device))

    def compare(self, key: str, variant: str, process: StepProcess) -> str | None:
        """Let the process make its first step; how its losses differ from those of `--ops reference`, None if they agree."""
        losses = process.step().losses
        if variant == BASE:
            self.losses.setdefault(key, losses)
        elif key not in self.losses:
            reference = self.process(key, BASE)
            try:
                self.losses[key] = reference.step().losses
            finally:
                reference.kill()
        return disagreement(losses, self.losses[key], ALL_VARIANTS[variant].get("precision", "float32"))


@pytest.fixture(scope="module")
def expected(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Expected:
    return Expected(tmp_path_factory.mktemp("weights"), request.config.getoption("--device"), request.config.getoption("--threads"))


def everything() -> Iterator[object]:
    """All configurations and variants, with a mark on what is quick; the one that the others are compared with comes first."""
    for key, configuration in CONFIGURATIONS.items():
        for variant in sorted(ALL_VARIANTS, key=lambda name: name != BASE):
            quick = key == QUICK[0] and variant in QUICK[1]
            name = f"{configuration}, {variant}".replace("²", "^2")
            yield pytest.param(key, variant, id=name, marks=[pytest.mark.quick] if quick else [])


@pytest.mark.benchmark(timer=said_by_the_processes)
@pytest.mark.parametrize(("key", "variant"), list(everything()))
def test_training_step(
    key: str, variant: str, expected: Expected, benchmark: BenchmarkFixture, request: pytest.FixtureRequest
) -> None:
    if variant in COMPILED and not request.config.getoption("--compiled-steps"):
        pytest.skip("a training step takes many minutes to compile; --compiled-steps runs it")
    if variant in GRAPHS and expected.device != "cuda":
        pytest.skip("CUDA graphs need --device cuda")
    process = expected.process(key, variant)
    try:
        difference = expected.compare(key, variant, process)
        if difference:
            pytest.fail(f"not timed: {variant} does not compute what {BASE} computes: {difference}", pytrace=False)
        benchmark.group = f"training step {CONFIGURATIONS[key]}"
        benchmark.extra_info.update(variant=variant, threads=expected.threads, device=expected.device)
        benchmark.pedantic(timed, args=(process,), rounds=ROUNDS)
    finally:
        process.kill()
