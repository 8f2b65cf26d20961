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
from gangealing_fast.autoencoders.game import Game, code_objective
from gangealing_fast.autoencoders.moves import moved
from gangealing_fast.autoencoders.networks import CodeCritic, Decoder, Encoder, heads_too_near
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


def test_pictures_are_moved_as_far_as_the_strength_says():
    torch.manual_seed(0)
    images = torch.zeros(200, 1, 28, 28)
    images[:, :, 12:16, 12:16] = 1
    assert torch.equal(moved(images, 0), images)
    shifts = []
    for strength in (0.5, 1.0):
        found = moved(images, strength)[:, 0]
        places = torch.arange(28.0)
        centre = torch.stack([(found.sum(dim) * places).sum(1) / found.sum((1, 2)) for dim in (1, 2)], 1) - 13.5
        shifts.append(centre.abs().max().item())
    assert 0.8 < shifts[0] < 1.5 and 1.7 < shifts[1] < 3


def test_categories_of_a_normalised_encoder_are_all_used():
    torch.manual_seed(0)
    encoder = Encoder(8, 1, 2, 6, width=32, batch_norm=True)
    with torch.no_grad():
        encoder.to_category.linear.bias[2] = 1000  # of one that is not normalised it alone would be the largest
    found = encoder(torch.rand(300, 1, 8, 8)).logits
    assert found.argmax(1).unique().numel() == 6
    torch.testing.assert_close(found.std(0, unbiased=False), torch.full((6,), 2.0), atol=0.05, rtol=0)


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


def test_a_gaussian_encoder_draws_while_it_learns_and_a_universal_one_always():
    torch.manual_seed(0)
    images = torch.rand(4, 1, 8, 8)
    gaussian = Encoder(8, 1, 3, kind="gaussian", width=16)
    assert not torch.equal(gaussian(images).style, gaussian(images).style)
    assert torch.equal(gaussian.eval()(images).style, gaussian(images).style)
    model = AdversarialAutoencoder(gaussian, Decoder(8, 1, 3, width=16)).eval()
    mean, drawn = model.encode(images).style, torch.stack([model.encode(images, drawn=True).style for _ in range(400)])
    assert drawn.std(0).min() > 0 and torch.allclose(drawn.mean(0), mean, atol=0.3 * drawn.std().item())
    universal = Encoder(8, 1, 3, kind="universal", width=16).eval()
    assert not torch.equal(universal(images).style, universal(images).style)


def test_the_softmax_itself_reaches_the_critic_of_categories():
    torch.manual_seed(0)
    encoder, critic = Encoder(8, 1, 2, 5, width=16), CodeCritic(5, width=16)
    code = encoder(torch.rand(6, 1, 8, 8))
    critic(code.probabilities).sum().backward()
    assert encoder.to_category.linear.weight.grad.abs().sum() > 0


def test_a_critic_judges_each_code_by_itself():
    torch.manual_seed(0)
    critic, codes = CodeCritic(3, width=16), torch.randn(5, 3)
    torch.testing.assert_close(critic(codes)[:2], critic(codes[:2]))


def test_a_penalty_holds_the_critic_at_the_priors_codes():
    found, real, fake = [], torch.randn(6, 2), torch.randn(6, 2)
    for r1 in (0.0, 3.0):
        torch.manual_seed(0)
        game = Game(CodeCritic(2, width=16), code_objective("nonsaturating"), 1e-3, r1)
        codes = real.clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(game.critic(codes).sum(), codes)
        found.append(game.judge(real, fake)["critic"])
    assert found[1] - found[0] == pytest.approx(1.5 * gradient.square().sum(1).mean().item(), rel=1e-4)


def test_heads_are_penalised_below_their_distance_alone():
    heads = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]])
    assert heads_too_near(heads[:2], 5.0) == 0 and heads_too_near(heads[:2], 7.0) == 4.0
    assert heads_too_near(heads[:1], 5.0) == 0
    expected = ((5 - 1) ** 2 + (5 - math.sqrt(18)) ** 2 + 0) / 3
    assert heads_too_near(heads, 5.0).item() == pytest.approx(expected)


def test_a_map_adds_the_head_of_the_category_to_the_style():
    decoder = Decoder(8, 1, 2, 3, as_map=True, width=16)
    style, category = torch.randn(4, 2), torch.eye(3)[[0, 2, 1, 1]]
    torch.testing.assert_close(decoder.place(style, category), style + decoder.heads[[0, 2, 1, 1]])


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


@pytest.mark.parametrize("kind", ["deterministic", "gaussian", "universal"])
@pytest.mark.parametrize("architecture", ["dense", "convolutional"])
def test_codes_are_in_single_precision_where_pictures_are_not(kind, architecture):
    torch.manual_seed(0)
    encoder = Encoder(8, 1, 4, 3, kind=kind, architecture=architecture, width=32).eval()
    decoder = Decoder(8, 1, 4, 3, architecture=architecture, width=32)
    pictures = torch.rand(50, 1, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        code = encoder(pictures)
        made = decoder(code.style, code.probabilities)
    for numbers in (code.style, code.logits, made):
        assert numbers.dtype == torch.float32
        assert (numbers != numbers.bfloat16().float()).float().mean() > 0.9  # not rounded either
    if kind == "deterministic":
        torch.testing.assert_close(code.style, encoder(pictures).style, atol=0.05, rtol=0)


@pytest.mark.parametrize("told", [True, False])
def test_only_a_critic_that_is_told_the_class_sees_that_styles_tell_it(told):
    """Styles that are distributed as the prior, those of class 0 in its left half and those of class 1 in its right one."""
    torch.manual_seed(0)
    game = Game(CodeCritic(2, 2 if told else 0, 32), code_objective("nonsaturating"), 5e-3)
    right = []
    for _ in range(200):
        styles = torch.randn(100, 2)
        classes = torch.nn.functional.one_hot((styles[:, 0] > 0).long(), 2).float() if told else None
        right.append(game.judge(torch.randn(100, 2), styles, classes, classes)["critic_right"])
    found = sum(right[-50:]) / 50
    assert found > 0.7 if told else 0.45 < found < 0.55


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
