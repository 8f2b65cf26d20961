# SPDX-License-Identifier: Apache-2.0
"""The trials of critics that classify run and give figures; `python -m benchmarks.objectives --mnist FOLDER` runs them in full."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from picture_files import write_idx

from benchmarks.objectives import circles, class_trials


@pytest.fixture
def folder(tmp_path):
    """Ten classes that anything can tell apart: a bright block at a place of its own."""
    chance = np.random.default_rng(0)
    for part, count in (("train", 400), ("t10k", 100)):
        labels = np.resize(np.arange(10, dtype=np.uint8), count)
        images = chance.integers(0, 40, (count, 28, 28), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            row, column = divmod(int(label), 4)
            image[9 * row : 9 * row + 7, 7 * column : 7 * column + 7] = 220
        write_idx(tmp_path / f"{part}-images-idx3-ubyte", images)
        write_idx(tmp_path / f"{part}-labels-idx1-ubyte", labels)
    return tmp_path


@pytest.mark.parametrize("name", ["catgan-unsupervised", "catgan-100", "semi-supervised-25"])
def test_trials_give_the_figures_of_their_goals(folder, monkeypatch, name):
    monkeypatch.setattr(class_trials, "LOOKS", (2, 40))
    figures = class_trials.TRIALS[name](folder, 0, steps=4)
    wanted = class_trials.GOALS[name if name != "semi-supervised-25" else "semi-supervised-100"]
    assert wanted.keys() <= figures.keys() and figures["cpu_seconds"] > 0
    if "without_generator" in figures:
        assert figures["without_generator"] > 0.9 and figures["its_best_step"] in (2, 40)
        assert figures["gain"] == pytest.approx(figures["accuracy"] - figures["without_generator"])


def test_circles_are_told_apart_by_either_assignment():
    points, which = circles.circles(400)
    radius = points.norm(dim=1)
    assert abs(radius[which == 0].mean() - 0.2) < 0.05 and abs(radius[which == 1].mean() - 1) < 0.05

    class Radius(torch.nn.Module):
        def forward(self, x):
            return torch.stack([x.norm(dim=1), torch.full((len(x),), 0.6)], 1)

    assert circles.accuracy(Radius()) == 1.0
    halves = torch.nn.Linear(2, 2)
    torch.nn.init.zeros_(halves.bias)
    assert circles.accuracy(halves) < 0.55
