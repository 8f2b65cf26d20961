# SPDX-License-Identifier: Apache-2.0
"""The table of tools/compare_precision.py: ratios of given runs, and where bfloat16's mean lies among float32's."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from gangealing_fast.runtime.errors import UserError

FILE = Path(__file__).parents[1] / "tools" / "compare_precision.py"
specification = importlib.util.spec_from_file_location("compare_precision", FILE)
compare_precision = importlib.util.module_from_spec(specification)
specification.loader.exec_module(compare_precision)


def test_where_the_mean_lies():
    assert compare_precision.place([0.2, 0.3], [0.2, 0.3, 0.4]) == "within the range"
    assert compare_precision.place([0.6, 0.6], [0.2, 0.3, 0.4]) == "above it, 3.0 deviations from the mean"
    assert compare_precision.place([0.1], [0.2]) == "below it"


def test_runs_of_both_precisions_become_rows(tmp_path, monkeypatch, capsys):
    asked = []

    def train(config):
        asked.append((config.precision, config.seed, config.steps, config.digit))
        return {"pair error": 0.25 + 0.01 * config.seed + 0.1 * (config.precision == "bfloat16")}

    monkeypatch.setattr(compare_precision, "train", train)
    compare_precision.main(["--out", str(tmp_path), "--seeds", "0", "1", "--steps", "7"])
    assert asked == [("float32", 0, 7, (3,)), ("bfloat16", 0, 7, (3,)), ("float32", 1, 7, (3,)), ("bfloat16", 1, 7, (3,))]
    assert "| pair error | 0.250, 0.260 | 0.255 | 0.350, 0.360 | 0.355 | above it" in capsys.readouterr().out
    assert (tmp_path / "table.md").read_text().startswith("| figure |")
    with pytest.raises(UserError, match="differ"):
        compare_precision.main(["--out", str(tmp_path), "--seeds", "1", "1"])
