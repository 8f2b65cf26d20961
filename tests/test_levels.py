# SPDX-License-Identifier: Apache-2.0
"""The CPU kernels at every vector level that this processor has beside its highest, and what GGF_CPU_LEVEL may say."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from problems import WIDE, Problem, problems
from support import at_level

from gangealing_fast.ops import _extension, _levels
from gangealing_fast.runtime.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
CORE = """
import pytest
from gangealing_fast import ops
from gangealing_fast.ops import _levels
assert _levels.in_use() == {level!r}, _levels.in_use()
chosen = ["-k", "operator or error", "tests/test_fuzz.py", "tests/test_winograd.py"]
raise SystemExit(pytest.main(["-q", "-x", "-p", "no:cacheprovider", *chosen]))
"""


@pytest.fixture(autouse=True)
def library() -> None:
    if not _extension.load():
        pytest.skip("the extension is not built")


@pytest.fixture
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    """The library at a level; the one that it had comes back."""
    with at_level(request.param):
        yield request.param


def python(code: str, level: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "GGF_CPU_LEVEL": level, "GGF_FUZZ_EXAMPLES": "20", "OMP_NUM_THREADS": "1"}
    variables["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=variables, timeout=900)


@pytest.mark.parametrize("level", ["avx2", "default"], indirect=True)
@pytest.mark.parametrize("problem", problems(), ids=str)
def test_values(problem: Problem, level: str) -> None:
    """Outputs and gradients of every shared case, contiguous and channels-last. The narrow types are among the random calls."""
    problem.check(tuple(dtype for dtype in problem.dtypes if dtype in WIDE))
    assert _levels.in_use() == level


@pytest.mark.slow
@pytest.mark.parametrize("level", ["avx2", "default"])
def test_random_calls_in_a_process_held_to_a_level(level: str) -> None:
    """All operators, those too that have no shared cases, and the stated errors of the fast convolution."""
    if _levels.LEVELS.index(level) > torch.ops.gangealing_fast_levels.highest():
        pytest.skip(f"this processor lacks {level}")
    result = python(CORE.format(level=level), level)
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]


@pytest.mark.parametrize("name", ["avx", "AVX2", "2", "avx2 "])
def test_a_level_that_there_is_not_is_one_sentence(name: str) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "gangealing_fast.env"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "GGF_CPU_LEVEL": name},
        timeout=300,
    )
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.startswith("error: GGF_CPU_LEVEL is ") and repr(name) in result.stderr and "avx512" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_level_that_the_processor_lacks_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    before = _levels.in_use()
    monkeypatch.setattr(_levels, "LEVELS", (*_levels.LEVELS, "avx1024"))
    with pytest.raises(UserError, match="asks for avx1024, but this processor and this library go up to"):
        _levels.choose("avx1024")
    assert _levels.in_use() == before
    with pytest.raises(RuntimeError, match="levels 0 to"):
        torch.ops.gangealing_fast_levels.choose(-1)


def test_the_environment_report_says_the_level() -> None:
    result = python("from gangealing_fast.ops import environment; print(environment.describe(environment.collect()))", "default")
    assert result.returncode == 0, result.stderr
    assert "default, chosen by GGF_CPU_LEVEL" in result.stdout
