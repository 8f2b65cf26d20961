# SPDX-License-Identifier: Apache-2.0
"""The choice between kernels by measurement: once per card and shape, remembered, never where runs must agree."""

from __future__ import annotations

import json

import pytest
import torch

pytest.importorskip("triton")

import triton

from tools.checkout import use_kernels

use_kernels()
from gangealing_fast.kernels import _tuning  # noqa: E402

CARD = torch.device("cuda", 0)


class Clock:
    """Runs what it is to time, and says the time it was told for it."""

    def __init__(self, times: dict[str, float]) -> None:
        self.times, self.measured = times, []

    def run(self, candidate: str) -> None:
        self.last = candidate
        if self.times[candidate] < 0:
            raise triton.runtime.errors.OutOfResources(1, 0, "shared memory")

    def time(self, run) -> float:
        run()
        self.measured.append(self.last)
        return self.times[self.last]


@pytest.fixture
def card(monkeypatch, tmp_path):
    """A card that may be measured, and an empty memory."""
    monkeypatch.setenv("GGF_CACHE", str(tmp_path))
    monkeypatch.setattr(_tuning, "may_measure", lambda device: True)
    monkeypatch.setattr(_tuning, "device_name", lambda device: "card A")
    forget(monkeypatch)
    return tmp_path / "tuning.json"


def forget(monkeypatch) -> None:
    """As a new process."""
    monkeypatch.setattr(_tuning, "_known", {})
    _tuning._remembered.cache_clear()


def choose(clock: Clock, settings=(5, 512), candidates=("a", "b", "c")) -> str:
    return _tuning.fastest("op", settings, CARD, list(candidates), clock.run, clock.time)


def test_the_fastest_is_chosen_and_remembered_beyond_the_process(card, monkeypatch):
    clock = Clock({"a": 3.0, "b": 1.0, "c": 2.0})
    assert choose(clock) == "b" and clock.measured == ["a", "b", "c"]
    assert choose(clock) == "b" and len(clock.measured) == 3
    forget(monkeypatch)
    assert choose(Clock({})) == "b"
    (key,) = json.loads(card.read_text())
    assert "card A" in key and "(5, 512)" in key


def test_other_shapes_and_other_cards_are_measured_anew(card, monkeypatch):
    assert choose(Clock({"a": 3.0, "b": 1.0, "c": 2.0})) == "b"
    assert choose(Clock({"a": 1.0, "b": 3.0, "c": 2.0}), settings=(5, 256)) == "a"
    monkeypatch.setattr(_tuning, "device_name", lambda device: "card B")
    assert choose(Clock({"a": 3.0, "b": 2.0, "c": 1.0})) == "c"
    assert len(json.loads(card.read_text())) == 3


def test_what_does_not_fit_the_card_is_out(card):
    assert choose(Clock({"a": -1.0, "b": 2.0, "c": 1.0})) == "c"
    assert choose(Clock({"a": -1.0, "b": -1.0, "c": -1.0}), settings=(1,)) == "a"


def test_a_remembered_choice_that_is_gone_is_measured_anew(card):
    assert choose(Clock({"a": 3.0, "b": 1.0, "c": 2.0})) == "b"
    assert choose(Clock({"a": 3.0, "c": 2.0}), candidates=("a", "c")) == "c"


@pytest.mark.parametrize("content", ["", "[1]", "{", '{"x": 1}'])
def test_a_broken_file_is_as_none(card, content):
    card.write_text(content)
    assert choose(Clock({"a": 3.0, "b": 1.0, "c": 2.0})) == "b"
    assert "b" in json.loads(card.read_text()).values()


def test_a_folder_that_cannot_be_written_to_costs_the_memory_only(card, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("GGF_CACHE", str(tmp_path / "file" / "below"))
    assert choose(Clock({"a": 3.0, "b": 1.0, "c": 2.0})) == "b"


def test_nothing_is_measured_where_runs_must_agree(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    torch.use_deterministic_algorithms(False)
    assert _tuning.may_measure(CARD) and not _tuning.may_measure(torch.device("cpu"))
    monkeypatch.setenv("GGF_TUNE", "0")
    assert not _tuning.may_measure(CARD)
    monkeypatch.delenv("GGF_TUNE")
    torch.use_deterministic_algorithms(True)
    assert not _tuning.may_measure(CARD)
    assert _tuning.fastest("op", (), CARD, ["a", "b"], Clock({}).run) == "a"
    torch.use_deterministic_algorithms(False)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert not _tuning.may_measure(CARD)
