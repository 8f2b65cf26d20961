# SPDX-License-Identifier: Apache-2.0
"""tools/first_gpu_run.sh with a stand-in for Python: every stage is tried, limited and reported, and arguments are checked."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "tools" / "first_gpu_run.sh"
STAGES = ["device", "build", "environment", "json", "tests", "sanitizer", "operators", "step"]
MARKS = {
    "device": "*is_available*",
    "build": "*setup.py*",
    "environment": "*gangealing_fast.env",
    "json": "*--json",
    "tests": "*junitxml*",
    "operators": "*benchmarks\\ --quick*",
    "step": "*training_step*",
}
"""How the arguments of a stage's Python look, as a pattern of the shell."""


def run(folder: Path, *arguments: str, fails: str = "", hangs: str = "", seconds: str = "") -> subprocess.CompletedProcess[str]:
    """The script in a copy of what it needs, with a Python that only tells, fails or hangs."""
    copy = folder / "copy"
    (copy / "tools").mkdir(parents=True)
    shutil.copy(SCRIPT, copy / "tools")
    for file in ("Makefile", "pyproject.toml", "setup.py"):
        shutil.copy(ROOT / file, copy)
    python = folder / "python"
    cases = [f"{MARKS[name]}) echo broken; exit 3;;" for name in fails.split()]
    cases += [f"{MARKS[name]}) exec sleep 60;;" for name in hangs.split()]
    python.write_text(f'#!/bin/bash\necho "ran $*"\ncase "$*" in\n{chr(10).join(cases)}\nesac\nexit 0\n')
    python.chmod(0o755)
    variables = {**os.environ, "PYTHON": str(python), "CUDA_HOME": "/nonexistent", "GGF_STAGE_SECONDS": seconds}
    command = ["bash", str(copy / "tools" / "first_gpu_run.sh"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=variables, timeout=120)


def results(out: Path) -> dict[str, str]:
    return {row["stage"]: row["result"] for row in json.loads((out / "summary.json").read_text())}


def test_every_stage_runs_and_is_reported(tmp_path):
    out = tmp_path / "out"
    result = run(tmp_path, str(out))
    assert result.returncode == 0, result.stdout + result.stderr
    found = results(out)
    assert list(found) == STAGES and set(found.values()) <= {"passed", "skipped"}
    assert all((out / f"{stage}.log").exists() for stage in STAGES) and "nothing failed" in result.stdout
    assert "setup.py build_ext --inplace" in (out / "build.log").read_text() and not (tmp_path / "copy" / ".venv").exists()


@pytest.mark.parametrize("broken", MARKS)
def test_a_failure_does_not_stop_the_next_stage(broken, tmp_path):
    out = tmp_path / "out"
    result = run(tmp_path, str(out), fails=broken)
    assert result.returncode == 1 and "something failed" in result.stdout
    found = results(out)
    assert list(found) == STAGES and [stage for stage, state in found.items() if state == "failed"] == [broken]


def test_a_stage_that_hangs_is_ended(tmp_path):
    out = tmp_path / "out"
    result = run(tmp_path, str(out), hangs="environment tests", seconds="1")
    assert result.returncode == 1
    assert {stage for stage, state in results(out).items() if state == "timed-out"} >= {"environment", "tests"}


@pytest.mark.parametrize("arguments", [(), ("a", "b"), ("--help",), ("",)], ids=str)
def test_wrong_arguments_are_one_sentence(arguments, tmp_path):
    result = run(tmp_path, *arguments)
    assert result.returncode == 2 and result.stderr.startswith("usage: ")


def test_results_of_another_run_are_not_mixed_in(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "kept").touch()
    result = run(tmp_path, str(out))
    assert result.returncode == 2 and "is not empty" in result.stderr and list(out.iterdir()) == [out / "kept"]


def test_the_limits_fit_nine_minutes():
    limits = [int(limit) for limit in re.findall(r"^\s*stage \w+ (\d+) ", SCRIPT.read_text(), re.MULTILINE)]
    assert len(limits) == len(STAGES) and sum(limits) + 3 * len(limits) < 540
