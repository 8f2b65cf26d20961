# SPDX-License-Identifier: Apache-2.0
"""Every test starts from the same seeds, and memory it allocates without writing holds NaN. What was skipped says why."""

from __future__ import annotations

import random

import numpy as np
import pytest
from skipping import why_skipped


@pytest.fixture(autouse=True)
def reproducible(request: pytest.FixtureRequest):
    """Seed all generators; poison fresh tensors with NaN, so that an element a kernel forgets to write shows.

    A test that must not import torch carries the marker `no_torch`.
    """
    random.seed(0)
    np.random.seed(0)
    if request.node.get_closest_marker("no_torch"):
        yield
        return
    import torch

    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is marked slow begins, so that no process is still at it when the others have nothing left to do."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    line = why_skipped(terminalreporter.stats.get("skipped", []))
    if line:
        terminalreporter.write_line(line)
