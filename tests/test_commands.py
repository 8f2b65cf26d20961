# SPDX-License-Identifier: Apache-2.0
"""The commands as a user types them: exit status, one sentence on standard error, presets."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from runs import call, write_generator, write_pictures

from gangealing_fast import __main__ as overview
from gangealing_fast import align, pretrain, train
from gangealing_fast.alignment.config import PRESETS, TrainConfig
from gangealing_fast.pretraining.config import PRESETS as PRETRAIN_PRESETS
from gangealing_fast.pretraining.config import PretrainConfig
from gangealing_fast.runtime.commands import parse
from gangealing_fast.storage.files import read_json_lines

TINY = (
    "--flow-size 32 --channel-base 64 --max-channels 8 --steps 2 --batch 2 --anneal-psi 1 --period 1 --inject 3 --directions 2 "
    "--principal-samples 50 --perceptual-size 32 --snapshot 1 --threads 1 --transforms similarity"
).split()


def test_train_then_align(tmp_path, monkeypatch, capsys):
    generator = write_generator(tmp_path / "generator.safetensors")
    pictures = write_pictures(tmp_path / "pictures", 5, size=40)
    (pictures / "broken.png").write_bytes(b"\x89PNG not really")
    Image.new("RGBA", (50, 20), (255, 0, 0, 10)).save(pictures / "wide.png")
    run = tmp_path / "run"
    assert call(monkeypatch, train, "--generator", generator, "--data", pictures, "--out", run, *TINY) == 0
    said = capsys.readouterr().out
    assert "1 skipped: broken.png" in said and str(run / "report.html") in said and "next: python -m" in said
    out = tmp_path / "aligned"
    assert call(monkeypatch, align, "--checkpoint", run, "--data", pictures, "--out", out, "--resolution", 48) == 0
    assert "6 aligned pictures" in capsys.readouterr().out
    lines = read_json_lines(out / "warps.jsonl")
    assert len(lines) == 6 and len(lines[0]["matrix"]) == 6
    assert Image.open(out / lines[0]["file"]).size == (48, 48)
    assert (out / "average.png").exists()


@pytest.mark.parametrize(
    ("command", "arguments", "words"),
    [
        (train, ["--generator", "none.safetensors", "--out", "run"], "none.safetensors"),
        (pretrain, ["--data", "nowhere", "--out", "run"], "nowhere"),
        (align, ["--checkpoint", "nowhere", "--data", ".", "--out", "x"], "nowhere"),
    ],
)
def test_a_mistake_is_one_sentence_and_a_status(command, arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, command, *arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and error[0].startswith("error: ") and words in error[0]


def test_an_empty_folder_is_named(tmp_path, monkeypatch, capsys):
    (tmp_path / "empty").mkdir()
    assert call(monkeypatch, pretrain, "--data", tmp_path / "empty", "--out", tmp_path / "run") == 2
    assert "empty" in capsys.readouterr().err


def test_a_full_disk_keeps_the_previous_checkpoint(tmp_path, monkeypatch, capsys):
    from gangealing_fast.storage import checkpoint, files

    generator, run = write_generator(tmp_path / "generator.safetensors"), tmp_path / "run"
    original, saves = checkpoint._dump, iter(range(9))

    def full(content, file):
        if next(saves) == 1:
            raise OSError(28, "No space left on device")
        original(content, file)

    monkeypatch.setattr(checkpoint, "_dump", full)
    assert call(monkeypatch, train, "--generator", generator, "--out", run, *TINY) == 2
    assert "disk is full" in capsys.readouterr().err
    assert checkpoint.load(run / "checkpoint.pt")["step"] == 1
    assert not list(run.glob(".*.tmp"))
    assert files.read_json(run / "config.json")["command"] == "train"


def test_presets_set_defaults_that_options_change():
    for name, config in PRESETS.items():
        assert parse(TrainConfig, PRESETS, "", ["--preset", name]) == config
    changed = parse(TrainConfig, PRESETS, "", ["--preset", "digits", "--batch", "7"])
    assert changed.batch == 7 and changed.steps == PRESETS["digits"].steps
    for name, config in PRETRAIN_PRESETS.items():
        assert parse(PretrainConfig, PRETRAIN_PRESETS, "", ["--preset", name]) == config


def test_configuration_is_readable(tmp_path, monkeypatch, capsys):
    generator, run = write_generator(tmp_path / "generator.safetensors"), tmp_path / "run"
    assert call(monkeypatch, train, "--generator", generator, "--out", run, *TINY) == 0
    options = json.loads((run / "config.json").read_text())["options"]
    assert options["batch"] == 2 and options["generator"] == str(generator)


def test_the_overview_lists_every_door_in_its_own_words(monkeypatch, capsys):
    package = Path(overview.__file__).parent
    assert sorted(overview.COMMANDS) == sorted(path.stem for path in package.glob("*.py") if not path.stem.startswith("__"))
    assert call(monkeypatch, overview) == 0
    said = capsys.readouterr().out
    assert "prepare -> pretrain -> [contrast] -> train -> [classify] -> align -> propagate" in said
    lines = {name: line.strip() for line in said.splitlines() for name in line.split()[:1]}
    for name in overview.COMMANDS:
        begins, found, words = importlib.import_module(f"gangealing_fast.{name}").__doc__.strip().partition(": ")
        assert found and begins == f"`python -m gangealing_fast.{name}`" and words
        assert lines[name] == f"{name:{lines[name].index(words)}}{words}"


def test_the_overview_imports_no_torch():
    code = "import runpy, sys; runpy.run_module('gangealing_fast', run_name='__main__'); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(overview.__file__).parents[1])
    assert done.returncode == 0 and "propagate" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["frobnicate"], "there is no command 'frobnicate'"),
        (["train", "--out", "my run"], "python -m gangealing_fast.train --out 'my run'"),
    ],
)
def test_a_word_behind_the_package_is_no_command(arguments, words, monkeypatch, capsys):
    assert call(monkeypatch, overview, *arguments) == 2
    said = capsys.readouterr()
    assert not said.out and said.err.count("\n") == 1 and words in said.err
