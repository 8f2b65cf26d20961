# SPDX-License-Identifier: Apache-2.0
"""The trials on MNIST run and give the figures that their goals are about; `python -m benchmarks.objectives` runs them in full."""

from __future__ import annotations

import pytest
import torch
from support import shared

from benchmarks.objectives import digit_trials
from benchmarks.objectives.digits import Judge, Training, held_out, options
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.runtime.precision import resolve


class Untrained(Judge):
    """The classifier with its first weights; the test digits that it compares with are a few."""

    def __init__(self, folder):
        self.dtype, self.accuracy = resolve("auto", torch.device("cpu")), 0.1
        self.build()
        self.real = self(held_out(folder)[0][:128])[1]


@pytest.mark.parametrize("name", digit_trials.TRIALS)
def test_trials_give_the_figures_of_their_goals(monkeypatch, name):
    folder = shared("data", "mnist")
    monkeypatch.setattr(digit_trials, "judge", Untrained)
    monkeypatch.setattr(digit_trials, "SAMPLES", 130)
    figures = digit_trials.TRIALS[name](folder, 0, steps=10)
    assert digit_trials.GOALS[name].keys() <= figures.keys() and figures["cpu_seconds"] > 0


def test_codes_given_are_the_codes_drawn():
    training = Training(options(shared("data", "mnist"), "infogan", 0, channel_base=64, max_channels=16))
    codes = training.objective.codes
    seen = []
    training.networks.average.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    given = codes.draw(260)
    assert training.draw(260, given).shape == (260, 3, 32, 32) and training.draw(3).shape == (3, 3, 32, 32)
    assert torch.equal(codes.split(torch.cat(seen[:2])[:, :12])[0], codes.split(given)[0])
    assert (torch.cat(seen[:2])[:, :12] - codes.into(torch.zeros(260, 13), given)[:, :12]).abs().max() == 0


def test_a_missing_folder_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="train"):
        Training(options(tmp_path, "acgan", 0))
