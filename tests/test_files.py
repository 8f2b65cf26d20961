# SPDX-License-Identifier: Apache-2.0
"""Atomic writes, JSON lines and pictures."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from gangealing_fast.runtime.errors import UserError
from gangealing_fast.storage import files


def test_atomic_write_replaces_in_one_step(tmp_path):
    path = tmp_path / "a.txt"
    files.write_text(path, "old")
    with files.atomic_write(path) as file:
        file.write(b"new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("error", [RuntimeError("bug"), KeyboardInterrupt()])
def test_failure_in_the_block_keeps_the_old_file(tmp_path, error):
    path = tmp_path / "a.txt"
    files.write_text(path, "old")
    with pytest.raises(type(error)), files.atomic_write(path) as file:
        file.write(b"half")
        raise error
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("number, words", [(28, "disk is full"), (13, "no permission"), (5, "cannot write")])
def test_system_error_while_writing_names_the_file(tmp_path, monkeypatch, number, words):
    path = tmp_path / "a.txt"
    files.write_text(path, "old")

    def fail(handle):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(UserError, match=words) as caught:
        files.write_text(path, "new")
    assert str(path) in str(caught.value)
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_error_of_another_file_keeps_its_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"), files.atomic_write(tmp_path / "a.txt"):
        open(tmp_path / "nowhere")


def test_places_that_cannot_be_written(tmp_path):
    with pytest.raises(UserError, match="does not exist; create it"):
        files.write_text(tmp_path / "missing" / "a.txt", "x")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file, not a folder"):
        files.write_text(tmp_path / "file" / "a.txt", "x")
    with pytest.raises(UserError, match="it is a folder"):
        files.write_text(tmp_path, "x")
    with pytest.raises(UserError, match="a file of that name exists"):
        files.make_folder(tmp_path / "file")
    with pytest.raises(UserError, match="cannot write"):
        files.make_folder(tmp_path / "file" / "below")
    assert files.make_folder(tmp_path / "a" / "b").is_dir()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_device(monkeypatch):
    log = files.JsonLines.__new__(files.JsonLines)
    log.path = Path("/dev/full")
    log._file = open("/dev/full", "ab")
    with pytest.raises(UserError, match="/dev/full: the disk is full"):
        log.append({"step": 1})
    log._file = None  # a buffered writer would fail again when it is collected


def test_read_errors(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        files.read_bytes(tmp_path / "a")
    with pytest.raises(UserError, match="it is a folder"):
        files.read_bytes(tmp_path)
    (tmp_path / "a").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        files.read_json(tmp_path / "a")


def test_json_has_no_nan(tmp_path):
    files.write_json(tmp_path / "a.json", {"a": [math.nan, (1.5, math.inf)]})
    assert files.read_json(tmp_path / "a.json") == {"a": [None, [1.5, None]]}


def test_json_lines_resume_drops_what_came_after(tmp_path):
    path = tmp_path / "log.jsonl"
    with files.JsonLines(path) as log:
        for step in (0, 10, 20, 30):
            log.append({"step": step, "loss": math.nan})
    with open(path, "ab") as file:
        file.write(b'{"step": 40, "lo')
    with files.JsonLines(path, resume_step=20) as log:
        log.append({"step": 30, "loss": 1.0})
    assert files.read_json_lines(path) == [
        {"step": 0, "loss": None}, {"step": 10, "loss": None}, {"step": 20, "loss": None}, {"step": 30, "loss": 1.0},
    ]  # fmt: skip
    with files.JsonLines(path):
        pass
    assert path.read_bytes() == b""
    assert files.read_json_lines(tmp_path / "none") == []


@given(steps=st.lists(st.integers(0, 50), max_size=12), kept=st.integers(0, 60), cut=st.integers(0, 400))
def test_json_lines_resume_equals_an_uninterrupted_run(tmp_path_factory, steps, kept, cut):
    steps = sorted(set(steps))
    path = tmp_path_factory.mktemp("log") / "log.jsonl"
    whole = [json.dumps({"step": step}) + "\n" for step in steps]
    before = "".join(line for step, line in zip(steps, whole, strict=True) if step <= kept)
    # What a kill leaves: everything up to the checkpoint's step, and any part of the rest.
    path.write_text("".join(whole)[: max(len(before), cut)])
    with files.JsonLines(path, resume_step=kept) as log:
        for step in steps:
            if step > kept:
                log.append({"step": step})
    assert path.read_text() == "".join(whole)


def test_save_picture(tmp_path):
    values = torch.linspace(-1.2, 1.2, 3 * 4 * 5).view(3, 4, 5)
    files.save_picture(tmp_path / "a.png", values)
    expected = values.add(1).mul(127.5).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
    assert np.array_equal(np.array(Image.open(tmp_path / "a.png")), expected)
    files.save_picture(tmp_path / "b.png", expected)
    assert np.array_equal(np.array(Image.open(tmp_path / "b.png")), expected)
    files.save_picture(tmp_path / "c.jpg", values[:1])
    assert Image.open(tmp_path / "c.jpg").mode == "L"
    with pytest.raises(UserError, match="must end in"):
        files.save_picture(tmp_path / "d.txt", values)
    with pytest.raises(TypeError, match="uint8 array"):
        files.save_picture(tmp_path / "d.png", np.zeros((2, 2)))


def test_imports_no_torch():
    code = "import sys, gangealing_fast.storage.files, gangealing_fast.prepare; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
