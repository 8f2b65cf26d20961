# SPDX-License-Identifier: Apache-2.0
"""What trackers of experiments get, that a run survives them, and that a missing one is a sentence."""

from __future__ import annotations

import sys
import types

import pytest
from PIL import Image

from gangealing_fast.runtime.errors import UserError
from gangealing_fast.storage.files import read_json_lines
from gangealing_fast.training import loop
from gangealing_fast.training.loop import Plan, Progress


class Work:
    """Counts; its second checkpoint writes the picture that the first has written anew, and another."""

    def __init__(self) -> None:
        self.folder, self.pictures = None, 0

    def step(self, at, means):
        means.add({"loss": float(at.step)})
        return 1

    def measure(self, at, line):
        line["figures"] = [1.0, 2.0]

    def show(self, at, line):
        self.pictures += 1
        for name in range(self.pictures):
            Image.new("RGB", (4, 4), (self.pictures, 0, 0)).save(self.folder / f"sheet-{name}.png")

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


def fake(monkeypatch, name: str, fails: str = "") -> list[tuple]:
    """A tracker's package that notes its calls, for wandb and trackio; the call `fails` raises."""
    calls: list[tuple] = []

    def note(kind):
        def call(*arguments, **keywords):
            calls.append((kind, arguments, keywords))
            if kind == fails:
                raise ConnectionError("the server\nis gone")

        return call

    module = types.ModuleType(name)
    for kind in ("init", "log", "finish"):
        setattr(module, kind, note(kind))
    module.Image = lambda path: ("picture", path)
    monkeypatch.setitem(sys.modules, name, module)
    return calls


def run(folder, tracker: str) -> None:
    folder.mkdir()
    work = Work()
    work.folder = folder
    loop.run(work, Plan("test", 4, tick=1, snapshot=2, tracker=tracker), folder, Progress())


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_client_gets_every_line_and_the_pictures_of_every_checkpoint(tmp_path, monkeypatch, name):
    calls = fake(monkeypatch, name)
    run(tmp_path / "run", name)
    assert [call[0] for call in calls] == ["init", "log", "log", "log", "log", "log", "log", "finish"]
    init, *logs, _ = calls
    assert init[2]["project"] == "gangealing_fast" and init[2]["name"] == "run" and init[2]["resume"] == "allow"
    assert (init[2].get("id") or "").endswith("-run") == (name == "wandb")
    lines = [call for call in logs if "loss" in call[1][0]]
    logged = read_json_lines(tmp_path / "run" / "log.jsonl")
    assert [(call[2]["step"], call[1][0]) for call in lines] == [
        (line["step"], {"loss": line["loss"], "seconds": line["seconds"]}) for line in logged
    ]
    pictures = [call for call in logs if "loss" not in call[1][0]]
    assert [(call[2]["step"], sorted(call[1][0])) for call in pictures] == [(2, ["sheet-0"]), (4, ["sheet-0", "sheet-1"])]


def test_tensorboard_gets_figures_and_pictures_and_is_closed(tmp_path, monkeypatch):
    calls: list[tuple] = []

    class SummaryWriter:
        def __init__(self, folder):
            calls.append(("folder", folder))

        def __getattr__(self, name):
            return lambda *arguments, **keywords: calls.append((name, *arguments))

    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    run(tmp_path / "run", "tensorboard")
    assert calls[0] == ("folder", str(tmp_path / "run" / "tensorboard")) and calls[-1] == ("close",)
    assert [call[1:] for call in calls if call[:2] == ("add_scalar", "loss")] == [("loss", float(n - 1), n) for n in (1, 2, 3, 4)]
    shown = [(call[1], call[3], call[2].shape) for call in calls if call[0] == "add_image"]
    assert shown == [("sheet-0", 2, (4, 4, 3)), ("sheet-0", 4, (4, 4, 3)), ("sheet-1", 4, (4, 4, 3))]


@pytest.mark.parametrize("fails", ["log", "finish"])
def test_a_tracker_that_fails_is_left_behind(tmp_path, monkeypatch, capsys, fails):
    calls = fake(monkeypatch, "wandb", fails)
    run(tmp_path / "run", "wandb")
    assert len(read_json_lines(tmp_path / "run" / "log.jsonl")) == 4
    assert capsys.readouterr().out.count("notice: --tracker wandb failed (the server is gone); the run goes on") == 1
    assert [call[0] for call in calls].count(fails) == 1


def test_a_tracker_that_does_not_start_is_a_sentence(tmp_path, monkeypatch):
    fake(monkeypatch, "trackio", "init")
    with pytest.raises(UserError, match="--tracker trackio cannot be started .the server is gone."):
        run(tmp_path / "run", "trackio")


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_a_tracker_that_is_not_installed_is_a_sentence(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard" if name == "tensorboard" else name, None)
    with pytest.raises(UserError, match=f"--tracker {name} needs the package {name}: pip install {name}"):
        run(tmp_path / "run", name)


def test_no_tracker_is_imported_if_none_is_wanted(tmp_path, monkeypatch):
    for name in ("torch.utils.tensorboard", "wandb", "trackio"):
        monkeypatch.setitem(sys.modules, name, None)
    run(tmp_path / "run", "none")
