# SPDX-License-Identifier: Apache-2.0
"""The environment report, and what happens where the library is missing, switched off or broken."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import gangealing_fast
from gangealing_fast.ops import _extension, environment

PACKAGE = Path(gangealing_fast.__file__).parent
OPERATORS = {"bias_act", "bias_act_backward", "bilinear_downsample", "bilinear_downsample_backward", "upfirdn2d"}


def python(*arguments: str, path: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run this interpreter apart, with `path` first on its search path."""
    variables = {**os.environ, **environment, "PYTHONPATH": str(path or PACKAGE.parent)}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=variables, cwd=path, timeout=300)


def copy_of_package(folder: Path) -> Path:
    """The operators alone, without the compiled library."""
    for part in ("__init__.py", "env.py"):
        (folder / "gangealing_fast").mkdir(exist_ok=True)
        shutil.copy(PACKAGE / part, folder / "gangealing_fast" / part)
    for room in ("ops", "runtime"):
        shutil.copytree(PACKAGE / room, folder / "gangealing_fast" / room)
    return folder


def test_every_operator_is_listed_with_a_reason_per_device():
    record = environment.collect()
    assert set(record["operators"]) >= OPERATORS
    for devices in record["operators"].values():
        assert set(devices) == {"cpu", "cuda"}
        assert all(kind in ("compiled", "triton", "reference") and why for kind, why in devices.values())
    text = environment.describe(record)
    assert "upfirdn2d" in text and record["packages"]["torch"] in text


def test_compiled_kernels_are_reported_as_such():
    if not _extension.load():
        pytest.skip("the extension is not built")
    record = environment.collect()
    assert record["library"]["loaded"] and record["library"]["build"]["library"]
    for operator in OPERATORS:
        assert record["operators"][operator]["cpu"][0] == "compiled"


def test_operators_served_by_triton_are_reported_as_such():
    pytest.importorskip("triton")
    for operator in ("bias_act", "bias_act_backward", "flow_regularizer", "convex_upsample", "lpips_distance", "adain", "adam_ema"):
        kind, why = environment.serving(operator, "cuda")
        assert kind == "triton" and f"kernels/{operator.removesuffix('_backward')}.py" in why


def test_without_triton_the_references_serve_on_cuda(monkeypatch):
    from gangealing_fast.ops import _triton

    monkeypatch.setattr(_triton, "available", lambda: False)
    assert (
        environment.serving("bias_act", "cuda")[0] == "reference"
        and "pip install triton" in environment.serving("bias_act", "cuda")[1]
    )


def test_json_is_one_object():
    result = python("-m", "gangealing_fast.env", "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["gangealing_fast"] == gangealing_fast.__version__


def test_without_library_the_references_serve(tmp_path):
    result = python("-m", "gangealing_fast.env", path=copy_of_package(tmp_path))
    assert result.returncode == 0, result.stderr
    assert "compiled library: not in use, because it was never built" in result.stdout
    assert " compiled   " not in result.stdout
    code = "import torch; from gangealing_fast import ops; print(ops.upfirdn2d(torch.ones(1,1,4,4), ops.blur_filter()).mean())"
    assert python("-c", code, path=tmp_path).stdout.startswith("tensor(1.")


def test_a_failed_build_says_why(tmp_path):
    copy_of_package(tmp_path)
    (tmp_path / "gangealing_fast" / "_C.json").write_text('{"library": false, "reason": "cannot run g++"}')
    result = python("-m", "gangealing_fast.env", path=tmp_path)
    assert "not in use, because cannot run g++" in result.stdout


def test_switched_off():
    result = python("-m", "gangealing_fast.env", GGF_DISABLE_EXTENSION="1")
    assert "GGF_DISABLE_EXTENSION is set" in result.stdout


def test_a_broken_library_raises(tmp_path):
    copy_of_package(tmp_path)
    (tmp_path / "gangealing_fast" / "_C.so").write_bytes(b"not a library")
    result = python("-c", "from gangealing_fast import ops", path=tmp_path)
    assert result.returncode != 0
    assert "ImportError: The compiled library" in result.stderr and "pip install -e ." in result.stderr


MISSING = {
    "train": ("--generator", "none"),
    "pretrain": ("--data", "none"),
    "classify": ("--checkpoint", "none"),
    "contrast": ("--data", "none"),
}


@pytest.mark.parametrize("command", MISSING)
def test_whatever_trains_says_in_its_first_line_that_references_serve(command, tmp_path):
    """The command itself then ends, as its file is not there: the sentence comes before."""
    command_line = ("-m", f"gangealing_fast.{command}", *MISSING[command], "--out", str(tmp_path / "out"))
    first = python(*command_line, GGF_DISABLE_EXTENSION="1").stdout.splitlines()[:1]
    assert first and "references serve" in first[0] and "2 to 7 times" in first[0] and "GGF_DISABLE_EXTENSION is set" in first[0]
    chosen = python(*command_line, "--ops", "reference", GGF_DISABLE_EXTENSION="1")
    assert "references serve" not in chosen.stdout


def test_the_notice_names_a_checkout_that_was_never_built(tmp_path):
    code = "from gangealing_fast.ops.environment import notice; print(notice('fused')); print(notice('reference'))"
    said = python("-c", code, path=copy_of_package(tmp_path)).stdout.splitlines()
    assert "it was never built" in said[0] and "pip install -e ." in said[0] and said[1] == "None"


def test_the_factors_of_the_notice_are_those_that_were_measured():
    """On every processor and at every level that the page of figures has."""
    files = [path for path in (PACKAGE.parent / "docs").glob("performance*.json") if path.stem != "performance-gpu"]
    measured = [row for path in files for row in json.loads(path.read_text())["training_step"]]
    ratios = [row["ratio"] for row in measured if row["variant"] == "ours, float32" and row["allocator"] == "default"]
    assert len(files) > 1 and min(ratios) >= 2 and max(ratios) <= 7
