# SPDX-License-Identifier: Apache-2.0
"""The measuring of training steps: figures, goals at each level, comparison of losses, failures. No test looks at speed."""

from __future__ import annotations

import subprocess
import sys
from functools import partial

import pytest
import torch

from benchmarks import bench_modulated_conv2d, machine, pretraining_step, results, step_process, training_step
from benchmarks import test_whole_training_step as under_pytest
from benchmarks.step_process import Made, Step, StepProcess, disagreement
from benchmarks.training_step import ALL_VARIANTS, BASE
from gangealing_fast.runtime.errors import UserError

LOSSES = {"loss": 2.0, "perceptual": 1.0, "tv": 0.5, "identity": 0.0}


def test_training_step_figures():
    configuration = training_step.CONFIGURATIONS["256"]
    seconds = {"ours, float32": [3.0, 2.0, 4.0], "reference, float32": [12.0, 15.0, 18.0]}
    peaks = {"ours, float32": 4, "reference, float32": 10}
    ours = training_step.record(configuration, "default", "ours, float32", seconds, peaks, "avx512")
    assert (ours["seconds"], ours["ratio"], ours["memory_ratio"]) == (3.0, 5.0, 0.4)
    assert ours["targets"] == {"ratio": 5.5, "memory_ratio": 0.45}
    reference = training_step.record(configuration, "default", "reference, float32", seconds, peaks, "avx512")
    assert "ratio" not in reference and reference["targets"] == {}
    assert training_step.record(configuration, "same", "ours, float32", seconds, peaks, "avx512")["targets"] == {"ratio": 3.5}
    assert training_step.record(configuration, "same", "ours, float32", seconds, peaks, None)["targets"] == {}


def test_goals_of_the_training_step_follow_the_level():
    configuration = training_step.CONFIGURATIONS["256"]
    assert configuration.goals("ours, float32", "default", "avx512") == {"ratio": 5.5, "memory_ratio": 0.45}
    assert configuration.goals("ours, float32", "default", "avx2") == {"ratio": 6.0, "memory_ratio": 0.45}
    assert configuration.goals("ours, float32", "same", "avx2") == {}
    assert training_step.CONFIGURATIONS["256-small"].goals("ours, float32", "default", "avx2")["ratio"] == 4.0


class Process:
    """A process whose first step is slow to warm and whose losses are given."""

    def __init__(self, losses: dict[str, float] = LOSSES) -> None:
        self.losses, self.steps, self.ended = losses, 0, False

    def step(self) -> Made:
        self.steps += 1
        return Made(10.0 if self.steps == 1 else 1.0, self.losses)

    def finish(self) -> int:
        return 1 << 30

    def kill(self) -> None:
        self.ended = True


@pytest.mark.parametrize(
    ("factor", "precision", "agrees"),
    [(1.0005, "float32", True), (1.002, "float32", False), (1.04, "bfloat16", True), (1.06, "bfloat16", False)],
)
@pytest.mark.parametrize("name", ["loss", "perceptual", "tv"])
def test_losses_are_compared(name, factor, precision, agrees):
    found = disagreement({**LOSSES, name: factor * LOSSES[name]}, LOSSES, precision)
    assert (found is None) == agrees and (agrees or f"its {name} is" in found)
    assert f"its {name} is nan" in disagreement({**LOSSES, name: float("nan")}, LOSSES, precision)


def _processes(monkeypatch, losses):
    """Stand-ins for the processes, by variant."""
    made = {name: Process(values) for name, values in losses.items()}
    left = iter(made.values())
    monkeypatch.setattr(training_step, "StepProcess", lambda step: next(left))
    monkeypatch.setattr(training_step, "write_weights", lambda folder, size: None)
    return made


def test_first_steps_are_compared_and_not_timed(monkeypatch):
    monkeypatch.setattr(machine, "convolves_in_bfloat16", lambda: True)
    made = _processes(monkeypatch, dict.fromkeys(training_step.VARIANTS, LOSSES))
    records = training_step.measure("64", "default", training_step.parse(["--rounds", "2"]))
    assert [record["seconds"] for record in records] == [1.0] * 3
    assert all(process.steps == 3 and process.ended for process in made.values())


def test_what_computes_something_else_is_refused_and_the_next_configuration_follows(monkeypatch, tmp_path, capsys):
    measured = []

    def measure(key, allocator, options):
        measured.append((key, allocator))
        if key == "64":
            _processes(monkeypatch, {"ours, float32": {**LOSSES, "tv": 0.6}, BASE: LOSSES})
            with training_step.processes(
                training_step.CONFIGURATIONS["64"], ["ours, float32", BASE], threads=1, device="cpu", keep=False
            ):
                pytest.fail("these do not agree")
        return []

    monkeypatch.setattr(training_step, "measure", measure)
    path = tmp_path / "results.json"
    for _ in range(2):
        assert training_step.main(["--only", "64", "128", "--json", str(path)]) == 1
    assert measured[:2] == [("64", "default"), ("128", "default")]
    (refused,) = results.load(path)["refused"]
    assert refused["operator"] == "training step" and "ours, float32 does not compute what" in refused["reason"]
    assert "its tv is 0.6 instead of 0.5" in capsys.readouterr().err


def test_a_process_that_ends_is_one_sentence(tmp_path, capfd):
    process = StepProcess(Step(str(tmp_path), flow_size=64, batch=2, threads=1))
    with pytest.raises(UserError, match=r"a measuring process ended with status 1; its message is above"):
        process.step()
    assert "generator.safetensors" in capfd.readouterr().err


def test_what_torch_computes_number_by_number_is_not_timed(monkeypatch):
    for convolves in (True, False):
        monkeypatch.setattr(machine, "convolves_in_bfloat16", lambda convolves=convolves: convolves)
        assert ("ours, bfloat16" in training_step.variants_for("cpu")) == convolves
        assert (torch.bfloat16 in {case.dtype for case in bench_modulated_conv2d.cases()}) == convolves
    assert "ours, bfloat16" in training_step.variants_for("cuda")


def test_what_else_is_printed_does_not_come_between_the_figures():
    program = """
import os
from benchmarks.step_process import standard_output_for_figures
figures = standard_output_for_figures()
print("a notice")
os.system("echo another")
print(7, file=figures, flush=True)
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout == "7\n"
    assert sorted(ran.stderr.split("\n")[:2]) == ["a notice", "another"]


def test_pytest_benchmark_reads_the_clock_of_the_processes():
    process, before = Process(), under_pytest.said_by_the_processes()
    under_pytest.timed(process)
    under_pytest.timed(process)
    assert under_pytest.said_by_the_processes() - before == pytest.approx(11.0)


def test_the_reference_makes_its_first_step_once_for_each_configuration(monkeypatch, tmp_path):
    made = []
    monkeypatch.setattr(under_pytest, "StepProcess", lambda step: made.append(step) or Process())
    monkeypatch.setattr(under_pytest, "write_weights", lambda folder, size: None)
    expected = under_pytest.Expected(tmp_path, "cpu", 1)
    for variant in (BASE, "ours, float32", "ours, bfloat16"):
        assert expected.compare("64", variant, expected.process("64", variant)) is None
    assert [step.ops for step in made] == ["reference", "fused", "fused"]
    other = under_pytest.Expected(tmp_path, "cpu", 1)
    assert other.compare("64", "ours, float32", Process({**LOSSES, "loss": 3.0})) == "its loss is 3 instead of 2"
    assert [step.ops for step in made[3:]] == ["reference"]
    assert set(step_process.TOLERANCES) >= {settings.get("precision", "float32") for settings in ALL_VARIANTS.values()}


def test_operations_are_those_of_convolutions_and_products():
    x, weight = torch.randn(2, 3, 5, 5, requires_grad=True), torch.randn(4, 3, 3, 3, requires_grad=True)
    once = 2 * 2 * 4 * 3 * 9 * 25
    convolve = partial(torch.nn.functional.conv2d, x, weight, padding=1)
    assert pretraining_step.operations_of(convolve) == once
    assert pretraining_step.operations_of(lambda: convolve().sum().backward()) == 3 * once
    assert pretraining_step.operations_of(lambda: torch.randn(3, 4) @ torch.randn(4, 5) + 1) == 2 * 3 * 4 * 5
