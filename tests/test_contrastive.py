# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from runs import assert_identical, write_pictures

from gangealing_fast.checkpoints.writing import export_generator
from gangealing_fast.contrastive import training
from gangealing_fast.contrastive.config import ContrastConfig
from gangealing_fast.contrastive.views import contrastive_loss, random_view
from gangealing_fast.models import Generator, build_perceptual
from gangealing_fast.models.self_supervised import SelfSupervisedPerceptual
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.storage import checkpoint
from gangealing_fast.storage.files import read_json_lines, save_picture


def config(folder, **changes) -> ContrastConfig:
    write_pictures(folder / "pictures", size=20)
    options = {"out": folder / "run", "data": folder / "pictures", "size": 16, "steps": 6, "batch": 4, "widths": (4, 4, 4, 4, 4)}
    return ContrastConfig(**(options | {"snapshot": 2, "precision": "float32"} | changes))


def test_the_loss_against_its_formula():
    first, second = torch.randn(3, 5, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)
    both = torch.cat([first, second])
    both = both / both.norm(dim=1, keepdim=True)
    total = 0.0
    for i in range(6):
        scores = {k: math.exp(float(both[i] @ both[k]) / 0.5) for k in range(6) if k != i}
        total -= math.log(scores[(i + 3) % 6] / sum(scores.values()))
    assert abs(contrastive_loss(first, second, 0.5).item() - total / 6) < 1e-6
    with pytest.raises(ValueError, match="2 or more"):
        contrastive_loss(first[:1], second[:1], 0.5)


def test_views_keep_the_range_and_differ():
    images = torch.rand(8, 3, 24, 24) * 2 - 1
    view = random_view(images)
    assert view.shape == images.shape and view.abs().max() <= 1
    assert not torch.equal(view, random_view(images))
    grey = torch.zeros(2, 3, 8, 8)
    assert random_view(grey).std((2, 3)).max() < 1e-6  # no geometry shows on a flat picture


def test_stopped_and_resumed_equals_uninterrupted(tmp_path, monkeypatch):
    options = config(tmp_path)
    training.run(dataclasses.replace(options, out=tmp_path / "whole"))
    original, calls = training.contrastive_loss, iter(range(100))

    def interrupted(*arguments):
        if next(calls) == 3:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(training, "contrastive_loss", interrupted)
    with pytest.raises(KeyboardInterrupt):
        training.run(options)
    monkeypatch.undo()
    exported = training.run(options)
    assert_identical(*(checkpoint.load(tmp_path / name / "checkpoint.pt") for name in ("whole", "run")))
    lines = read_json_lines(tmp_path / "run" / "log.jsonl")
    assert [line["step"] for line in lines] == [2, 4, 6]
    network = build_perceptual("self", weights=exported)
    a, b = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16)
    distance = network(a, b)
    assert distance.shape == (2,) and (distance > 0).all() and torch.equal(network(a, a), torch.zeros(2))
    assert not any(p.requires_grad for p in network.parameters())
    assert torch.equal(build_perceptual("self", weights=exported.parent)(a, b), distance)


def test_learns_to_tell_pictures_apart(tmp_path):
    """Stripes of six widths and two directions: views of one picture come to lie nearer than those of others."""
    options = config(tmp_path, steps=150, snapshot=50, batch=12, widths=(8, 8, 16, 16, 16), learning_rate=3e-3, size=32)
    ramp = torch.linspace(0, 6.28, 32)
    for k in range(12):
        stripes = torch.sin(ramp * (1 + k // 2) * 1.3).expand(3, 32, 32)
        save_picture(tmp_path / "pictures" / f"{k:03d}.png", stripes if k % 2 else stripes.mT)
    lines = read_json_lines(training.run(options).parent / "log.jsonl")
    assert lines[-1]["found"] > 2 * lines[0]["found"] or lines[-1]["found"] > 0.5
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.3


def test_learns_from_a_generators_samples(tmp_path):
    generator = Generator(32, 8, 1, channel_base=64, max_channels=8)
    export_generator(generator, tmp_path / "g.safetensors", {})
    options = config(tmp_path, generator=tmp_path / "g.safetensors", steps=2)
    training.run(options)
    training.run(dataclasses.replace(options, data=None, out=tmp_path / "samples"))
    with pytest.raises(UserError, match="does not divide"):
        training.run(dataclasses.replace(options, size=24, out=tmp_path / "odd"))
    with pytest.raises(UserError, match="nothing to learn from"):
        training.run(dataclasses.replace(options, data=None, generator=None, out=tmp_path / "none"))


def test_files_that_hold_no_distance(tmp_path):
    generator = Generator(8, 8, 1, channel_base=64, max_channels=8)
    export_generator(generator, tmp_path / "g.safetensors", {})
    with pytest.raises(UserError, match="holds no perceptual network"):
        SelfSupervisedPerceptual.load(tmp_path / "g.safetensors")
    with pytest.raises(UserError, match="no such file"):
        SelfSupervisedPerceptual.load(tmp_path)
    with pytest.raises(UserError, match="contrast"):
        build_perceptual("self")
