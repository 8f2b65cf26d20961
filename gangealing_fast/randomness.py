# SPDX-License-Identifier: Apache-2.0
"""Random numbers that do not disturb the run: looking at a run must not change what it learns."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def private_stream(seed: int) -> Iterator[None]:
    """Inside the block torch's default generators start at `seed`; afterwards they are where they were."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield
