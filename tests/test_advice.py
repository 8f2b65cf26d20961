# SPDX-License-Identifier: Apache-2.0
"""Advice in sentences can be followed: options, commands and extras exist, and what a stopped training suggests resumes it."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import tomllib
import torch
from runs import pretrain_config, train_config, write_generator, write_pictures

from gangealing_fast.alignment.config import ClassifyConfig, TrainConfig
from gangealing_fast.applications.config import AlignConfig, ConvertConfig, EvaluateConfig, PropagateConfig, VisualizeConfig
from gangealing_fast.autoencoders.config import AutoencodeConfig
from gangealing_fast.congealing.config import CongealConfig
from gangealing_fast.contrastive.config import ContrastConfig
from gangealing_fast.data.config import PrepareConfig
from gangealing_fast.interface.config import StudioConfig
from gangealing_fast.inversion.config import InvertConfig
from gangealing_fast.metrics import WarpHealth
from gangealing_fast.pretraining.config import PretrainConfig
from gangealing_fast.runtime.config import EnvConfig
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.storage import checkpoint
from gangealing_fast.storage.claims import read_record
from gangealing_fast.storage.files import read_json_lines
from gangealing_fast.storage.runs import CHANGEABLE, FREE, open_run
from gangealing_fast.training.loop import Plan
from gangealing_fast.translation.config import TranslateApplyConfig, TranslateExportConfig, TranslateTrainConfig

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "gangealing_fast"
CONFIGURATIONS = {
    "congeal": CongealConfig,
    "prepare": PrepareConfig,
    "pretrain": PretrainConfig,
    "train": TrainConfig,
    "classify": ClassifyConfig,
    "contrast": ContrastConfig,
    "align": AlignConfig,
    "propagate": PropagateConfig,
    "evaluate": EvaluateConfig,
    "visualize": VisualizeConfig,
    "convert": ConvertConfig,
    "autoencode": AutoencodeConfig,
    "studio": StudioConfig,
    "invert": InvertConfig,
    "translate train": TranslateTrainConfig,
    "translate apply": TranslateApplyConfig,
    "translate export": TranslateExportConfig,
    "env": EnvConfig,
}
OPTIONS = {name: {f"--{f.name.replace('_', '-')}" for f in dataclasses.fields(kind)} for name, kind in CONFIGURATIONS.items()}
# Rooms whose sentences one command alone can end in.
OF_ROOM = {
    "pretraining": ("pretrain",),
    "contrastive": ("contrast", "train"),
    "autoencoders": ("autoencode",),
    "inversion": ("invert",),
    "translation": ("translate train", "translate apply", "translate export"),
    "alignment": ("train", "classify", "align", "propagate", "visualize", "evaluate"),
}
# Of torchrun, and of every command with presets.
OTHERS = {"--preset", "--help", "--nproc-per-node"}


def sentences() -> Iterator[tuple[Path, str]]:
    """Every text in the package that is no docstring, what is inserted shown as "...", with its file."""
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text())
        inside = {part for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node) if part is not node}
        documented = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)}
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "..." for part in node.values]
                yield path, "".join(map(str, parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in inside | documented:
                yield path, node.value


SENTENCES = [
    (path, text)
    for path, text in sentences()
    if path.name != "page.py" and re.search(r"--[a-z]|python -m|pip install|\.(pt|safetensors|json)\b", text)
]


def test_options_in_sentences_are_options_of_the_commands_that_say_them():
    assert len(SENTENCES) > 80
    for path, text in SENTENCES:
        commands = OF_ROOM.get(path.relative_to(PACKAGE).parts[0], tuple(CONFIGURATIONS))  # doors print what comes next, too
        named = {name for name in CONFIGURATIONS if re.search(rf"\b{name}\b", text)}
        known = OTHERS | {option for name in {*commands, *named} for option in OPTIONS[name]}
        for option in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", text):
            assert option in known or option.replace("--no-", "--", 1) in known, f"{path.name}: {option} in {text!r}"


def test_commands_and_extras_in_sentences_exist():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for path, text in SENTENCES:
        for name in re.findall(r"python -m gangealing_fast\.([a-z]+)", text):
            assert name in {command.split()[0] for command in CONFIGURATIONS}, f"{path.name}: {text!r}"
        for name in re.findall(r"gangealing_fast\[(\w+)\]", text):
            assert name in extras, f"{path.name}: {text!r}"


def remedies() -> list[tuple[str, str]]:
    """(command, what its plan says about a loss that is not finite)."""
    from gangealing_fast.alignment import trainer as train
    from gangealing_fast.pretraining import trainer as pretrain
    from gangealing_fast.translation import trainer as translate

    folder = Path("none")
    found = [("train", train.plan_of(train_config(folder)).remedy), ("pretrain", pretrain.plan_of(pretrain_config(folder)).remedy)]
    found.append(("translate train", translate.plan_of(TranslateTrainConfig(out=folder)).remedy))
    return [*found, ("classify", Plan("classify", 1, 1, 1).remedy), ("contrast", Plan("contrast", 1, 1, 1).remedy)]


def opened(config, command: str) -> bool:
    """Whether the folder is already this run's own."""
    with open_run(config.out, command, config) as resuming:
        return resuming


@pytest.mark.parametrize(("command", "remedy"), remedies())
def test_what_a_diverged_training_suggests_resumes_it(tmp_path, command, remedy):
    kind = CONFIGURATIONS[command]
    suggested = [option[2:].replace("-", "_") for option in re.findall(r"--[a-z-]+", remedy)]
    assert suggested and set(suggested) <= CHANGEABLE & {field.name for field in dataclasses.fields(kind)}
    required = {
        f.name: Path("x")
        for f in dataclasses.fields(kind)
        if f.default is dataclasses.MISSING and f.name in inspect.signature(kind).parameters
    }
    first = kind(**(required | {"out": tmp_path / "run"}))
    assert not opened(first, command)
    for name in suggested:
        changed = dataclasses.replace(first, **{name: "float32" if name == "precision" else 1e-5})
        assert opened(changed, command), "another learning rate is the same run"
        record = read_record(first.out)
        assert record is not None and record.options[name] == getattr(changed, name)
        assert opened(first, command), "and so is the rate from before"
    with pytest.raises(UserError, match="holds another run \\(seed"):
        opened(dataclasses.replace(first, seed=5), command)


def test_only_numbers_that_a_run_may_change_are_free():
    names = {field.name for kind in CONFIGURATIONS.values() for field in dataclasses.fields(kind) if field.default is not False}
    assert CHANGEABLE <= names and not CHANGEABLE & FREE
    assert {name for name in names if name.endswith("learning_rate")} <= CHANGEABLE


@pytest.mark.parametrize("command", ["train", "pretrain"])
def test_a_run_goes_on_with_another_learning_rate_and_says_so(tmp_path, monkeypatch, capsys, command):
    trainer = importlib.import_module(f"gangealing_fast.{'alignment' if command == 'train' else 'pretraining'}.trainer")
    if command == "train":
        write_generator(tmp_path / "generator.safetensors")
        config, name = train_config(tmp_path, steps=4, anneal_psi=1, period=0), "learning_rate"
    else:
        write_pictures(tmp_path / "pictures")
        config, name = pretrain_config(tmp_path, kimg=0.016), "generator_learning_rate"
    original, calls = checkpoint.save_latest, iter(range(10))

    def stop_after_one(*arguments, **keywords):
        original(*arguments, **keywords)
        if next(calls) == 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save_latest", stop_after_one)
    with pytest.raises(KeyboardInterrupt):
        trainer.run(config)
    trainer.run(dataclasses.replace(config, **{name: 1e-6}))
    assert f"changed on resuming: {name} from" in capsys.readouterr().out
    lines = read_json_lines(config.out / "log.jsonl")
    (said,) = [line for line in lines if "changed" in line]
    assert said["changed"][name][1] == 1e-6 and said["step"] == 2
    state = checkpoint.load(config.out / "checkpoint.pt")
    optimizer = state["transformer_optimizer" if command == "train" else "generator_optimizer"]
    assert all(group["lr"] <= 1e-6 for group in optimizer["param_groups"])


def test_the_warning_of_warps_that_are_not_finite_can_be_followed():
    text = inspect.getsource(WarpHealth)
    assert "go back to the last checkpoint with a lower --learning-rate" in " ".join(text.replace('"', "").split())
    assert "learning_rate" in CHANGEABLE


@pytest.mark.parametrize("there", [False, True])
def test_the_checkpoint_before_is_suggested_only_if_it_is_there_and_can_be_read(tmp_path, there):
    for step in range(1 + there):
        checkpoint.save_latest(tmp_path, {"step": step, "w": torch.ones(100)}, kind="train")
    newest = tmp_path / "checkpoint.pt"
    newest.write_bytes(newest.read_bytes()[:-50])
    with pytest.raises(UserError) as caught:
        checkpoint.load(newest)
    assert ("use checkpoint.previous.pt beside it" in str(caught.value)) == there
    if there:
        assert checkpoint.load(tmp_path / "checkpoint.previous.pt")["step"] == 0
