# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels in Triton's interpreter, chosen before Triton is imported: a pytest process of its own; or on a card."""

from __future__ import annotations

import os
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
REASON = "needs a CUDA device, or TRITON_INTERPRET=1 before Triton is imported: `make test` does that in a second process"

sys.path.insert(0, str(ROOT))
from tools.checkout import use_kernels  # noqa: E402

use_kernels()


def pytest_configure() -> None:
    """Triton 3.6's interpreter turns arrays of one element into whole numbers, which NumPy 2.4 and later refuse."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        return
    installed = {name: tuple(map(int, version(name).split(".")[:2])) for name in ("triton", "numpy")}
    if installed["triton"] < (3, 7) and installed["numpy"] >= (2, 4):
        raise pytest.UsageError(
            f"the interpreter of Triton {version('triton')} does not work with NumPy {version('numpy')}; install numpy<2.4"
        )


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without the interpreter these are tests of a card."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        return
    import torch

    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            item.add_marker(pytest.mark.skipif(not torch.cuda.is_available(), reason=REASON))


@pytest.fixture(autouse=True)
def float32_to_the_last_digit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The references know no TF32."""
    import torch

    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
