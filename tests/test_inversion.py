# SPDX-License-Identifier: Apache-2.0
"""Inversion: the search, the encoder's training, the command, and what stands on it: templates, clusters by distance."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from runs import assert_identical, train_config, write_generator, write_pictures
from torch import Tensor

from gangealing_fast.alignment import chosen, classifying
from gangealing_fast.alignment.building import build
from gangealing_fast.alignment.chosen import reaching
from gangealing_fast.alignment.config import ClassifyConfig
from gangealing_fast.alignment.trainer import run as train
from gangealing_fast.autoencoders.networks import Encoder
from gangealing_fast.checkpoints.reading import load_generator, read
from gangealing_fast.inversion import Inverter, inverting
from gangealing_fast.inversion.config import InvertConfig
from gangealing_fast.inversion.inverter import EXPORT_NAME
from gangealing_fast.inversion.searching import _likeness, _normalise, search
from gangealing_fast.models import Generator, LatentTarget
from gangealing_fast.runtime.distributed import Group
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.storage import checkpoint
from gangealing_fast.storage.exports import export_safetensors
from gangealing_fast.storage.files import read_json, read_json_lines, save_picture


class Pixels(torch.nn.Module):
    """A distance that takes no time."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return (a - b).square().mean((1, 2, 3))


@pytest.fixture
def quick(monkeypatch):
    """The command with this distance."""
    monkeypatch.setattr(inverting, "make_perceptual", lambda config: Pixels())


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """generator.safetensors and pictures/, some of them its own samples."""
    folder = tmp_path_factory.mktemp("inversion")
    write_generator(folder / "generator.safetensors")
    write_pictures(folder / "pictures", 7)
    return folder


def small() -> Generator:
    torch.manual_seed(0)
    return Generator(8, 6, 1, channel_base=64, max_channels=8).eval().requires_grad_(False)


def config(place, out, **changes) -> InvertConfig:
    options = {"batch": 4, "width": 16, "train_steps": 6, "snapshot": 2, "steps": 3, "threads": 1, "reuse_memory": False}
    return InvertConfig(place / "generator.safetensors", out, **{**options, **changes})


# ---- the search


def test_the_search_comes_nearer_and_each_picture_is_alone():
    inverter = Inverter(small(), None, Pixels())
    torch.manual_seed(1)
    pictures = inverter.decode(inverter.generator.map(torch.randn(3, 6)))
    found = inverter.optimise(pictures, 30)
    assert found.history.shape == (31, 3) and found.w.shape == (3, 6)
    torch.testing.assert_close(found.history[0], Pixels()(inverter.decode(inverter.mean).expand_as(pictures), pictures))
    assert (found.distance < 0.2 * found.history[0]).all()
    torch.testing.assert_close(found.distance, found.history.min(0).values)
    torch.testing.assert_close(inverter.decode(found.w), found.images, atol=1e-5, rtol=1e-4)
    alone = inverter.optimise(pictures[1:2], 30)
    torch.testing.assert_close(alone.w[0], found.w[1], atol=1e-4, rtol=1e-3)
    assert all(not parameter.requires_grad and parameter.grad is None for parameter in inverter.generator.parameters())


def test_no_step_looks_at_the_start_alone():
    inverter = Inverter(small(), None, Pixels())
    pictures = torch.rand(2, 3, 8, 8) * 2 - 1
    found = inverter.optimise(pictures, 0)
    assert torch.equal(found.w, inverter.mean.expand(2, -1)) and found.history.shape == (1, 2) and found.noise is None


def test_layers_and_noise_of_their_own_come_nearer_still():
    inverter = Inverter(small(), None, Pixels())
    torch.manual_seed(2)
    pictures = torch.rand(2, 3, 8, 8) * 2 - 1
    plain = inverter.optimise(pictures, 20)
    free = inverter.optimise(pictures, 20, w_plus=True, noise=True)
    assert free.w.shape == (2, inverter.generator.n_latent, 6) and (free.distance < plain.distance).all()
    assert free.noise is not None and [layer.shape[2] for layer in free.noise] == [4, 8, 8]
    with torch.no_grad():
        torch.testing.assert_close(inverter.generator.synthesize(free.w, free.noise), free.images, atol=1e-5, rtol=1e-4)


def test_noise_is_kept_noise():
    torch.manual_seed(0)
    noise = 3 * torch.randn(2, 1, 16, 16) + 5
    _normalise([noise])
    torch.testing.assert_close(noise.mean((2, 3)), torch.zeros(2, 1), atol=1e-5, rtol=0)
    torch.testing.assert_close(noise.square().mean((2, 3)), torch.ones(2, 1))
    ramp = torch.linspace(-1.7, 1.7, 16).expand(2, 1, 16, 16)
    assert _likeness(noise) < 0.2 * _likeness(ramp)


def test_what_does_not_fit_is_said():
    inverter = Inverter(small(), None, Pixels())
    with pytest.raises(ValueError, match="do not fit a generator of 8x8"):
        search(inverter.generator, Pixels(), torch.zeros(2, 3, 8, 8), torch.zeros(2, 5), 1.0)
    with pytest.raises(ValueError, match=r"\[N, 3, H, W\]"):
        inverter.encode(torch.zeros(2, 1, 8, 8))
    assert inverter.encode(torch.zeros(2, 3, 16, 16, dtype=torch.uint8)).shape == (2, 6)


# ---- the command


def test_a_run_leaves_what_it_promises(place, tmp_path, quick):
    options = config(place, tmp_path / "run", data=place / "pictures", held_out=2)
    inverting.run(options)
    out = options.out
    with np.load(out / "latents.npz") as stored:
        assert stored["w"].shape == (7, 8) and stored["names"].tolist() == [f"{k:03d}.png" for k in range(7)]
        assert (stored["distance"] <= stored["distance_first"]).all()
    assert len(list((out / "reconstructions").iterdir())) == 7 and (out / "reconstructions.png").is_file()
    figures = read_json(out / "figures.json")
    assert set(figures) >= {"samples_latent_encoder", "samples_latent_mean", "samples_distance_encoder", "distance"}
    assert "<svg" in (out / "report.html").read_text()
    lines = read_json_lines(out / "log.jsonl")
    assert "perceptual" not in lines[0] and {"perceptual", "real_pixels", "prior", "critic_right"} <= set(lines[-1])
    loaded = Inverter.load(out)  # the generator's place is in the file
    with np.load(out / "latents.npz") as stored:
        assert not np.allclose(stored["w"][0], loaded.mean.numpy())


def test_the_encoder_learns_where_samples_come_from(place, tmp_path, quick):
    options = config(place, tmp_path / "run", train_steps=80, snapshot=80, batch=16, steps=0, learning_rate=3e-3)
    inverting.run(options)
    figures = read_json(options.out / "figures.json")
    assert figures["samples_latent_encoder"] < 0.9 * figures["samples_latent_mean"]


def test_killed_and_resumed_is_the_same_run(place, tmp_path, quick, monkeypatch):
    options = config(place, tmp_path / "whole", data=place / "pictures", w_plus=True, noise=True)
    inverting.run(options)
    cut = dataclasses.replace(options, out=tmp_path / "cut")
    for module, name in ((checkpoint, "save_latest"), (inverting, "_write_part")):
        original = getattr(module, name)

        def once(*arguments, original=original, **keywords):
            original(*arguments, **keywords)
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(module, name, once)
            with pytest.raises(KeyboardInterrupt):
                inverting.run(cut)
    first = (cut.out / "parts" / "000000.npz").read_bytes()
    inverting.run(cut)
    assert (cut.out / "parts" / "000000.npz").read_bytes() == first
    assert (cut.out / EXPORT_NAME).read_bytes() == (options.out / EXPORT_NAME).read_bytes()
    with np.load(cut.out / "latents.npz") as a, np.load(options.out / "latents.npz") as b:
        assert_identical(
            {k: torch.from_numpy(a[k]) for k in a if k != "names"}, {k: torch.from_numpy(b[k]) for k in b if k != "names"}
        )
        assert a["w"].shape == (7, 8, 8) and a["noise_0"].shape == (7, 1, 4, 4)
    assert len(list((cut.out / "reconstructions").iterdir())) == 7


def test_an_encoder_is_taken_instead_of_trained(place, tmp_path, quick):
    trained = config(place, tmp_path / "trained", steps=0)
    inverting.run(trained)
    again = config(place, tmp_path / "again", encoder=trained.out, data=place / "pictures", limit=3)
    inverting.run(again)
    assert not (again.out / EXPORT_NAME).exists()
    with np.load(again.out / "latents.npz") as stored:
        assert len(stored["w"]) == 3


def other_generator(path, size=32, latent=8):
    from gangealing_fast.checkpoints.writing import export_generator

    torch.manual_seed(5)
    export_generator(Generator(size, latent, 1, channel_base=64, max_channels=8), path, {})
    return path


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"train_steps": 0, "steps": 0}, "there is nothing to do"),
        ({"held_out": 6, "data": "pictures"}, "leaves 1 of 7 pictures"),
        ({"data": "pictures", "digit": (3,)}, "pictures"),
        ({"digit": (5,)}, "no digits of class 5"),
        ({"encoder": "nothing.safetensors"}, "nothing.safetensors"),
        ({"encoder": "generator.safetensors"}, "holds no encoder"),
        ({"encoder": "strange"}, "trained for another generator"),
        ({"encoder": "damaged.safetensors"}, "is damaged"),
        ({"generator": "pictures"}, "holds neither"),
        ({"perceptual": "self"}, "has no weights yet"),
    ],
)
def test_mistakes_are_one_sentence(place, tmp_path, changes, sentence):
    generator = load_generator(other_generator(tmp_path / "other.safetensors"))
    encoder = Encoder(32, 3, 8, architecture="convolutional", width=16)
    (tmp_path / "strange").mkdir()
    Inverter(generator, encoder).export(tmp_path / "strange" / EXPORT_NAME, {"generator_file": "gone"})
    about = {"kind": "inverter", "encoder": {**encoder.config(), "width": 17}, "about": {}}
    own = Inverter(load_generator(place / "generator.safetensors"), encoder)
    own.export(tmp_path / "own.safetensors", {})
    from gangealing_fast.inversion.inverter import fingerprint

    export_safetensors(tmp_path / "damaged.safetensors", encoder.state_dict(), about | {"generator": fingerprint(own.generator)})
    (tmp_path / "generator.safetensors").write_bytes((place / "generator.safetensors").read_bytes())
    write_pictures(tmp_path / "pictures", 7)
    paths = {key: tmp_path / value for key, value in changes.items() if isinstance(value, str) and key != "perceptual"}
    options = dataclasses.replace(config(place, tmp_path / "run"), **{**changes, **paths})
    with pytest.raises(UserError, match=sentence):
        inverting.run(options)
    with pytest.raises(UserError, match="name the generator"):
        Inverter.load(tmp_path / "own.safetensors")


# ---- templates that the user chooses


def test_a_target_reaches_any_latent():
    torch.manual_seed(0)
    directions = torch.linalg.qr(torch.randn(6, 6)).Q[:2]
    target = LatentTarget(directions, torch.randn(6), heads=3)
    w = torch.randn(3, 6)
    w[1] = target.lat_mean[0] + 2 * directions[0]  # nothing is left of this one
    made = reaching(target, w)
    torch.testing.assert_close(made.target(), w, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(made.directions @ made.directions.T, torch.eye(5), atol=1e-5, rtol=0)
    torch.testing.assert_close(made.directions[:2], directions)


def test_training_begins_at_a_picture_and_keeps_it_where_it_is_frozen(place, tmp_path, capsys):
    generator = load_generator(place / "generator.safetensors")
    inverter = Inverter(generator, None, Pixels())
    torch.manual_seed(3)
    w = generator.map(torch.randn(1, 8))
    save_picture(tmp_path / "own.png", inverter.decode(w)[0].clamp(-1, 1))
    options = train_config(place, out=tmp_path / "run", template=(tmp_path / "own.png",), template_steps=60, steps=2)
    frozen = dataclasses.replace(options, freeze_target=True, out=tmp_path / "frozen")
    step = build(dataclasses.replace(frozen, out=tmp_path / "built"), Group(torch.device("cpu")))
    begun = step.target.target()
    assert Pixels()(inverter.decode(begun), inverter.decode(w)) < 0.5 * Pixels()(inverter.decode(inverter.mean), inverter.decode(w))
    train(frozen)
    target = read(frozen.out).target
    assert target is not None
    torch.testing.assert_close(target.target(), begun)
    assert (frozen.out / "template-begin.png").is_file() and "the generator's mean has" in capsys.readouterr().out


def test_a_picture_that_the_generator_cannot_make_is_noticed(place, tmp_path, capsys):
    write_pictures(tmp_path, 1)
    options = train_config(place, out=tmp_path / "run", template=(tmp_path / "000.png",), template_steps=1)
    build(options, Group(torch.device("cpu")))
    assert "hardly makes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"inverter": "x"}, "finds the latents of --template"),
        ({"template": ("a.png", "b.png")}, "2 for 1"),
        ({"template": ("a.png", "b.png"), "clusters": 2, "single_steps": 7}, "leave it out"),
        ({"template": ("a.png",), "start_from": "x.pt"}, "leave --template out"),
        ({"template": ("a.png",), "template_steps": 0}, "needs --inverter"),
        ({"template": ("nowhere.png",)}, "nowhere.png cannot be read"),
        ({"template": ("generator.safetensors",)}, "is no picture|give a picture"),
        ({"template": ("pictures/000.png",), "inverter": "generator.safetensors"}, "holds no encoder"),
    ],
)
def test_templates_that_cannot_be_are_one_sentence(place, tmp_path, changes, sentence):
    found = {
        key: tuple(place / one for one in value) if isinstance(value, tuple) else place / value if isinstance(value, str) else value
        for key, value in changes.items()
    }
    with pytest.raises(UserError, match=sentence):
        build(train_config(place, out=tmp_path / "run", **found), Group(torch.device("cpu")))


# ---- clusters by distance


def test_clusters_are_told_by_distance_beside_the_classifier(place, tmp_path, quick, capsys):
    inverting.run(config(place, tmp_path / "inverter", steps=0))
    options = train_config(
        place, out=tmp_path / "run", clusters=2, steps=2, snapshot=2, cluster_candidates=4, data=place / "pictures"
    )
    train(dataclasses.replace(options, held_out=6))
    given = ClassifyConfig(
        options.out, tmp_path / "told", steps=2, batch=4, snapshot=2, threads=1, held_out=6, by="distance",
        inverter=tmp_path / "inverter", inverter_steps=1,
    )  # fmt: skip
    classifying.run(given)
    found = read_json(given.out / "clusters.json")
    assert len(found["distance"]) == len(found["classifier"]) == 6 and set(found["distance"]) <= {0, 1}
    same = sum(a == b for a, b in zip(found["distance"], found["classifier"], strict=True)) / 6
    assert math.isclose(found["agreement"], same, abs_tol=1e-6)
    assert "by distance" in capsys.readouterr().out
    for changes, sentence in (
        ({"inverter": None}, "needs pictures' latents"),
        ({"by": "classifier"}, "is for --by distance"),
    ):
        with pytest.raises(UserError, match=sentence):
            classifying.run(dataclasses.replace(given, out=tmp_path / "wrong", **changes))


def test_the_distance_of_a_sample_of_known_latent_is_the_teachers(place):
    """The chooser with a perfect encoder says what the teacher says."""
    generator = load_generator(place / "generator.safetensors")
    torch.manual_seed(0)
    w = generator.map(torch.randn(5, 8))

    class Known(Inverter):
        def encode(self, pictures):
            return w[: len(pictures)]

    from gangealing_fast.alignment.distances import Chooser
    from gangealing_fast.geometry.warping import DEFAULT
    from gangealing_fast.models import SpatialTransformer

    transformer = SpatialTransformer(("similarity",), 32, 32, channel_base=64, max_channels=8, heads=2).eval().requires_grad_(False)
    target = LatentTarget(torch.eye(8)[:2], generator.mean_latent(100), heads=2)
    target.coefficients.data.copy_(torch.tensor([[2.0, 0.0], [-2.0, 0.0]]))
    teacher = classifying.Teacher(generator, transformer, target, Pixels(), inject=3, flips=True, warping=DEFAULT)
    known = Known(generator, None, Pixels())
    pictures = known.decode(w)
    expected = teacher.judged(pictures, w, "fixed")
    cluster, mirrored = Chooser(lambda images, latents: teacher.judged(images, latents, "fixed"), known, 0)(pictures)
    assert torch.equal(cluster, expected.cluster) and torch.equal(mirrored, expected.mirrored)


def test_pictures_are_read_as_templates(tmp_path):
    write_pictures(tmp_path, 2, size=40)
    found = chosen.read_pictures([tmp_path / "000.png", tmp_path / "001.png"], 16)
    assert found.shape == (2, 3, 16, 16) and found.abs().max() <= 1
