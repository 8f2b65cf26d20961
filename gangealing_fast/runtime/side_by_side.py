# SPDX-License-Identifier: Apache-2.0
"""Independent pieces of work at once, the threads divided among them: quicker than all threads together on one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from gangealing_fast.runtime.implementation import fused, reference, used

Item = TypeVar("Item")
Result = TypeVar("Result")


def side_by_side(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """`function` of every item, in their order: as many items at once as torch has threads, which are divided evenly among them.

    An item by itself has all threads, and many items have one each. The choice of kernels or references and of derivatives is the
    caller's. The first error ends it.
    """
    threads = torch.get_num_threads()
    workers = min(threads, len(items))
    if workers < 2:
        return [function(item) for item in items]
    implementation, derived = reference if used() == "reference" else fused, torch.is_grad_enabled()

    def run(item: Item) -> Result:
        # Both choices are of a thread.
        with implementation(), torch.set_grad_enabled(derived):
            return function(item)

    try:
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(threads // workers,)) as pool:
            return list(pool.map(run, items))
    finally:
        torch.set_num_threads(threads)
