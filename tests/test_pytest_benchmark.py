# SPDX-License-Identifier: Apache-2.0
"""`pytest benchmarks`: that it measures everything once, compares first, saves and compares. No test looks at speed.

`make test` runs its quick selection. Here is what that does not show: files that are written, and what is refused.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import cases, operators
from benchmarks import test_operators as measured_operators
from benchmarks import test_whole_training_step as measured_steps
from benchmarks.case import COMPILE, FORWARD, Case, Variant
from benchmarks.test_operators import Expected, Measured
from benchmarks.training_step import ALL_VARIANTS, BASE, CONFIGURATIONS

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`pytest benchmarks` in a process of its own, none of whose settings come from the one that asks."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "benchmarks", "-q", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)


@pytest.mark.parametrize("operator", operators())
def test_every_case_pass_and_variant_of_the_harness_is_measured_once(operator):
    parameters = [parameter for parameter in measured_operators.everything() if parameter.values[0].case.operator == operator]
    found = [(parameter.values[0].group, parameter.values[0].variant.name) for parameter in parameters]
    expected = [
        (f"{operator} {case.name} {case.number_format}, {what}", variant.name)
        for case in cases(operator)
        for what in case.passes
        for variant in case.variants
        if variant.passes is None or what in variant.passes
    ]
    assert found == expected and len(set(found)) == len(found)
    assert len({parameter.id for parameter in parameters}) == len(parameters)
    assert all(parameter.id.isascii() for parameter in parameters)
    quick = [parameter.values[0] for parameter in parameters if parameter.marks]
    assert len({measured.case.name for measured in quick}) == 1
    assert {measured.what for measured in quick} == set(quick[0].case.passes)
    assert {measured.variant.name for measured in quick} - {COMPILE} == {variant.name for variant in quick[0].case.variants} - {
        COMPILE
    }


def test_every_configuration_and_variant_of_the_training_step_is_measured_once():
    parameters = list(measured_steps.everything())
    found = [tuple(parameter.values) for parameter in parameters]
    assert sorted(found) == sorted((key, variant) for key in CONFIGURATIONS for variant in ALL_VARIANTS)
    assert all(variant == BASE for _, variant in found[:: len(ALL_VARIANTS)])
    assert {tuple(parameter.values) for parameter in parameters if parameter.marks} == {("64", "ours, float32"), ("64", BASE)}


def _measured(name: str, function) -> Measured:
    variants = (Variant("ours", torch.square), Variant("reference", torch.square), Variant(name, function))
    case = Case("square", "[3]", lambda device: (torch.randn(3, device=device),), variants, passes=(FORWARD,))
    return Measured(case, FORWARD, variants[-1])


def test_what_disagrees_is_not_timed():
    with pytest.raises(pytest.fail.Exception, match=r"not timed: square \[3\], forward: result 0 of other differs from reference"):
        measured_operators.warm_runner(_measured("other", lambda x: 1.01 * x.square()), Expected(), CPU)


def test_what_does_not_compile_is_skipped_with_the_reason():
    def broken(x):
        raise RuntimeError("no such thing\nand more")

    with pytest.raises(pytest.skip.Exception, match="torch.compile fails: no such thing$"):
        measured_operators.warm_runner(_measured(COMPILE, broken), Expected(), CPU)


def test_the_reference_is_computed_once_for_a_group():
    ran = []
    variants = (Variant("ours", torch.square), Variant("reference", lambda x: ran.append(1) or x.square()))
    case = Case("square", "[3]", lambda device: (torch.randn(3, device=device),), variants, passes=(FORWARD,))
    expected = Expected()
    for _ in range(3):
        measured_operators.warm_runner(Measured(case, FORWARD, variants[0]), expected, CPU)
    assert len(ran) == 1


def test_results_are_saved_and_compared(tmp_path):
    chosen = ["-k", "flow_regularizer and 40 and not backward", "--benchmark-max-time=0.01", "--benchmark-min-rounds=2"]
    storage, written = f"--benchmark-storage={tmp_path / 'kept'}", tmp_path / "results.json"
    first = run(*chosen, storage, "--benchmark-save=before", f"--benchmark-json={written}")
    assert first.returncode == 0, first.stdout + first.stderr
    found = json.loads(written.read_text())
    group = "flow_regularizer flow [40, 128, 128, 2] float32, forward"
    assert [entry["group"] for entry in found["benchmarks"]] == [group] * 3
    assert [entry["extra_info"]["variant"] for entry in found["benchmarks"]] == ["ours", "reference", "torch"]
    assert found["machine_info"]["measured_on"]["torch"] == torch.__version__
    second = run(*chosen, storage, "--benchmark-compare")
    assert second.returncode == 0, second.stdout + second.stderr
    assert "(0001_before)" in second.stdout and "(NOW)" in second.stdout and f"benchmark '{group}'" in second.stdout


def test_a_device_that_is_missing_is_one_sentence():
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    done = run("--device", "cuda")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "torch finds none on this machine" in done.stderr and "Traceback" not in done.stderr


def test_the_tests_alone_collect_no_benchmark(request):
    assert request.config.getini("testpaths") == ["tests"]
