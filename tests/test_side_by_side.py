# SPDX-License-Identifier: Apache-2.0
"""Work done side by side: order, threads, what is of the caller's thread, errors."""

from __future__ import annotations

import threading

import pytest
import torch

from gangealing_fast import ops
from gangealing_fast.runtime.side_by_side import side_by_side


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_in_order_with_one_thread_each(two_threads):
    both = threading.Barrier(2)

    def work(item: int) -> tuple[int, int, bool]:
        both.wait(timeout=30)  # only if two are at work at once
        return item, torch.get_num_threads(), threading.current_thread() is threading.main_thread()

    assert side_by_side(work, range(6)) == [(item, 1, False) for item in range(6)]
    assert torch.get_num_threads() == 2


def test_an_item_by_itself_has_all_threads(two_threads):
    seen = side_by_side(lambda _: (torch.get_num_threads(), threading.current_thread() is threading.main_thread()), [0])
    assert seen == [(2, True)]
    assert side_by_side(lambda item: item, []) == []


def test_the_choices_of_the_caller_hold(two_threads):
    def work(_: int) -> tuple[str, bool]:
        return ops.used(), torch.is_grad_enabled()

    assert side_by_side(work, range(4)) == [("fused", True)] * 4
    with ops.reference(), torch.no_grad():
        assert side_by_side(work, range(4)) == [("reference", False)] * 4


def test_an_error_ends_it_and_threads_are_as_before(two_threads):
    def work(item: int) -> int:
        if item == 2:
            raise KeyError(item)
        return item

    with pytest.raises(KeyError):
        side_by_side(work, range(5))
    assert torch.get_num_threads() == 2
