# SPDX-License-Identifier: Apache-2.0
"""The loop that all commands train in: ticks, means, log before checkpoint, finite or stop, resuming to the same log."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from gangealing_fast.runtime.errors import UserError
from gangealing_fast.storage import checkpoint
from gangealing_fast.storage.files import read_json_lines
from gangealing_fast.training import loop
from gangealing_fast.training.loop import Means, NotFinite, Plan, Progress


class Counting:
    """Work whose loss is the number of its step, and which shows `pictures` units a step."""

    def __init__(self, pictures: int = 1, stop_at: int | None = None, broken: str | None = None) -> None:
        self.pictures, self.stop_at, self.broken = pictures, stop_at, broken
        self.total = 0.0
        self.shown: list[int] = []

    def step(self, at: Progress, means: Means) -> int:
        if at.step == self.stop_at:
            if self.broken is None:
                raise KeyboardInterrupt
            means.add({"loss": float(self.broken)})
        self.total += at.step
        means.add({"loss": float(at.step), "total": self.total})
        if at.step % 2 == 0:
            means.add({"even": 1.0})
        return self.pictures

    def measure(self, at, line):
        line["measured"] = at.done

    def show(self, at, line):
        self.shown.append(at.done)

    def state_dict(self):
        return {"total": self.total}

    def load_state_dict(self, state):
        self.total = state["total"]


def without_time(folder):
    return [{name: value for name, value in line.items() if name != "seconds"} for line in read_json_lines(folder / "log.jsonl")]


def test_a_line_holds_the_means_since_the_last_one(tmp_path):
    work = Counting()
    loop.run(work, Plan("count", 7, tick=2, snapshot=5, pictures=500), tmp_path, Progress())
    assert without_time(tmp_path) == [
        {"step": 2, "kimg": 1.0, "loss": 0.5, "total": 0.5, "even": 1.0, "measured": 2},
        {"step": 4, "kimg": 2.0, "loss": 2.5, "total": 4.5, "even": 1.0, "measured": 4},
        {"step": 5, "kimg": 2.5, "loss": 4.0, "total": 10.0, "even": 1.0, "measured": 5},
        {"step": 6, "kimg": 3.0, "loss": 5.0, "total": 15.0, "measured": 6},
        {"step": 7, "kimg": 3.5, "loss": 6.0, "total": 21.0, "even": 1.0, "measured": 7},
    ], "a snapshot ends a tick too, and so does the end; a name is averaged over the steps that had it"
    assert work.shown == [5, 7]
    assert checkpoint.load(tmp_path / "checkpoint.pt", kind="count") == {"step": 7, "shown": 7, "total": 21.0}


def test_progress_in_units_of_which_a_step_makes_several(tmp_path):
    work = Counting(pictures=6)
    loop.run(work, Plan("count", 20, tick=10, snapshot=10, unit="picture", pictures=1), tmp_path, Progress())
    assert [(line["step"], line["kimg"]) for line in without_time(tmp_path)] == [(2, 0.012), (4, 0.024)]
    assert work.shown == [12, 24]


@pytest.mark.parametrize("stop_at", range(7))
def test_stopped_anywhere_and_resumed_leaves_the_same_log_and_state(tmp_path, stop_at):
    plan = Plan("count", 7, tick=2, snapshot=3)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        folder.mkdir()
    loop.run(Counting(), plan, whole, Progress())
    with pytest.raises(KeyboardInterrupt):
        loop.run(Counting(stop_at=stop_at), plan, cut, Progress())
    work = Counting()
    start = loop.resume(work, plan, cut)
    assert start.step == stop_at // 3 * 3
    loop.run(work, plan, cut, start)
    assert without_time(whole) == without_time(cut)
    assert checkpoint.load(whole / "checkpoint.pt") == checkpoint.load(cut / "checkpoint.pt")


def test_killed_between_the_line_and_its_checkpoint_no_line_is_lost_or_doubled(tmp_path, monkeypatch):
    """The order of the two on the disk is what makes a log whole."""
    plan = Plan("count", 4, tick=1, snapshot=2)
    original, calls = checkpoint.save_latest, iter(range(10))

    def killed(*arguments, **keywords):
        if next(calls) == 1:
            raise KeyboardInterrupt
        return original(*arguments, **keywords)

    monkeypatch.setattr(checkpoint, "save_latest", killed)
    with pytest.raises(KeyboardInterrupt):
        loop.run(Counting(), plan, tmp_path, Progress())
    assert [line["step"] for line in without_time(tmp_path)] == [1, 2, 3, 4]
    work = Counting()
    loop.run(work, plan, tmp_path, loop.resume(work, plan, tmp_path))
    assert [line["step"] for line in without_time(tmp_path)] == [1, 2, 3, 4]


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_loss_that_is_not_finite_stops_with_one_sentence_and_the_last_checkpoint(tmp_path, value):
    plan = Plan("count", 9, tick=1, snapshot=2, remedy="try something else")
    with pytest.raises(UserError, match=f"not finite at step 6 \\(loss is {value}\\).*{tmp_path}/checkpoint.pt: try something"):
        loop.run(Counting(stop_at=5, broken=value), plan, tmp_path, Progress())
    assert checkpoint.load(tmp_path / "checkpoint.pt")["step"] == 4


def test_without_a_checkpoint_no_good_state_is_promised(tmp_path):
    with pytest.raises(UserError, match="there is no good state yet: .* starts anew"):
        loop.run(Counting(stop_at=1, broken="nan"), Plan("count", 9, tick=1, snapshot=4), tmp_path, Progress())


class Diverging(Counting):
    """Work whose state is NaN after step 5, before any loss shows it."""

    def state_dict(self):
        return {"total": self.total, "weights": torch.tensor([math.nan if self.total > 6 else self.total])}


def test_a_state_that_is_not_finite_is_neither_shown_nor_saved(tmp_path):
    work = Diverging()
    with pytest.raises(UserError, match=r"the state is not finite after step 6 \(weights\).*checkpoint.pt: "):
        loop.run(work, Plan("count", 9, tick=1, snapshot=2), tmp_path, Progress())
    assert work.shown == [2, 4] and checkpoint.load(tmp_path / "checkpoint.pt")["step"] == 4


def test_a_checkpoint_that_is_not_finite_is_left_for_the_one_before(tmp_path, capsys):
    """As earlier versions wrote it."""
    for step, value in ((2, 1.0), (4, math.nan)):
        checkpoint.save_latest(tmp_path, {"step": step, "total": 3.0, "weights": torch.tensor([value])}, kind="count")
    assert loop.resume(Counting(), Plan("count", 9, tick=1, snapshot=2), tmp_path) == Progress(2, 2)
    assert "values that are not finite (weights)" in capsys.readouterr().out
    (tmp_path / "checkpoint.previous.pt").write_bytes(b"")
    with pytest.raises(
        UserError, match=r"no checkpoint in .* can be used \(checkpoint.pt holds values.*checkpoint.previous.pt is trunc"
    ):
        loop.resume(Counting(), Plan("count", 9, tick=1, snapshot=2), tmp_path)


@pytest.mark.parametrize("state", [{}, {"step": -1}, {"step": "x"}, {"step": math.inf}, {"step": 1}, {"step": 1, "shown": 0.5}])
def test_a_checkpoint_that_makes_no_sense_is_one_sentence(tmp_path, state):
    checkpoint.save_latest(tmp_path, state, kind="count")
    with pytest.raises(UserError, match="does not belong to these options"):
        loop.resume(Counting(), Plan("count", 9, tick=1, snapshot=2), tmp_path)


def test_means_begin_anew_and_refuse_what_is_not_finite():
    means = Means()
    means.add({"a": 1.0})
    means.add({"a": 2.0, "b": 4.0})
    assert means.take() == {"a": 1.5, "b": 4.0}
    assert means.take() == {}
    with pytest.raises(NotFinite, match="c is nan"):
        means.add({"c": math.nan})


def test_a_checkpoint_that_holds_the_number_of_the_step_alone(tmp_path):
    """As runs from before units were counted wrote it."""
    checkpoint.save_latest(tmp_path, {"step": 3, "total": 3.0}, kind="count")
    plan = Plan("count", 100, tick=4, snapshot=4, unit="picture", units_per_step=4)
    assert loop.resume(Counting(), plan, tmp_path) == Progress(3, 12)


def test_nothing_to_resume_is_the_beginning(tmp_path):
    assert loop.resume(Counting(), Plan("count", 4, tick=1, snapshot=2), tmp_path) == Progress()


def test_the_checkpoint_of_another_command_is_refused(tmp_path):
    checkpoint.save_latest(tmp_path, {"step": 3}, kind="other")
    with pytest.raises(UserError, match="of kind 'other'"):
        loop.resume(Counting(), Plan("count", 4, tick=1, snapshot=2), tmp_path)


def test_a_finished_run_does_nothing_more(tmp_path):
    plan = Plan("count", 3, tick=1, snapshot=3)
    loop.run(Counting(), plan, tmp_path, Progress())
    before = json.dumps(without_time(tmp_path))
    work = Counting(stop_at=3)
    loop.run(work, plan, tmp_path, loop.resume(work, plan, tmp_path))
    assert json.dumps(without_time(tmp_path)) == before and work.shown == []


class Cards:
    """Two CUDA devices, each with a default generator that a test can draw from, in the place of torch's own."""

    def __init__(self, monkeypatch) -> None:
        self.generators = (torch.Generator(), torch.Generator())
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        monkeypatch.setattr(torch.cuda, "default_generators", self.generators)
        monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: [g.get_state() for g in self.generators])
        monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, index: self.generators[index].set_state(state))

    def seed(self) -> None:
        """As a run that begins."""
        for generator in self.generators:
            generator.manual_seed(0)
        torch.manual_seed(0)


class Drawing(Counting):
    """Work whose loss is drawn on the CPU and on both cards."""

    def __init__(self, cards: Cards, stop_at: int | None = None) -> None:
        super().__init__(stop_at=stop_at)
        self.cards = cards
        cards.seed()

    def step(self, at, means):
        drawn = [torch.rand(()).item(), *(torch.rand((), generator=g).item() for g in self.cards.generators)]
        means.add({f"draw {place}": value for place, value in enumerate(drawn)})
        return super().step(at, means)


def test_the_generators_of_every_device_go_on_where_they_were(tmp_path, monkeypatch):
    cards, plan = Cards(monkeypatch), Plan("count", 6, tick=1, snapshot=2, draws=True)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        folder.mkdir()
    loop.run(Drawing(cards), plan, whole, Progress())
    with pytest.raises(KeyboardInterrupt):
        loop.run(Drawing(cards, stop_at=3), plan, cut, Progress())
    work = Drawing(cards)
    loop.run(work, plan, cut, loop.resume(work, plan, cut))
    assert without_time(whole) == without_time(cut)


def test_a_card_without_a_state_does_not_begin_anew(tmp_path, monkeypatch):
    """The checkpoint of a machine without it, or of an earlier version."""
    cards, plan = Cards(monkeypatch), Plan("count", 6, tick=1, snapshot=2, draws=True)
    work = Drawing(cards)
    first = [torch.rand((), generator=g).item() for g in cards.generators]
    checkpoint.save_latest(tmp_path, {"step": 2, "total": 1.0, "random_state": torch.get_rng_state()}, kind="count")
    drawn = []
    for _ in range(2):
        cards.seed()
        loop.resume(work, plan, tmp_path)
        drawn.append([torch.rand((), generator=g).item() for g in cards.generators])
    assert drawn[0] == drawn[1] and drawn[0][0] != drawn[0][1] and not set(first) & set(drawn[0])


def test_no_command_keeps_generators_by_itself():
    """One place knows all of them: a state kept elsewhere would lack the cards'."""
    package = Path(loop.__file__).parents[1]
    keepers = {path.name for path in package.rglob("*.py") if "rng_state(" in path.read_text()}
    assert keepers == {"randomness.py"}
