# SPDX-License-Identifier: Apache-2.0
"""Who may write where, over all commands: a folder is new, empty or the command's own, and used by one process at a time."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
from aligners import aligner
from picture_files import fill
from PIL import Image
from runs import call, write_generator

from gangealing_fast.__main__ import COMMANDS
from gangealing_fast.checkpoints.writing import export_aligner
from gangealing_fast.data.config import PrepareConfig
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.storage.claims import BEGUN, COMPLETE, RECORD, results_folder
from gangealing_fast.storage.locks import lock_path, locked
from gangealing_fast.translation.networks import TranslationNetworks
from gangealing_fast.translation.translator import Translator

WORKING = ("congeal", "pretrain", "contrast", "train", "classify", "autoencode", "invert", "translate train")
FOLDERS = (*WORKING, "align", "propagate", "visualize", "evaluate", "convert", "studio", "translate apply")
QUICK = ("align", "propagate", "evaluate", "convert")
MODULES = {"align": "aligning", "propagate": "propagating", "convert": "converting"}


@pytest.fixture
def place(tmp_path):
    """Everything that some command reads."""
    fill(tmp_path / "pictures", 3, size=32)
    write_generator(tmp_path / "generator.safetensors")
    model = aligner()
    export_aligner(tmp_path / "aligner.safetensors", model.transformer, None, model.warping)
    networks = TranslationNetworks(width=2, halvings=1, blocks=1, style=2, hidden=2, style_halvings=1)
    Translator(networks, {"size": 16}).save(tmp_path / "translator.safetensors")
    edit = Image.new("RGBA", (32, 32))
    edit.paste((255, 0, 0, 255), (8, 8, 24, 24))
    edit.save(tmp_path / "edit.png")
    numpy.save(tmp_path / "points.npy", numpy.full((3, 2, 2), 9.0))
    return tmp_path


def arguments(command: str, place: Path) -> list[object]:
    """What a user would type, without --out."""
    data, generator, learned = place / "pictures", place / "generator.safetensors", place / "aligner.safetensors"
    return {
        "congeal": ["--data", data],
        "prepare": ["--source", data, "--size", 16],
        "pretrain": ["--data", data, "--size", 16, "--kimg", 0.01],
        "contrast": ["--data", data, "--generator", generator, "--size", 16, "--steps", 1],
        "train": ["--generator", generator, "--data", data, "--steps", 1],
        "classify": ["--checkpoint", learned, "--data", data, "--steps", 1],
        "align": ["--checkpoint", learned, "--data", data],
        "propagate": ["--checkpoint", learned, "--data", data, "--edit", place / "edit.png"],
        "evaluate": ["--data", data, "--keypoints", place / "points.npy", "--features", "none", "--cycle-count", 0],
        "visualize": ["--checkpoint", learned, "--data", data, "--size", 32, "--show", "average"],
        "convert": ["--source", learned],
        "studio": ["--checkpoint", learned, "--data", data, "--port", 0],
        "autoencode": ["--data", data, "--size", 16],
        "invert": ["--generator", generator, "--data", data, "--train-steps", 1],
        "translate train": ["--second", data, "--made", "edges", "--size", 32],
        "translate apply": ["--translator", place / "translator.safetensors", "--data", data],
    }[command]


def run(monkeypatch, command: str, place: Path, out: Path) -> int | str | None:
    door, *action = command.split()
    module = importlib.import_module(f"gangealing_fast.{door}")
    return call(monkeypatch, module, *action, *arguments(command, place), "--out", out)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def refused(capsys, words: str) -> None:
    said = capsys.readouterr().err
    sentence = said.strip().splitlines()[-1]
    assert sentence.startswith("error: ") and words in sentence and "Traceback" not in said, said


def test_every_command_that_writes_is_gone_over():
    assert {name.split()[0] for name in FOLDERS} | {"prepare", "env"} == set(COMMANDS)


@pytest.mark.parametrize("command", FOLDERS)
@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"letter.txt": "mine"}, "is not empty and holds no results of"),
        ({RECORD: json.dumps({"command": "another", "options": {}}), "a.png": ""}, "holds a run of another, not of"),
        ({RECORD: "{"}, "is not a run's configuration"),
        ({RECORD: "[" * 100_000}, "is not a run's configuration"),
        ({RECORD: "[1, 2]"}, "is not a run's configuration"),
        ({RECORD: '{"command": "train", "options": [1]}'}, "is not a run's configuration"),
        ({RECORD: '{"command": 3, "options": {}}'}, "is not a run's configuration"),
    ],
    ids=["foreign", "another", "cut", "deep", "list", "options", "number"],
)
def test_a_folder_of_somebody_else_stays_as_it_is(place, monkeypatch, capsys, command, files, words):
    out = place / "out"
    out.mkdir()
    for name, text in files.items():
        (out / name).write_text(text)
    before = content(out)
    assert run(monkeypatch, command, place, out) == 2
    refused(capsys, words)
    assert content(out) == before


@pytest.mark.parametrize("command", [command for command in FOLDERS if command != "convert"])
def test_results_do_not_land_among_what_is_read(place, monkeypatch, capsys, command):
    before = content(place / "pictures")
    for out in (place / "pictures", place / "pictures" / "below", place / "below" / ".." / "pictures"):
        assert run(monkeypatch, command, place, out) == 2
        refused(capsys, "lies in --second" if command == "translate train" else "lies in --data")
    assert content(place / "pictures") == before


@pytest.mark.parametrize("command", FOLDERS)
def test_a_folder_in_use_is_left_alone(place, monkeypatch, capsys, command):
    (place / "out").mkdir()
    with locked(place / "out", "another"):
        assert run(monkeypatch, command, place, place / "out") == 2
        refused(capsys, f"is in use by process {os.getpid()} on {socket.gethostname()} (another, since 2")
    assert content(place / "out") == {}


@pytest.mark.parametrize("command", [*QUICK, "prepare"])
def test_a_lock_that_a_killed_process_left_is_taken_over(place, monkeypatch, command):
    out = place / ("out.tar" if command == "prepare" else "out")
    if command != "prepare":
        out.mkdir()
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    left = {"command": command, "pid": ended.pid, "host": socket.gethostname(), "boot": "an earlier one"}
    lock_path(out).write_text(json.dumps(left))
    assert run(monkeypatch, command, place, out) == 0
    assert not lock_path(out).exists()


@pytest.mark.parametrize("command", QUICK)
def test_results_replace_those_of_the_same_command_and_it_is_said(place, monkeypatch, capsys, command):
    out = place / "out"
    assert run(monkeypatch, command, place, out) == 0
    assert "replaced" not in capsys.readouterr().out
    first = content(out)
    assert json.loads(first[RECORD])["command"] == command
    (out / "000017-of-an-earlier-call.png").write_bytes(b"old")
    (out / "mine.txt").write_text("mine")
    assert run(monkeypatch, command, place, out) == 0
    said = capsys.readouterr().out
    assert f"of an earlier {command} are replaced" in said
    expected = first | {"mine.txt": b"mine"}
    if command in ("convert", "evaluate"):  # which write no picture
        expected["000017-of-an-earlier-call.png"] = b"old"
    found = content(out)
    assert found.keys() == expected.keys()
    assert all(found[name] == expected[name] for name in found if not name.endswith(".safetensors"))


@pytest.mark.parametrize("end", ["error", "interrupt"])
@pytest.mark.parametrize(("command", "written"), [("align", "write_bytes"), ("propagate", "save_picture"), ("convert", "write")])
def test_a_call_that_fails_leaves_the_earlier_results_as_they_were(place, monkeypatch, capsys, command, written, end):
    out = place / "out"
    assert run(monkeypatch, command, place, out) == 0
    before = content(out)
    module = importlib.import_module(f"gangealing_fast.applications.{MODULES[command]}")
    original = getattr(module, written)

    def failing(*arguments, **options):
        original(*arguments, **options)
        if end == "error":
            raise UserError("the disk is full")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, written, failing)
        assert run(monkeypatch, command, place, out) != 0
    assert content(out) == before
    assert run(monkeypatch, command, place, out) == 0 and content(out).keys() == before.keys()


def test_a_call_that_was_killed_loses_no_earlier_result(tmp_path):
    config, out = dataclasses.replace(make(tmp_path, "x"), out=tmp_path / "out"), tmp_path / "out"
    for version in ("first", "second"):
        with results_folder(out, "some", config, r"[a-z]\.txt") as folder:
            for name in ("a.txt", "b.txt") if version == "first" else ("a.txt", "c.txt"):
                (folder / name).write_text(version)
            if version == "second":
                assert {name: (out / name).read_text() for name in ("a.txt", "b.txt")} == {"a.txt": "first", "b.txt": "first"}
    assert {name for name in content(out) if name != RECORD} == {"a.txt", "c.txt"}
    assert (out / "a.txt").read_text() == "second"
    # Killed while results are made: they are made anew. Killed while they take their places: the rest follows.
    (out / BEGUN).mkdir()
    (out / BEGUN / "d.txt").write_text("unfinished")
    (out / COMPLETE / "deep").mkdir(parents=True)
    (out / COMPLETE / "deep" / "e.txt").write_text("finished")
    with pytest.raises(UserError, match="stop"), results_folder(out, "some", config, r"[a-z]\.txt"):
        raise UserError("stop")
    assert {path.name for path in out.iterdir()} == {RECORD, "a.txt", "c.txt", "deep"}
    assert (out / "deep" / "e.txt").read_text() == "finished"


def test_what_is_read_is_not_replaced(place, monkeypatch, capsys):
    assert run(monkeypatch, "convert", place, place / "out") == 0
    (place / "aligner.safetensors").rename(place / "moved.safetensors")
    (place / "aligner.safetensors").symlink_to(place / "out" / "aligner.safetensors")
    before = content(place / "out")
    assert run(monkeypatch, "convert", place, place / "out") == 2
    refused(capsys, "whose files are replaced")
    assert content(place / "out") == before


def test_files_are_replaced_only_if_asked_for(place, monkeypatch, capsys):
    prepare = importlib.import_module("gangealing_fast.prepare")
    convert = importlib.import_module("gangealing_fast.convert")
    from_source = ["--source", place / "generator.safetensors", "--to", "rosinality"]
    for module, given, name in ((prepare, arguments("prepare", place), "out.tar"), (convert, from_source, "out.pt")):
        (place / name).write_bytes(b"mine")
        assert call(monkeypatch, module, *given, "--out", place / name) == 2
        refused(capsys, "exists already; give another name, or --overwrite to replace it")
        assert (place / name).read_bytes() == b"mine"
        with locked(place / name, "another"):
            assert call(monkeypatch, module, *given, "--out", place / name, "--overwrite") == 2
            refused(capsys, "is in use by process")
        assert call(monkeypatch, module, *given, "--out", place / name, "--overwrite") == 0
        assert f"{name} is replaced" in capsys.readouterr().out and (place / name).read_bytes() != b"mine"
        assert call(monkeypatch, module, *given[2:], "--source", place / name, "--out", place / name, "--overwrite") == 2
        refused(capsys, "is --source itself")


def test_prepare_replaces_no_foreign_file_beside_its_tar(place, monkeypatch, capsys):
    for text in ('{"mine": 1}', "[1]", "no json"):
        (place / "out.json").write_text(text)
        assert run(monkeypatch, "prepare", place, place / "out.tar") == 2
        refused(capsys, "holds something else")
        assert (place / "out.json").read_text() == text and not (place / "out.tar").exists()


def test_prepare_does_not_read_what_it_writes(place, monkeypatch, capsys):
    prepare = importlib.import_module("gangealing_fast.prepare")
    shards = place / "shards"
    assert run(monkeypatch, "prepare", place, shards / "a.tar") == 0
    given = ["--source", shards, "--size", 8, "--out", shards / "all.tar", "--overwrite"]
    assert call(monkeypatch, prepare, *given) == 0
    assert call(monkeypatch, prepare, *given) == 2
    refused(capsys, "is one of the tars that are read")


def test_a_mistake_leaves_nothing_of_a_new_folder(place, monkeypatch, capsys):
    generator = place / "generator.safetensors"
    generator.write_bytes(b"damaged")
    assert run(monkeypatch, "train", place, place / "deep" / "out") == 2
    assert not (place / "deep" / "out").exists()


def make(folder: Path, name: str) -> PrepareConfig:
    return PrepareConfig(folder, folder / name)


def test_the_lock_of_another_machine_is_named_and_not_taken(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    left = {"command": "align", "pid": 1, "host": "elsewhere", "boot": "another", "since": "2026-01-01 00:00:00"}
    (out / ".lock").write_text(json.dumps(left))
    with pytest.raises(UserError, match=r"left in use by process 1 on elsewhere \(align, since 2026.*delete .*\.lock"):
        with locked(out, "align"):
            pass
    # A container has a name of its own; the machine's start tells that it is the same one.
    boot = Path("/proc/sys/kernel/random/boot_id")
    if boot.exists():
        (out / ".lock").write_text(json.dumps(left | {"boot": boot.read_text().strip()}))
        with locked(out, "align"):
            assert json.loads((out / ".lock").read_text())["pid"] == os.getpid()
    for damaged in ("", "[", "[1]", "null", '{"host": 3, "pid": "x"}'):
        (out / ".lock").write_text(damaged)
        if damaged.startswith("{"):
            with pytest.raises(UserError, match="left in use"), locked(out, "align"):
                pass
        else:
            with locked(out, "align"):
                pass


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_lock_ends_with_its_process_however_that_ends(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    ready, say = os.pipe()
    child = os.fork()
    if child == 0:
        with locked(out, "train"):
            os.write(say, b"x")
            signal.pause()
        os._exit(0)
    os.read(ready, 1)
    with pytest.raises(UserError, match=f"is in use by process {child} "), locked(out, "train"):
        pass
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert (out / ".lock").exists()
    with locked(out, "train"):
        pass
    os.close(ready)
    os.close(say)


def test_no_command_removes_a_file_that_it_does_not_write(tmp_path):
    config = dataclasses.replace(make(tmp_path, "x"), out=tmp_path / "out")
    with results_folder(tmp_path / "out", "some", config, r"a\.txt") as folder:
        (folder / "a.txt").write_text("result")
    for name in ("b.txt", "xa.txt", "a.txt.bak"):
        (tmp_path / "out" / name).write_text("mine")
    (tmp_path / "out" / ".hidden").write_text("mine")
    with results_folder(tmp_path / "out", "some", config, r"a\.txt"):
        pass
    assert sorted(content(tmp_path / "out")) == sorted([".hidden", "a.txt.bak", "b.txt", RECORD, "xa.txt"])
