# SPDX-License-Identifier: Apache-2.0
"""Adversarial autoencoders: priors, phases, uses, resuming, refusals; on pictures that the tests make."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from picture_files import fill, write_idx
from runs import write_generator

from gangealing_fast.autoencoders import collection, priors, trainer
from gangealing_fast.autoencoders.autoencoder import EXPORT_NAME, AdversarialAutoencoder
from gangealing_fast.autoencoders.collection import open_collection
from gangealing_fast.autoencoders.config import AutoencodeConfig
from gangealing_fast.autoencoders.networks import Decoder, Encoder
from gangealing_fast.checkpoints.reading import load_generator
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.storage import checkpoint
from gangealing_fast.storage.files import read_json, read_json_lines
from gangealing_fast.training.loop import Means

TINY = {
    "width": 32,
    "critic_width": 32,
    "batch": 20,
    "epochs": 2,
    "snapshot_epochs": 1,
    "threads": 1,
    "learning_rate": 2e-3,
    "style": 3,
    "precision": "float32",  # auto depends on the processor
}


def patterns(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """28x28 pictures of ten classes: a bright block at one of ten places, with noise."""
    generator = np.random.default_rng(seed)
    classes = np.arange(count) % 10
    images = generator.integers(0, 60, (count, 28, 28))
    for image, kind in zip(images, classes, strict=True):
        row, column = divmod(int(kind), 4)
        image[2 + 9 * row : 8 + 9 * row, 1 + 7 * column : 6 + 7 * column] += 180
    return images.astype(np.uint8), classes.astype(np.uint8)


@pytest.fixture(scope="module")
def mnist(tmp_path_factory):
    """A folder with MNIST's files, of 480 training and 100 test patterns."""
    folder = tmp_path_factory.mktemp("mnist")
    for part, count, seed in (("train", 480, 0), ("t10k", 100, 1)):
        images, classes = patterns(count, seed)
        write_idx(folder / f"{part}-images-idx3-ubyte.gz", images, squeeze=True)
        write_idx(folder / f"{part}-labels-idx1-ubyte.gz", classes, squeeze=True)
    return folder


USES = {
    "basic": {},
    "conditional": {"prior": "mixture", "style": 2, "labels": 100},
    "supervised": {},
    "semi": {"labels": 50, "input_dropout": 0.2, "moves": 0.5, "labelled_batch": 10},
    "clusters": {"categories": 12, "batch_norm": True, "moves": 1.0, "two_views": True, "critic_noise": 0.3, "category_noise": 0.5},
    "map": {"style": 3, "labels": 50},
}


@pytest.mark.parametrize("use", USES)
def test_every_use_runs_examines_itself_and_can_be_loaded(mnist, tmp_path, use):
    config = AutoencodeConfig(data=mnist, out=tmp_path / "run", use=use, **{**TINY, **USES[use]})
    file = trainer.run(config)
    figures = read_json(config.out / "figures.json")
    assert math.isfinite(figures["test_reconstruction"]) and 0 < figures["style_mmd_p"] <= 1
    assert ("test_error" in figures) == (use in ("semi", "map")) and ("cluster_error" in figures) == (use == "clusters")
    assert ("log_likelihood" in figures) == (use == "basic")
    assert len(read_json_lines(config.out / "log.jsonl")) == 2
    names = {path.name for path in config.out.glob("*.png")}
    assert names == {"reconstructions.png"} | {
        "basic": {"samples.png", "percentiles.png"},
        "conditional": {"samples.png"},
        "supervised": {"categories.png"},
        "map": {"categories.png", "members.png", "plane.png", "map.png"},
    }.get(use, {"categories.png", "members.png"})
    assert ("neighbour_error" in figures) == (use == "map")
    assert "<svg" in (config.out / "report.html").read_text()
    loaded = AdversarialAutoencoder.load(config.out)
    assert loaded.about["use"] == use and file.name == EXPORT_NAME
    code = loaded.encode(torch.zeros(7, 1, 28, 28, dtype=torch.uint8))
    assert code.style.shape == (7, config.style)


def test_few_labels_teach_what_the_classes_are(mnist, tmp_path):
    config = AutoencodeConfig(data=mnist, out=tmp_path / "run", use="semi", **{**TINY, "epochs": 12, "labels": 50, "ema": 0.9})
    trainer.run(dataclasses.replace(config, snapshot_epochs=12))
    assert read_json(config.out / "figures.json")["test_error"] <= 0.05


@pytest.mark.slow
def test_codes_come_nearer_to_their_prior(mnist, tmp_path):
    """The discrepancy between codes and prior falls to less than a quarter of what it was after the first epoch."""
    found = []
    for epochs, out in ((1, "one"), (22, "many")):
        config = AutoencodeConfig(
            data=mnist,
            out=tmp_path / out,
            **{**TINY, "style": 2, "epochs": epochs, "regularisation_rate": 1e-3, "ema": 0.9},
        )
        trainer.run(dataclasses.replace(config, snapshot_epochs=22))
        found.append(read_json(config.out / "figures.json")["style_mmd"])
    assert found[1] < found[0] / 4


@pytest.mark.parametrize(("use", "precision"), [("semi", "float32"), ("clusters", "float32"), ("clusters", "bfloat16")])
def test_killed_and_resumed_is_the_same_run(mnist, tmp_path, monkeypatch, use, precision):
    options = {**TINY, **USES[use], "precision": precision}
    whole = AutoencodeConfig(data=mnist, out=tmp_path / "whole", use=use, **options)
    trainer.run(whole)
    cut = dataclasses.replace(whole, out=tmp_path / "cut")
    save = checkpoint.save_latest

    def once(*arguments, **keywords):
        save(*arguments, **keywords)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "save_latest", once)
        with pytest.raises(KeyboardInterrupt):
            trainer.run(cut)
    trainer.run(cut)
    assert (cut.out / EXPORT_NAME).read_bytes() == (whole.out / EXPORT_NAME).read_bytes()
    assert read_json(cut.out / "figures.json") == read_json(whole.out / "figures.json")


def test_pictures_of_a_folder_in_colour_through_convolutions(tmp_path):
    fill(tmp_path / "pictures", 40)
    options = {**TINY, "size": 16, "architecture": "convolutional", "batch": 8, "encoder": "universal"}
    trainer.run(AutoencodeConfig(data=tmp_path / "pictures", out=tmp_path / "run", **options))
    assert AdversarialAutoencoder.load(tmp_path / "run").decode(torch.zeros(2, 3)).shape == (2, 3, 16, 16)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"use": "semi"}, "say how many with --labels"),
        ({"use": "semi", "labels": 5}, "--labels must give each of 10 classes"),
        ({"use": "semi", "labels": 400}, "there are no unlabelled pictures"),
        ({"use": "semi", "labels": 100, "categories": 7}, "leave --categories 7 out"),
        ({"use": "semi", "labels": 100, "categories": 1}, "--categories of 2 or more"),
        ({"use": "clusters", "categories": 1}, "--categories of 2 or more"),
        ({"use": "map", "categories": 1}, "--categories of 2 or more"),
        ({"unlabelled": False}, "--no-unlabelled leaves the pictures of --labels"),
        ({"use": "clusters", "unlabelled": False}, "--no-unlabelled leaves the pictures of --labels"),
        ({"two_views": True}, "--two-views needs --moves"),
        ({"use": "clusters", "two_views": True}, "--two-views needs --moves"),
        ({"two_views": True, "moves": 1.0}, "a use with categories"),
        ({"prior": "generator"}, "go together"),
        ({"generator": Path("x.safetensors")}, "go together"),
        ({"prior": "generator", "generator": Path("x.safetensors")}, "x.safetensors"),
        ({"use": "clusters", "labels": 100}, "looks at no label"),
        ({"use": "conditional"}, "needs a prior of 10 parts"),
        ({"categories": 3}, "--categories means nothing"),
        ({"prior": "pyramid"}, "there is no prior pyramid"),
        ({"prior": "mixture", "style": 1}, "--style must be 2 or more"),
        ({"prior": "nothing.npy"}, "nothing.npy cannot be read"),
        ({"prior": "nowhere:function"}, "cannot be had"),
        ({"objective": "catgan"}, "needs a critic of pictures or classes"),
        ({"objective": "nothing"}, "there is no objective"),
        ({"architecture": "convolutional"}, "choose another --size"),
        ({"size": 64}, "MNIST's digits are 28x28"),
    ],
)
def test_what_makes_no_sense_is_a_sentence(mnist, tmp_path, options, sentence):
    with pytest.raises(UserError, match=sentence):
        trainer.run(AutoencodeConfig(data=mnist, out=tmp_path / "run", **{**TINY, **options}))


def test_uses_that_need_classes_refuse_pictures_without(tmp_path):
    fill(tmp_path / "pictures", 30)
    for options, sentence in (
        ({"use": "supervised"}, "needs classes"),
        ({"labels": 10}, "has none"),
        ({"use": "clusters"}, "nobody knows"),
        ({"held_out": 15}, "leave none"),
    ):
        with pytest.raises(UserError, match=sentence):
            trainer.run(AutoencodeConfig(data=tmp_path / "pictures", out=tmp_path / "run", **{**TINY, "size": 16, **options}))


def test_the_w_of_a_generator_is_a_prior(mnist, tmp_path):
    generator = load_generator(write_generator(tmp_path / "generator.safetensors"))
    options = {**TINY, "prior": "generator", "generator": tmp_path / "generator.safetensors", "epochs": 1}
    with pytest.raises(UserError, match="give --style 8, not 3"):
        trainer.run(AutoencodeConfig(data=mnist, out=tmp_path / "run", **options))
    trainer.run(AutoencodeConfig(data=mnist, out=tmp_path / "run", **options | {"style": 8}))
    prior = priors.make("generator", 8, 1.0, tmp_path / "generator.safetensors")
    torch.manual_seed(0)
    drawn = prior.sample(5)
    torch.manual_seed(0)
    assert torch.equal(drawn, generator.map(torch.randn(5, 8)))


def test_without_unlabelled_pictures_the_labelled_ones_alone_are_seen(mnist, tmp_path, monkeypatch):
    seen = []
    known, every = collection.Batches.known, collection.Batches.any
    monkeypatch.setattr(collection.Batches, "known", lambda self, count: (seen.append("known"), known(self, count))[1])
    monkeypatch.setattr(collection.Batches, "any", lambda self, count: (seen.append("any"), every(self, count))[1])
    options = {**TINY, "use": "semi", "labels": 50, "epochs": 1}
    trainer.run(AutoencodeConfig(data=mnist, out=tmp_path / "with", **options))
    assert {"known", "any"} == set(seen)
    seen.clear()
    trainer.run(AutoencodeConfig(data=mnist, out=tmp_path / "without", unlabelled=False, **options))
    assert set(seen) == {"known"}


# ---- parts


def test_two_views_give_the_style_and_the_category_of_different_ones(mnist, tmp_path):
    config = AutoencodeConfig(
        data=mnist, out=tmp_path, use="clusters", categories=4, two_views=True, moves=1.0, **{**TINY, "input_dropout": 0.0}
    )
    work = trainer.Training(config, open_collection(config), torch.device("cpu"))
    views, _ = work._batch()
    assert views.shape == (40, 1, 28, 28) and not torch.equal(views[:20], views[20:])
    code, first, second = work._encode(views, 20), work.model.encoder(views[:20]), work.model.encoder(views[20:])
    torch.testing.assert_close(code.style, first.style)
    torch.testing.assert_close(code.logits, second.logits)


@pytest.mark.parametrize("name", ["mixture", "swiss-roll"])
def test_parts_of_a_prior_are_apart_and_together_the_whole(name):
    torch.manual_seed(0)
    prior = priors.make(name, 3)
    parts = torch.arange(10).repeat_interleave(200)
    samples = prior.sample(2000, parts)
    assert samples.shape == (2000, 3) and prior.components == 10
    nearest = torch.cdist(samples, prior.sample(4000, torch.arange(10).repeat(400))).argmin(1) % 10
    assert (nearest == parts).float().mean() > 0.9
    anywhere = prior.sample(2000, torch.full((2000,), -1))
    assert (anywhere.mean(0) - samples.mean(0)).abs().max() < 0.1


def test_the_mixture_is_what_its_text_says():
    torch.manual_seed(0)
    petal = priors.mixture(2, scale=2.0).sample(20_000, torch.zeros(20_000, dtype=torch.int64))
    torch.testing.assert_close(petal.mean(0), torch.tensor([2.0, 0.0]), atol=0.02, rtol=0)
    torch.testing.assert_close(petal.std(0), torch.tensor([0.7, 0.16]), atol=0.02, rtol=0)


def test_priors_of_the_user(tmp_path, monkeypatch):
    np.save(tmp_path / "samples.npy", np.eye(4, dtype=np.float64))
    drawn = priors.make(str(tmp_path / "samples.npy"), 4, 2.0).sample(50)
    assert set(drawn.sum(1).tolist()) == {2.0}
    np.save(tmp_path / "flat.npy", np.zeros(4))
    for name in ("samples.npy", "flat.npy"):
        with pytest.raises(UserError, match=name):
            priors.make(str(tmp_path / name), 3)
    (tmp_path / "my_prior.py").write_text(
        "import numpy\ndef ones(n):\n    return numpy.ones((n, 2))\ndef few(n):\n    return numpy.ones((1, 2))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert torch.equal(priors.make("my_prior:ones", 2).sample(3), torch.ones(3, 2))
    with pytest.raises(UserError, match="my_prior:few returned"):
        priors.make("my_prior:few", 2)


@pytest.mark.parametrize("damage", ["kind", "encoder", "tensor"])
def test_a_damaged_file_is_a_sentence(tmp_path, damage):
    from gangealing_fast.storage.exports import export_safetensors

    model = AdversarialAutoencoder(Encoder(8, 1, 2, width=16), Decoder(8, 1, 2, width=16))
    about = {"kind": "autoencoder", "encoder": model.encoder.config(), "decoder": model.decoder.config(), "about": {}}
    tensors = model.state_dict()
    if damage == "kind":
        about["kind"] = "aligner"
    elif damage == "encoder":
        about["encoder"]["width"] = 17
    else:
        del tensors["decoder.hidden.0.bias"]
    export_safetensors(tmp_path / EXPORT_NAME, tensors, about)
    with pytest.raises(UserError, match="holds no autoencoder|is damaged"):
        AdversarialAutoencoder.load(tmp_path)


def test_the_critic_of_supervised_styles_is_told_the_class(mnist, tmp_path, monkeypatch):
    config = AutoencodeConfig(data=mnist, out=tmp_path, use="supervised", **TINY)
    work = trainer.Training(config, open_collection(config), torch.device("cpu"))
    seen = []
    judge = work.games["style"].judge
    monkeypatch.setattr(work.games["style"], "judge", lambda *arguments: seen.append(arguments) or judge(*arguments))
    views, classes = work._batch()
    work._regularise(views, classes, Means())
    real, _, told_real, told_fake = seen[0]
    assert real.shape == (20, 3) and torch.equal(told_real, told_fake)
    assert torch.equal(told_real, torch.nn.functional.one_hot(classes, 10).float())
