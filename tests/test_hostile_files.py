# SPDX-License-Identifier: Apache-2.0
"""Hostile names, files and folders: one bad picture never ends a run of many, and what is printed stays on its line."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from aligners import aligner
from hostile_files import NAMES, block_of, encoded, fill_with_hostile, write_named, write_tar
from PIL import Image
from runs import call, write_generator

from gangealing_fast.applications.naming import result_name
from gangealing_fast.checkpoints.writing import export_aligner
from gangealing_fast.data.pictures import open_pictures
from gangealing_fast.data.sources import list_entries
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.runtime.text import printable
from gangealing_fast.storage.files import read_bytes, read_json_lines

TINY = (
    "--flow-size 32 --channel-base 64 --max-channels 8 --steps 1 --batch 2 --anneal-psi 1 --period 1 --inject 3 --directions 2 "
    "--principal-samples 50 --perceptual-size 32 --snapshot 1 --threads 1 --transforms similarity --held-out 4"
).split()


@pytest.fixture
def place(tmp_path):
    model = aligner()
    export_aligner(tmp_path / "aligner.safetensors", model.transformer, None, model.warping)
    edit = Image.new("RGBA", (32, 32))
    edit.paste((255, 0, 0, 255), (8, 8, 24, 24))
    edit.save(tmp_path / "edit.png")
    write_generator(tmp_path / "generator.safetensors")
    return tmp_path


def arguments(command: str, place: Path, data: Path) -> list[object]:
    learned, generator = place / "aligner.safetensors", place / "generator.safetensors"
    return {
        "prepare": ["--source", data, "--size", 16, "--out", place / "out.tar"],
        "align": ["--checkpoint", learned, "--data", data, "--out", place / "out"],
        "propagate": ["--checkpoint", learned, "--data", data, "--edit", place / "edit.png", "--out", place / "out"],
        "train": ["--generator", generator, "--data", data, "--out", place / "out", *TINY],
        "contrast": ["--data", data, "--size", 16, "--steps", 1, "--batch", 4, "--widths", 4, 4, 4, 4, 4, "--out", place / "out"],
        "pretrain": ["--data", data, "--size", 8, "--kimg", 0.002, "--batch", 2, "--channel-base", 32, "--max-channels", 4,
                     "--latent-dim", 4, "--score-pictures", 0, "--augment", "none", "--out", place / "out"],
    }[command]  # fmt: skip


@pytest.mark.parametrize("command", ["prepare", "align", "propagate", "train", "contrast", "pretrain"])
def test_a_folder_of_everything_odd(place, monkeypatch, capsys, command):
    bad = fill_with_hostile(place / "data")
    assert call(monkeypatch, importlib.import_module(f"gangealing_fast.{command}"), *arguments(command, place, place / "data")) == 0
    said = capsys.readouterr()
    assert said.out.isascii() or said.out.replace("\n", "").isprintable()
    assert "\x1b[2J" not in said.out + said.err and "\udcff" not in said.out
    assert not any(line.startswith("error:") for line in said.out.splitlines())
    if command != "contrast":  # which says nothing about its pictures
        assert f"{len(NAMES) + len(bad) + 2} skipped" in said.out
    for number, line in enumerate(read_json_lines(place / "out" / ("warps.jsonl" if command == "align" else "edits.jsonl"))):
        assert Image.open(place / "out" / line["file"]).size[0] > 0 and line["file"].startswith(f"{number:06d}-")


def test_what_is_odd_in_a_folder_is_named(place):
    bad = fill_with_hostile(place / "data")
    pictures = open_pictures(place / "data", size=8)
    reasons = dict(pictures.skipped)
    assert len(pictures) == len(NAMES) + 2 and set(bad) < set(reasons)
    for name in ("fifo.png", "device.png", "socket.png"):
        assert "cannot be read" in reasons[name]
    assert "pipe, a socket or a device" in reasons["fifo.png"] and "pipe, a socket or a device" in reasons["device.png"]
    assert "42,949,672,960 bytes are more than" in reasons["sparse.png"]
    assert reasons["below/up"] == reasons["below/again"] == "a link to a folder that it lies in"


def test_folders_that_go_too_deep_or_cannot_be_read(tmp_path, monkeypatch):
    folder = tmp_path
    for level in range(40):
        folder = folder / f"{level}"
    folder.mkdir(parents=True)
    (folder / "deep.png").write_bytes(encoded())
    (tmp_path / "flat.png").write_bytes(encoded())
    (tmp_path / "closed").mkdir()
    original = os.scandir

    def scandir(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return original(path)

    monkeypatch.setattr(os, "scandir", scandir)
    found = list_entries(tmp_path)
    assert [entry.name for entry in found.entries] == ["flat.png"]
    reasons = dict(found.skipped)
    assert reasons["closed"] == "the folder cannot be read (Permission denied)"
    assert list(reasons.values())[0] == "a folder nested more than 32 levels deep" and len(reasons) == 2


@pytest.mark.parametrize("kind", ["fifo", "device"])
def test_what_is_no_file_is_not_waited_for(tmp_path, kind):
    path = tmp_path / "a.png"
    if kind == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    for read in (read_bytes, list_entries):
        with pytest.raises(UserError, match="pipe, a socket or a device"):
            read(path)


@pytest.mark.parametrize("command", ["prepare", "align", "propagate"])
def test_a_tar_that_claims_more_than_there_is(place, monkeypatch, capsys, command):
    """Those before it are read; it is named."""
    write_tar(place / "data.tar", {f"{index}.png": encoded(seed=index) for index in range(3)})
    content = (place / "data.tar").read_bytes()
    end = content.rindex(b"IEND") + 8
    (place / "data.tar").write_bytes(content[: -(-end // 512) * 512] + block_of("huge.png", 10**14) + encoded() + bytes(4096))
    module = importlib.import_module(f"gangealing_fast.{command}")
    assert call(monkeypatch, module, *arguments(command, place, place / "data.tar")) == 0
    assert "huge.png (claims 100,000,000,000,000 bytes, which the tar does not hold" in capsys.readouterr().out


def test_names_in_tars(place, monkeypatch, capsys):
    names = {name.decode(errors="surrogateescape"): encoded() for name in NAMES.values()}
    names |= {
        "..": encoded(),
        "/": encoded(),
        "a/../../b.png": encoded(),
        "c" * 5000 + ".png": encoded(),
        "cut\x1b.png": b"\x89PNG",
    }
    write_tar(place / "data.tar", names)
    for command in ("prepare", "align"):
        module = importlib.import_module(f"gangealing_fast.{command}")
        assert call(monkeypatch, module, *arguments(command, place, place / "data.tar")) == 0
        assert "cut\\x1b.png" in capsys.readouterr().out
    assert len(open_pictures(place / "out.tar", size=16)) == len(names) - 1
    assert all(path.parent == place / "out" for path in (place / "out").rglob("*"))


def test_results_have_names_that_every_disk_takes():
    assert result_name(3, "deep/folder/cat.jpg") == "000003-cat.png"
    assert result_name(3, "Kätzchen №1.png") == "000003-Kätzchen №1.png"
    assert result_name(1, "a\x1b[2J\nb\udcff\x00.png") == "000001-a_[2J_b__.png"
    for name in NAMES.values():
        made = result_name(10**7, name.decode(errors="surrogateescape"))
        assert len(made.encode()) <= 220 and made.isprintable()


def test_printable():
    assert printable("Kätzchen 1.png") == "Kätzchen 1.png"
    assert printable("a\nb\x1b[2J\udcff\u202e\u2028") == "a\\nb\\x1b[2J\\xff\\u202e\\u2028"
    assert printable(Path("a\tb")) == "a\\tb"


@pytest.mark.parametrize("locale", ["C", "POSIX", "C.UTF-8"])
def test_a_terminal_without_letters_ends_no_command(place, locale):
    """Python encodes in ASCII there, and names are not."""
    data = place / "data"
    data.mkdir()
    (data / "good.png").write_bytes(encoded())
    write_named(data, "Kätzchen-№1.png".encode(), b"cut")
    write_named(data, b"\xff.png", b"cut")
    command = [sys.executable, "-m", "gangealing_fast.prepare", *map(str, arguments("prepare", place, data))]
    environment = {**os.environ, "LC_ALL": locale, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(command, capture_output=True, env=environment, cwd=root)
    assert done.returncode == 0 and b"2 skipped" in done.stdout and b"\\xff.png" in done.stdout, done.stderr
    assert b"Traceback" not in done.stderr
