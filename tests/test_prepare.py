# SPDX-License-Identifier: Apache-2.0
"""The prepare command."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import torch
from picture_files import fill, noise, write_idx
from PIL import Image

from gangealing_fast.data.config import PrepareConfig
from gangealing_fast.data.pictures import open_pictures
from gangealing_fast.data.preparing import run as prepare
from gangealing_fast.runtime.errors import UserError


def run(source, output, **options) -> None:
    prepare(PrepareConfig(source, output, **options))


def test_folder_becomes_the_same_pictures(tmp_path, capsys):
    fill(tmp_path / "in" / "deep", 3, size=20)
    Image.fromarray(noise(30, 20)).save(tmp_path / "in" / "wide.png")
    Image.fromarray(noise(20, 20)).save(tmp_path / "in" / "deep" / "000.jpg")
    (tmp_path / "in" / "bad.png").write_bytes(b"x")
    run(tmp_path / "in", tmp_path / "new" / "out.tar", size=16)
    text = capsys.readouterr().out
    assert "5 pictures of 16x16" in text and "1 skipped: bad.png (not a picture in a known format)" in text
    before, after = open_pictures(tmp_path / "in", size=16), open_pictures(tmp_path / "new" / "out.tar", size=16)
    assert after.names == ["deep/000.png", "deep/000.png.png", "deep/001.png", "deep/002.png", "wide.png"]
    assert torch.equal(before.batch(range(5)), after.batch(range(5)))
    report = json.loads((tmp_path / "new" / "out.json").read_text())
    assert report["pictures"] == 5 and report["skipped"] == [{"name": "bad.png", "reason": "not a picture in a known format"}]


def test_same_bytes_every_time(tmp_path):
    fill(tmp_path / "in", 3)
    for name in ("a.tar", "b.tar"):
        run(tmp_path / "in", tmp_path / name, size=8, format="jpg", pad="border")
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    with tarfile.open(tmp_path / "a.tar") as archive:
        assert archive.getnames() == ["000.jpg", "001.jpg", "002.jpg"]


def test_names_cannot_leave_the_tar(tmp_path):
    fill(tmp_path / "in", 1)
    with tarfile.open(tmp_path / "in.tar", "w") as archive:
        for name in ("/etc/a.png", "../../b.png"):
            archive.add(tmp_path / "in" / "000.png", name)
            archive.members[-1].name = name
    run(tmp_path / "in.tar", tmp_path / "out.tar", size=8)
    with tarfile.open(tmp_path / "out.tar") as archive:
        assert archive.getnames() == ["b.png", "etc/a.png"]


def test_digits(tmp_path):
    images = noise(6, 28 * 28, 1).reshape(6, 28, 28)
    write_idx(tmp_path / "x-images-idx3-ubyte", images)
    write_idx(tmp_path / "x-labels-idx1-ubyte", np.array([1, 2, 1, 2, 1, 2], np.uint8))
    run(tmp_path / "x-images-idx3-ubyte", tmp_path / "out.tar", size=32, label=2)
    pictures = open_pictures(tmp_path / "out.tar", size=32)
    assert pictures.names == ["00001.png", "00003.png", "00005.png"]
    assert np.array_equal(pictures.batch([1])[0, 0].numpy(), np.pad(images[3], 2))


def test_mistakes(tmp_path):
    fill(tmp_path / "in", 1)
    out = tmp_path / "out.tar"
    for match, source, output, options in (
        ("there is no file or folder", tmp_path / "gone", out, {}),
        ("must end in .tar", tmp_path / "in", tmp_path / "out.zip", {}),
        ("--size must be at least 1", tmp_path / "in", out, {"size": 0}),
        ("--limit must be at least 1", tmp_path / "in", out, {"limit": -1}),
        ("has no labels", tmp_path / "in", out, {"label": 1}),
        ("is a file, not a folder|a file of that name", tmp_path / "in", tmp_path / "in" / "000.png" / "out.tar", {}),
    ):
        with pytest.raises(UserError, match=match):
            run(source, output, **options)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_bytes(b"x")
    with pytest.raises(UserError, match="none of the pictures in .* can be read: 1 skipped"):
        run(tmp_path / "bad", out)
    assert not out.exists() and not list(tmp_path.glob(".*"))
    run(tmp_path / "in", out, size=8)
    with pytest.raises(UserError, match="exists already"):
        run(tmp_path / "in", out, size=8)
    run(tmp_path / "in", out, size=8, overwrite=True)


def test_command(tmp_path):
    command = [sys.executable, "-m", "gangealing_fast.prepare"]
    code = "import sys; sys.argv = ['prepare', '--help']\n"
    code += "from gangealing_fast.prepare import main\n"
    code += "try: main()\nexcept SystemExit: pass\nsys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
    arguments = [*command, "--source", tmp_path / "gone", "--out", tmp_path / "out.tar"]
    result = subprocess.run(arguments, capture_output=True, text=True)
    assert result.returncode == 2 and result.stderr.count("\n") == 1 and result.stderr.startswith("error: there is no")
