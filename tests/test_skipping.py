# SPDX-License-Identifier: Apache-2.0
"""Tests that were skipped are counted by their reasons, in one line."""

from __future__ import annotations

from types import SimpleNamespace

from skipping import why_skipped


def test_reasons_are_counted():
    def report(reason: str) -> SimpleNamespace:
        return SimpleNamespace(longrepr=("file.py", 3, f"Skipped: {reason}"))

    card = report("there is no CUDA device")
    assert why_skipped([card, report("could not import 'onnx'"), card]) == (
        "3 skipped: 2 because: there is no CUDA device; 1 because: could not import 'onnx'"
    )
    assert why_skipped([]) is None
