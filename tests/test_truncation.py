# SPDX-License-Identifier: Apache-2.0
"""Truncation of a generator's latents: in Python, and in every command that draws samples."""

from __future__ import annotations

import pytest
import torch
from foreign_files import small_parts
from runs import call, train_config, write_generator, write_pictures
from support import assert_close

from gangealing_fast import classify, contrast, pretrain, train
from gangealing_fast.alignment.building import build
from gangealing_fast.alignment.classifying import Teacher
from gangealing_fast.checkpoints.reading import load_generator
from gangealing_fast.checkpoints.writing import write
from gangealing_fast.contrastive.config import ContrastConfig
from gangealing_fast.contrastive.training import Mixture
from gangealing_fast.models import LatentTarget
from gangealing_fast.pretraining.sampling import samples
from gangealing_fast.runtime.distributed import Group


@pytest.fixture
def folder(tmp_path):
    write_generator(tmp_path / "generator.safetensors")
    return tmp_path


def test_truncation_of_the_generator(folder):
    generator = load_generator(folder / "generator.safetensors")
    z, mean = torch.randn(3, 8), generator.mean_latent()
    assert mean.shape == (1, 8) and torch.equal(mean, generator.mean_latent())
    w = generator.map(z)
    assert torch.equal(generator.map(z, truncation=1.0), w)
    assert_close(generator.map(z, truncation=0.3, truncation_latent=mean), mean + 0.3 * (w - mean), 1e-6)
    assert_close(generator.map(z, truncation=0.0, truncation_latent=mean), mean.expand(3, 8), 1e-6)
    half = generator(z, "fixed", truncation=0.5, truncation_latent=mean)
    assert torch.equal(half, generator.synthesize(generator.map(z, truncation=0.5, truncation_latent=mean), "fixed"))
    for arguments, words in (
        ({"truncation": 0.5}, "got none"),
        ({"truncation": 0.5, "truncation_latent": torch.zeros(1, 7)}, r"\[1, 7\]"),
        ({"truncation": 1.5}, r"\[0, 1\]"),
        ({"truncation": float("nan")}, r"\[0, 1\]"),
    ):
        with pytest.raises(ValueError, match=words):
            generator.map(z, **arguments)


def test_samples_of_training_keep_nearer_to_the_mean(folder):
    spread = []
    for truncation in (1.0, 0.5, 0.0):
        step = build(train_config(folder, truncation=truncation, transforms="similarity"), Group(torch.device("cpu")))
        draws = step._draws(step.draw(0, range(8)))
        w, _ = step._generated(draws)
        assert_close(w, torch.lerp(step.target.lat_mean, step.generator.map(draws.z), truncation), 1e-6)
        spread.append(w.std(0).mean().item())
    assert spread[0] > spread[1] > spread[2] == pytest.approx(0, abs=1e-6)


def of_clusters(folder, truncation):
    """The templates that clusters start with: coefficients of K samples."""
    return build(
        train_config(folder, clusters=2, truncation=truncation, transforms="similarity"), Group(torch.device("cpu"))
    ).target.target()


def of_the_sheets(folder, truncation):
    return samples(load_generator(folder / "generator.safetensors"), truncation=truncation)


def of_contrast(folder, truncation):
    generator = folder / "generator.safetensors"
    mixture = Mixture(ContrastConfig(out=folder / "out", generator=generator, size=32, truncation=truncation), torch.device("cpu"))
    return mixture.next(6)


def of_the_teacher(folder, truncation):
    parts, generator = small_parts(), load_generator(folder / "generator.safetensors")
    target = LatentTarget(torch.eye(8)[:2], generator.mean_latent(), heads=2)

    def distance(a, b):
        return (a - b).square().mean((1, 2, 3))

    options = {"inject": 3, "flips": False, "warping": parts.warping, "truncation": truncation}
    return Teacher(generator, parts.transformer, target, distance, **options).lesson(6)[0]


@pytest.mark.parametrize("draw", [of_clusters, of_the_sheets, of_contrast, of_the_teacher])
def test_truncated_samples_are_more_alike(folder, draw):
    """Wherever samples are drawn; those of truncation 0 are all the same."""
    spread = [draw(folder, truncation).std(0).mean().item() for truncation in (1.0, 0.3, 0.0)]
    assert spread[0] > spread[1] > spread[2] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("value", ["1.5", "-0.1", "nan"])
@pytest.mark.parametrize("command", [train, classify, contrast, pretrain], ids=lambda command: command.__name__.rpartition(".")[2])
def test_what_is_no_truncation_is_one_sentence(folder, monkeypatch, capsys, command, value):
    generator = folder / "generator.safetensors"
    write(small_parts(), folder / "parts", "safetensors")
    arguments = {
        train: ["--generator", generator],
        classify: ["--checkpoint", folder / "parts"],
        contrast: ["--generator", generator, "--size", 32],
        pretrain: ["--data", write_pictures(folder / "pictures"), "--size", 16],
    }[command]
    assert call(monkeypatch, command, *arguments, "--out", folder / "out", "--truncation", value) == 2
    error = capsys.readouterr().err
    assert "--truncation must be at least 0 and at most 1" in error and error.count("\n") == 1 and not (folder / "out").exists()


def test_a_generator_without_styles_is_not_truncated(folder, monkeypatch, capsys):
    arguments = ["--data", write_pictures(folder / "pictures"), "--size", 16, "--architecture", "dcgan", "--out", folder / "out"]
    assert call(monkeypatch, pretrain, *arguments, "--truncation", 0.5) == 2
    assert "stylegan2" in capsys.readouterr().err
