# SPDX-License-Identifier: Apache-2.0
"""tools/check_torch_versions.py: it covers what is promised and what is compiled, and a release that cannot be had is said."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tools import check_torch_versions as tool

ROOT = Path(__file__).resolve().parents[1]


def test_the_oldest_promised_release_is_checked():
    (promised,) = re.findall(r'"torch>=([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    assert tool.HEADERS[0] == f"{promised}.0"


def test_every_source_is_compiled_and_every_operator_tested():
    assert set(tool.sources()) == {file for pattern in ("*.cpp", "*.cu") for file in (ROOT / "csrc").rglob(pattern)}
    kernels = {file.stem for folder in ("cpu", "cuda") for file in (ROOT / "csrc" / folder).glob("*.c*") if "." in file.name}
    operators = {Path(file).stem.removeprefix("test_") for file in tool.operator_tests()}
    public = {file.stem for file in (ROOT / "gangealing_fast" / "ops").glob("[a-z]*.py")} - {"environment"}
    assert operators == public and operators & kernels


def test_ci_runs_it():
    assert "make versions" in (ROOT / ".ci" / "run").read_text().splitlines()
    assert "-m tools.check_torch_versions" in (ROOT / "Makefile").read_text()


def test_a_release_that_cannot_be_had_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(tool, "CACHE", tmp_path)
    for name in ("PIP_NO_INDEX", "PIP_NO_INPUT"):
        monkeypatch.setenv(name, "1")
    with pytest.raises(tool.CheckError, match=r"^torch 2\.10\.99 cannot be had, so that nothing is known about it:"):
        tool.wheel("2.10.99")


def test_a_source_that_does_not_compile_is_named(tmp_path, monkeypatch):
    if not shutil.which("g++"):
        pytest.skip("needs g++")
    source = tool.ROOT / "csrc" / "register.cpp"
    monkeypatch.setattr(tool, "sources", lambda: [source])
    with pytest.raises(tool.CheckError, match=r"csrc/register\.cpp does not compile against torch 9\.9"):
        tool.check_headers("9.9", tmp_path)
