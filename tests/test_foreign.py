# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of other projects: what is in them arrives, and what is written they can read."""

from __future__ import annotations

import pickle

import pytest
import torch
from foreign_files import (
    PersistentStandIn,
    ada_network,
    assert_same_pictures,
    original_file,
    pretend_modules,
    small_generator,
    small_parts,
)
from support import golden_index

from gangealing_fast.checkpoints.reading import read
from gangealing_fast.checkpoints.writing import generator_state, transformer_state, write
from gangealing_fast.geometry.warping import Warping
from gangealing_fast.models import Generator, SpatialTransformer
from gangealing_fast.runtime.errors import UserError

# ---- the original


def test_the_originals_checkpoint(tmp_path):
    parts = small_parts()
    found = read(original_file(tmp_path / "a.pt", parts))
    assert (found.warping, found.inject) == (parts.warping, parts.inject) and found.options["lr"] == 0.001
    assert_same_pictures(found.generator, parts.generator)
    assert torch.equal(found.target.target(), parts.target.target())
    images = torch.rand(2, 3, 64, 64)
    assert (found.transformer.heads, found.transformer.flow_size, found.transformer.input_size) == (2, 32, 64)
    assert torch.equal(found.transformer(images).grid, parts.transformer(images).grid)


@pytest.mark.parametrize("transforms", [("similarity",), ("flow",)])
def test_the_originals_checkpoint_of_a_single_transform(tmp_path, transforms):
    parts = small_parts()
    parts.transformer = SpatialTransformer(transforms, 32, channel_base=64, max_channels=8, heads=2)
    found = read(original_file(tmp_path / "a.pt", parts)).transformer
    assert found.transforms == transforms
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(found(images).grid, parts.transformer(images).grid)


def test_written_names_and_shapes_are_those_of_the_original():
    settings = golden_index()["stn_composed"]
    state = transformer_state(SpatialTransformer(("similarity", "flow"), 64, 128, 0.5))
    assert {k: list(v.shape) for k, v in state.items()} == settings["state"]
    settings = golden_index()["generator"]
    state = generator_state(Generator(settings["size"], 512, 2))
    assert {k: list(v.shape) for k, v in state.items()} == settings["state"]


@pytest.mark.parametrize("to", ["safetensors", "rosinality", "original"])
def test_there_and_back(tmp_path, to):
    parts = small_parts()
    out = tmp_path / ("folder" if to == "safetensors" else "a.pt")
    files = write(parts, out, to)
    assert all(file.exists() for file in files)
    found = read(out)
    assert_same_pictures(found.generator, parts.generator)
    if to != "rosinality":
        images = torch.rand(1, 3, 64, 64)
        assert torch.equal(found.transformer(images).grid, parts.transformer(images).grid)
        assert torch.equal(found.target.target(), parts.target.target())
        assert found.warping == Warping("reflection", 3)
    if to == "rosinality":
        assert torch.equal(found.mean_latent, parts.mean_latent)
    if to == "safetensors":
        card = (out / "README.md").read_text()
        assert "Converted from: a test" in card and "| flow_size | 32 |" in card


def test_half_precision_export(tmp_path):
    parts = small_parts()
    whole, half = (sum(f.stat().st_size for f in write(parts, tmp_path / str(h), "safetensors", half=h)) for h in (False, True))
    assert half < 0.6 * whole
    read(tmp_path / "True")


def test_a_part_that_the_format_needs_is_missing(tmp_path):
    parts = small_parts()
    parts.transformer = parts.target = None
    with pytest.raises(UserError, match="needs a transformer"):
        write(parts, tmp_path / "a.pt", "original")
    parts.generator = None
    with pytest.raises(UserError, match="needs a generator"):
        write(parts, tmp_path / "a.pt", "rosinality")
    assert not list(tmp_path.iterdir())


# ---- rosinality's StyleGAN2


@pytest.mark.parametrize("zipped", [True, False])
def test_rosinality(tmp_path, zipped):
    generator = small_generator()
    content = {"g_ema": generator_state(generator), "latent_avg": torch.ones(8), "d": {}, "g_optim": {"state": {}}}
    torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    found = read(tmp_path / "a.pt")
    assert found.names() == ["generator"] and torch.equal(found.mean_latent, torch.ones(8))
    assert_same_pictures(found.generator, generator)


@pytest.mark.parametrize("multiplier", [1.0, 2.0])
def test_widths_are_recovered(tmp_path, multiplier):
    generator = Generator(128, 16, 1, multiplier, max_channels=512)
    torch.save({"g_ema": generator_state(generator)}, tmp_path / "a.pt")
    assert read(tmp_path / "a.pt").generator.config() == generator.config()


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda state: state.pop("conv1.conv.weight"), "conv1.conv.weight is missing"),
        (lambda state: state.update({"extra.weight": torch.ones(1)}), "extra.weight has no place"),
        (lambda state: state.update({"conv1.noise.weight": torch.ones(3)}), "conv1.noise.weight does not have the shape"),
        (lambda state: state["input.input"].fill_(float("nan")), "input.input holds values that are not finite"),
        (lambda state: state.clear(), "is missing"),
    ],
)
def test_a_generator_that_does_not_fit(tmp_path, damage, sentence):
    state = generator_state(small_generator())
    damage(state)
    torch.save({"g_ema": state}, tmp_path / "a.pt")
    with pytest.raises(UserError, match=sentence):
        read(tmp_path / "a.pt")


# ---- StyleGAN2-ADA


def test_stylegan2_ada(tmp_path, monkeypatch):
    easy = pretend_modules(monkeypatch)
    generator = small_generator()
    content = {"G_ema": ada_network(generator), "augment_pipe": None, "training_set_kwargs": easy(resolution=16)}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content))
    found = read(tmp_path / "a.pkl")
    assert found.generator.size == 16
    assert_same_pictures(found.generator, generator)
    assert torch.equal(found.mean_latent, torch.full((8,), 0.25))


def test_conditional_and_foreign_networks_are_refused(tmp_path, monkeypatch):
    pretend_modules(monkeypatch)
    extra = {"mapping.embed.weight": torch.ones(3, 3)}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"G_ema": ada_network(small_generator(), **extra)}))
    with pytest.raises(UserError, match="conditional"):
        read(tmp_path / "a.pkl")
    (tmp_path / "b.pkl").write_bytes(pickle.dumps({"G_ema": PersistentStandIn("Other", _parameters={})}))
    with pytest.raises(UserError, match="Other is no StyleGAN2 generator"):
        read(tmp_path / "b.pkl")
