# SPDX-License-Identifier: Apache-2.0
"""What objectives promise on points in the plane; `python -m benchmarks.objectives` runs it for three seeds."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks.objectives import __main__ as command
from benchmarks.objectives import trials
from benchmarks.objectives.distances import spearman, wasserstein
from benchmarks.objectives.plane import quality, ring, ring_centres
from gangealing_fast.metrics.divergences import wasserstein_1d


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ring-dragan", "wasserstein", "circles"])
def test_goals_are_met(name):
    record = trials.measure(name, 0)
    for figure, (lowest, highest) in trials.GOALS[name].items():
        assert lowest <= record[figure] <= highest, record


def test_quality_counts_modes_and_good_points():
    centres = ring_centres()
    good = centres[:5].repeat_interleave(20, 0) + 0.01
    points = torch.cat([good, torch.zeros(100, 2), centres[7:]])
    assert quality(points, 0.02) == (5, pytest.approx(101 / 201))
    assert quality(points, 0.02, share=1 / 201)[0] == 6
    assert quality(ring(4000, 0.02), 0.02)[1] == pytest.approx(0.989, abs=0.01), "3 deviations in the plane hold 1 - exp(-4.5)"


def test_distances():
    x, y = torch.randn(40, 1), torch.randn(40, 1) + 1
    assert wasserstein(x, y) == pytest.approx(wasserstein_1d(x.flatten(), y.flatten()).item(), abs=1e-6)
    plane = torch.randn(30, 2)
    assert wasserstein(plane, plane[torch.randperm(30)] + torch.tensor([3.0, 4.0])) == pytest.approx(5, abs=1e-5)
    assert spearman([1, 2, 3, 4], [1, 8, 27, 64]) == pytest.approx(1)
    assert spearman([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    # Ranks 0.5, 0.5, 2, 3 and 1, 0, 2.5, 2.5.
    assert spearman([1, 1, 2, 3], [2, 1, 3, 3]) == pytest.approx(4.0 / 4.5)
    assert spearman([1, 1, 1], [1, 2, 3]) == 0


def test_the_command_reports_medians_and_missed_goals(monkeypatch, tmp_path, capsys):
    assert (*trials.TRIALS, *trials.ON_DIGITS) == tuple(trials.GOALS) == command.NAMES
    monkeypatch.setitem(trials.TRIALS, "ring-dragan", lambda seed: {"modes": 8 if seed else 3, "good": 0.1 * seed + 0.7})
    status = command.main(["ring-dragan", "--seeds", "0", "1", "2", "--json", str(tmp_path / "figures.json")])
    line = capsys.readouterr().out
    assert status == 1 and "modes 8 (3, 8, 8) met" in line and "good 0.8 (0.7, 0.8, 0.9) MISSED" in line
    assert [record["seed"] for record in json.loads((tmp_path / "figures.json").read_text())["ring-dragan"]] == [0, 1, 2]
    assert command.main(["no-trial"]) == 2
    assert command.main(["acgan"]) == 2
    assert "give --mnist" in capsys.readouterr().err
