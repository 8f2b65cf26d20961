# SPDX-License-Identifier: Apache-2.0
"""The CPU kernels under AddressSanitizer and UndefinedBehaviorSanitizer: bounds, overflows, a NaN that becomes an index."""

from __future__ import annotations

import subprocess
import sys

import pytest
import sanitizers

LOAD = """
from pathlib import Path
from gangealing_fast.ops import _extension
_extension.LIBRARY = Path({library!r})
assert _extension.load()
"""
EVERY_CASE = (
    LOAD
    + """
import torch
from problems import problems
from cases import adam_ema, invert_grid, lpips_distance
from gangealing_fast import ops
from gangealing_fast.ops.modulated_conv2d import convolution_algorithm
done = 0

def run(function, tensors, differentiable):
    global done
    leaves = [t.requires_grad_(i in differentiable) for i, t in enumerate(tensors)]
    y = function(*leaves)
    y = y if isinstance(y, torch.Tensor) else sum(part.sum() for part in y)
    torch.autograd.grad(y.float().nan_to_num().square().sum(), [leaves[i] for i in differentiable])
    done += 1

for dtype in (torch.float32, torch.bfloat16):
    for problem in problems():
        if dtype in problem.dtypes:
            run(problem.function, problem.tensors(dtype), problem.differentiable)
    for case in lpips_distance.CASES.values():
        run(lambda a, b, head: ops.lpips_distance([a], [b], [head]), case.tensors(dtype), (0, 1, 2))
for case in invert_grid.CASES:
    run(lambda *tensors: ops.invert_grid(*tensors)[0], case.tensors(torch.float32), (0, 1))
    ops.nearest_grid_point(*case.tensors(torch.float64))
for case in adam_ema.CASES.values():
    ops.adam_ema(*case.arguments(), **case.keywords)
for algorithm in ("library", "fused"):
    with convolution_algorithm(algorithm):
        for problem in problems("modulated_conv2d"):
            run(problem.function, problem.tensors(torch.float32), problem.differentiable)
print(done, "cases")
"""
)
# Not tests/test_large_sizes.py, which needs gigabytes of addresses, for which the sanitizer keeps books.
TESTS = (
    LOAD
    + """
import pytest
names = "operator or finite or options or long or registered or empty or route"
chosen = ["-k", names, "tests/test_fuzz.py", "tests/test_bad_input.py", "tests/test_zero_length.py"]
raise SystemExit(pytest.main(["-q", "-x", "-p", "no:cacheprovider", *chosen]))
"""
)


@pytest.fixture(scope="module")
def library() -> str:
    return str(sanitizers.cpu_library())


@pytest.mark.slow
def test_every_case(library):
    """All shared cases, forward and backward, in float32 and bfloat16, the convolution by every algorithm."""
    result = sanitizers.run(EVERY_CASE.format(library=library))
    assert result.returncode == 0, result.stderr[-6000:]
    assert int(result.stdout.split()[-2]) > 300


@pytest.mark.slow
def test_random_calls_and_bad_input(library):
    result = sanitizers.run(TESTS.format(library=library), GGF_FUZZ_EXAMPLES="50")
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-6000:]


def test_a_sanitized_library_is_no_library_for_use(monkeypatch):
    """Left in the package's folder it would make every import fail."""
    monkeypatch.setenv("GGF_SANITIZE", "1")
    monkeypatch.setenv("GGF_REQUIRE_EXTENSION", "1")
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    result = subprocess.run(command, cwd=sanitizers.ROOT, capture_output=True, text=True)
    assert result.returncode != 0 and "a library for tests only" in result.stderr
