# SPDX-License-Identifier: Apache-2.0
"""Runs Python code on libraries built with AddressSanitizer and UndefinedBehaviorSanitizer, and builds that of the CPU kernels."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BUILT = ROOT / "build" / "sanitized"


def compiler() -> str:
    """The C++ compiler; skips the test where there is none."""
    found = os.environ.get("CXX") or shutil.which("g++")
    if not found:
        pytest.skip("needs a C++ compiler")
    return found


def _preloaded() -> list[str]:
    # The C++ library beside it: without it the sanitizer cannot pass on the exceptions that other libraries throw and catch.
    found = []
    for name in ("libasan.so", "libstdc++.so.6"):
        result = subprocess.run([compiler(), f"-print-file-name={name}"], capture_output=True, text=True)
        found.append(result.stdout.strip())
    if not all(Path(library).is_absolute() for library in found):
        pytest.skip("the compiler has no AddressSanitizer")
    return found


def run(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """The result of Python code in a process of its own, where a sanitized library can be loaded."""
    environment = {
        **os.environ,
        "LD_PRELOAD": " ".join(_preloaded()),
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        "OMP_NUM_THREADS": "1",
        **variables,
    }
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=900)


def cpu_library() -> Path:
    """The sanitized build of csrc/cpu; compiles what changed."""
    _preloaded()
    BUILT.mkdir(parents=True, exist_ok=True)
    variables = {**os.environ, "GGF_SANITIZE": "1", "GGF_REQUIRE_EXTENSION": "1", "FORCE_CUDA": "0"}
    command = [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", str(BUILT), "--build-temp", str(BUILT)]
    with open(BUILT / "lock", "w") as lock:  # tests run in several processes
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=variables)
    assert result.returncode == 0, (result.stdout + result.stderr)[-6000:]
    return BUILT / "gangealing_fast" / "_C.so"
