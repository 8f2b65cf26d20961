# SPDX-License-Identifier: Apache-2.0
"""Runs that begin elsewhere: those of earlier versions, and those of the original."""

from __future__ import annotations

import argparse
import dataclasses

import pytest
import torch
from runs import assert_identical, train_config, write_generator

from gangealing_fast.alignment import step as step_module
from gangealing_fast.alignment import trainer
from gangealing_fast.alignment.trainer import run
from gangealing_fast.applications.aligner import Aligner
from gangealing_fast.checkpoints.reading import load_generator, read
from gangealing_fast.checkpoints.writing import generator_state, transformer_state
from gangealing_fast.models import SpatialTransformer
from gangealing_fast.models.spatial_transformer import FLOW_BLOCKS
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.storage import checkpoint


@pytest.fixture
def folder(tmp_path):
    write_generator(tmp_path / "generator.safetensors")
    return tmp_path


def interrupt(monkeypatch, config, at: int) -> None:
    """Run `config` until step `at` begins."""
    original = step_module.AlignmentStep.step

    def interrupted(self, index):
        if index == at:
            raise KeyboardInterrupt
        return original(self, index)

    monkeypatch.setattr(step_module.AlignmentStep, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(config)
    monkeypatch.setattr(step_module.AlignmentStep, "step", original)


def test_a_run_of_an_earlier_version_is_resumed_with_its_trunk(folder, monkeypatch):
    config = train_config(folder, transforms="flow", steps=6)
    monkeypatch.setattr(trainer, "begun_flow_blocks", lambda config: 3)
    run(dataclasses.replace(config, out=folder / "whole"))
    interrupt(monkeypatch, config, 4)
    monkeypatch.undo()
    state = checkpoint.load(config.out / "checkpoint.pt")
    del state["transformer_config"]["flow_blocks"]
    checkpoint.save(config.out / "checkpoint.pt", state, kind="train")
    run(config)
    whole, resumed = (checkpoint.load(folder / name / "checkpoint.pt") for name in ("whole", "run"))
    assert_identical(whole, resumed)
    assert Aligner.load(config.out).transformer.flow_blocks == 3
    run(dataclasses.replace(config, out=folder / "new", steps=2))
    assert Aligner.load(folder / "new").transformer.flow_blocks == FLOW_BLOCKS


# ---- the original's training


def original_training(path, folder, state: dict, **arguments) -> None:
    """A checkpoint of this package's training as the original's trainer writes its own."""

    def weights(kept: dict) -> dict:
        transformer = SpatialTransformer(**state["transformer_config"])
        transformer.load_state_dict(kept)
        return transformer_state(transformer)

    plain = [state[name] for name in ("transformer_optimizer", "target_optimizer")]
    options = {"anneal_psi": 6, "period": 6, "inject": 3, "stn_lr": 1e-3, "ll_lr": 1e-2, "decay": 0.9, "tm": 2, "flips": False}
    content = {
        "g_ema": generator_state(load_generator(folder / "generator.safetensors")),
        "t": weights(state["transformer"]),
        "t_ema": weights(state["average"]),
        "ll": state["target"],
        "t_optim": plain[0],
        "ll_optim": plain[1],
        "t_sched": {"last_epoch": max(0, state["step"] - 6) // 6, "base_lrs": [1e-3]},
        "ll_sched": {"last_epoch": 0, "base_lrs": [1e-2]},
        "args": argparse.Namespace(**(options | arguments)),
    }
    torch.save(content, path)


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A run that was stopped after 8 of its 12 steps, and beside it what the original would have written then."""
    folder = tmp_path_factory.mktemp("begun")
    write_generator(folder / "generator.safetensors")
    config = train_config(folder, transforms="similarity,flow")
    with pytest.MonkeyPatch.context() as monkeypatch:
        interrupt(monkeypatch, config, 8)
    state = checkpoint.load(config.out / "checkpoint.pt")
    assert state["step"] == 8
    original_training(folder / "0000008.pt", folder, state)
    return config


def test_the_originals_training_goes_on_with_its_optimisers(tmp_path, begun, monkeypatch, capsys):
    """To the very numbers that the run would have come to that never stopped; and it is resumed like any other."""
    whole = dataclasses.replace(begun, out=tmp_path / "whole")
    run(whole)
    config = dataclasses.replace(begun, out=tmp_path / "goes-on", start_from=begun.out.parent / "0000008.pt")
    interrupt(monkeypatch, config, 10)
    said = capsys.readouterr().out
    assert "both optimisers are taken over after 8 steps; not its random numbers" in said and "notice" not in said
    run(config)
    assert "resuming" in capsys.readouterr().out
    assert_identical(*(checkpoint.load(options.out / "checkpoint.pt") for options in (whole, config)))


def test_a_frozen_template_has_no_moments(tmp_path, begun):
    """And a single transform has no prefix in the original's files."""
    state = checkpoint.load(begun.out / "checkpoint.pt")
    state["target_optimizer"]["state"] = {}
    original_training(tmp_path / "a.pt", begun.out.parent, state, freeze_ll=True)
    run(dataclasses.replace(begun, out=tmp_path / "out", start_from=tmp_path / "a.pt", freeze_target=True, steps=9))
    assert checkpoint.load(tmp_path / "out" / "checkpoint.pt")["target_optimizer"]["state"] == {}
    single = dataclasses.replace(begun, out=tmp_path / "single", transforms="similarity", steps=2)
    run(single)
    original_training(tmp_path / "b.pt", begun.out.parent, checkpoint.load(single.out / "checkpoint.pt"))
    run(dataclasses.replace(single, out=tmp_path / "more", start_from=tmp_path / "b.pt", steps=3))
    assert checkpoint.load(tmp_path / "more" / "checkpoint.pt")["transformer_optimizer"]["state"][0]["step"] == 3


def test_what_the_run_does_otherwise_is_said(tmp_path, begun, capsys):
    state = checkpoint.load(begun.out / "checkpoint.pt")
    original_training(tmp_path / "a.pt", begun.out.parent, state, anneal_psi=5, decay=0.5, loss_fn="vgg_ssl", flips=True)
    content = torch.load(tmp_path / "a.pt", weights_only=False)
    content["g_ema"]["input.input"] += 1
    content["t_sched"]["last_epoch"] = 3
    torch.save(content, tmp_path / "a.pt")
    run(dataclasses.replace(begun, out=tmp_path / "out", start_from=tmp_path / "a.pt", steps=9))
    said = capsys.readouterr().out
    for words in (
        "--anneal-psi 5, this run has 6",
        "--flips True",
        "--decay 0.5",
        "vgg_ssl",
        "another generator",
        "stand at period 3",
    ):
        assert words in said


@pytest.mark.parametrize(
    ("damage", "changes", "words"),
    [
        (lambda content: content.pop("t_optim"), {}, "t_optim is missing"),
        (lambda content: content["t_optim"]["state"][3].pop("exp_avg"), {}, "t_optim cannot be used .*exp_avg"),
        (lambda content: content["t_optim"]["state"][3]["exp_avg"].fill_(float("nan")), {}, "exp_avg of stns.0.convs"),
        (lambda content: content["t_optim"]["state"][3].update(exp_avg=torch.ones(2)), {}, "exp_avg of stns.0.convs"),
        (lambda content: content["t_optim"]["state"][3].update(step=torch.tensor(5.0)), {}, "updated 5 to 8 times"),
        (lambda content: content["t_optim"]["param_groups"][0]["params"].pop(), {}, "weights, the network"),
        (lambda content: content["ll_optim"]["param_groups"][0].update(betas=(0.5, 0.9)), {}, "not Adam with betas 0.9"),
        (lambda content: content["t"]["stns.0.convs.0.0.weight"].fill_(float("inf")), {}, "convs.0.0.weight of t holds"),
        (lambda content: content["t"].pop("stns.0.convs.0.0.weight"), {}, "convs.0.0.weight differs"),
        (lambda content: None, {"max_channels": 16}, "give --transforms similarity,flow --flow-size 32 .*--max-channels 8"),
        (lambda content: None, {"directions": 1}, "give --directions 2"),
        (lambda content: None, {"steps": 8}, "larger --steps than 8"),
    ],
)
def test_what_cannot_go_on_is_one_sentence(tmp_path, begun, damage, changes, words):
    content = torch.load(begun.out.parent / "0000008.pt", weights_only=False)
    damage(content)
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(UserError, match=words):
        run(dataclasses.replace(begun, out=tmp_path / "out", start_from=tmp_path / "a.pt", **changes))
    assert not (tmp_path / "out").exists()


def test_only_the_originals_training_is_a_start(tmp_path, begun):
    with pytest.raises(UserError, match="no checkpoint of the original's training"):
        run(dataclasses.replace(begun, out=tmp_path / "out", start_from=begun.out / "checkpoint.pt"))


# ---- checkpoints at a learning rate of zero


@pytest.mark.parametrize(("anneal", "period", "kept"), [(4, 2, [3, 5, 9]), (6, 0, [5]), (0, 5, [4]), (20, 5, [])])
def test_checkpoints_at_a_learning_rate_of_zero_are_kept(folder, monkeypatch, anneal, period, kept):
    """Whatever the snapshots are, and without changing anything else; they are aligners like any other."""
    options = {"transforms": "similarity", "anneal_psi": anneal, "period": period, "steps": 14, "snapshot": 100}
    config = train_config(folder, **options, zero_learning_rate=True)
    interrupt(monkeypatch, config, 7)
    run(config)
    names = [f"checkpoint-{step:07d}.pt" for step in kept]
    assert sorted(path.name for path in config.out.glob("checkpoint-*.pt")) == names
    for step, name in zip(kept, names, strict=True):
        assert checkpoint.load(config.out / name, kind="train")["step"] == step
        assert read(config.out / name).transformer is not None
    run(dataclasses.replace(config, out=folder / "plain", zero_learning_rate=False))
    assert not list((folder / "plain").glob("checkpoint-*.pt"))
    assert_identical(*(checkpoint.load(folder / name / "checkpoint.pt") for name in ("run", "plain")))


def test_where_there_are_no_hard_links_a_copy_is_kept(tmp_path, monkeypatch):
    checkpoint.save_latest(tmp_path, {"step": 1}, kind="train")

    def none(*_):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(checkpoint.os, "link", none)
    checkpoint.keep_newest(tmp_path, "kept.pt")
    checkpoint.save_latest(tmp_path, {"step": 2}, kind="train")
    assert checkpoint.load(tmp_path / "kept.pt")["step"] == 1
