# SPDX-License-Identifier: Apache-2.0
"""Runs that begin elsewhere: those of earlier versions, and those of the original."""

from __future__ import annotations

import dataclasses

import pytest
from runs import assert_identical, train_config, write_generator

from gangealing_fast.alignment import step as step_module
from gangealing_fast.alignment import trainer
from gangealing_fast.alignment.trainer import run
from gangealing_fast.applications.aligner import Aligner
from gangealing_fast.models.spatial_transformer import FLOW_BLOCKS
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
