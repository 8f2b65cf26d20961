# SPDX-License-Identifier: Apache-2.0
"""`pretrain --objective catgan | semi-supervised`: labels of some digits, the classifier that comes out, exact resuming."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from picture_files import write_idx
from runs import assert_pretraining_resumes, pretrain_config, write_pictures
from torch import nn

from gangealing_fast.data.sampler import balanced
from gangealing_fast.metrics.clusters import majority
from gangealing_fast.models import DcganCritic, Discriminator
from gangealing_fast.pretraining.classification import Classifier, settle_statistics
from gangealing_fast.pretraining.source import DigitSource
from gangealing_fast.pretraining.trainer import run
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.storage import checkpoint
from gangealing_fast.storage.files import read_json_lines

DIGITS = (2, 5, 7)


def digit_arrays(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Squares, bright in a corner of their own for each class."""
    chance = np.random.default_rng(seed)
    labels = chance.permutation(np.resize(np.array((*DIGITS, 9), np.uint8), count))
    images = chance.integers(0, 60, (count, 28, 28), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        row, column = divmod((*DIGITS, 9).index(label), 2)
        image[14 * row : 14 * row + 14, 14 * column : 14 * column + 14] += 180
    return images, labels


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "mnist"
    place.mkdir()
    for part, count in (("train", 120), ("t10k", 60)):
        images, labels = digit_arrays(count, len(part))
        write_idx(place / f"{part}-images-idx3-ubyte", images)
        write_idx(place / f"{part}-labels-idx1-ubyte", labels)
    return tmp_path


def digit_config(folder, **changes):
    options = {"data": folder / "mnist", "digit": DIGITS, "size": 32, "score_pictures": 0, "warp": False, "batch": 6, "kimg": 0.06}
    return pretrain_config(folder, **{**options, "objective": "semi-supervised", "labels": 6, "snapshot_kimg": 0.03} | changes)


def test_labelled_digits_are_balanced_and_chosen_by_the_seed():
    classes = torch.arange(3).repeat_interleave(torch.tensor([30, 20, 50]))
    chosen = balanced(classes, 20, 1)
    assert torch.bincount(classes[chosen]).tolist() == [7, 7, 6] and len(chosen.unique()) == 20
    assert torch.equal(chosen, balanced(classes, 20, 1)) and not torch.equal(chosen, balanced(classes, 20, 2))
    for count in (2, 70):
        with pytest.raises(UserError, match=f"3 classes between 1 and .* got {count}"):
            balanced(classes, count, 0)


def test_batches_have_their_share_of_labels():
    images, classes = torch.arange(90, dtype=torch.uint8)[:, None, None].expand(90, 28, 28), torch.arange(90) % 3
    source = DigitSource(images, classes, DIGITS, 0, False, labels=9, share=0.25)
    known = set(source.labelled.tolist())
    seen, shown = set(), set()
    for _ in range(12):
        pictures, told = source.next(8)
        which = ((pictures[:, 0, 16, 16] + 1) / 2 * 255).round().int()
        assert (told[:2] >= 0).all() and (told[2:] == -1).all()
        assert torch.equal(told[:2], classes[which[:2]])
        seen |= set(which[:2].tolist())
        shown |= set(which[2:].tolist())
    assert seen == known and len(shown) == 72, "labelled digits in turn, the others in the order of an epoch"
    assert DigitSource(images, classes, DIGITS, 0, False).next(30)[1].min() == 0
    assert DigitSource(images, classes, DIGITS, 0, False, labels=9, share=0.01).next(8)[1].tolist()[1:] == [-1] * 7


@pytest.mark.parametrize("architecture", ["dcgan", "stylegan2"])
@pytest.mark.parametrize("objective", ["catgan", "semi-supervised"])
def test_a_run_leaves_a_classifier(folder, objective, architecture):
    matching = ("matching=1",) if objective == "semi-supervised" else ()
    config = digit_config(folder, objective=objective, architecture=architecture, objective_options=matching)
    run(config)
    lines = read_json_lines(config.out / "log.jsonl")
    assert len(lines) == 2 and all(0 <= line["test_error"] <= 1 and 0 <= line["labelled_accuracy"] <= 1 for line in lines)
    classifier = Classifier.load(config.out / "classifier.safetensors")
    assert classifier.names == list(DIGITS)
    images = torch.randn(4, 3, 32, 32)
    found = classifier(images)
    torch.testing.assert_close(found.sum(1), torch.ones(4))
    torch.testing.assert_close(classifier(images[:1]), found[:1], msg="a picture is classified for itself")
    state = checkpoint.load(config.out / "checkpoint.pt")
    torch.testing.assert_close(classifier.network.state_dict(), {k: v for k, v in state["classifier"].items()})
    assert any(not torch.equal(state["classifier"][k], v) for k, v in state["critic"].items()), "it is an average"


def test_without_labels_outputs_stand_for_the_majoritys_digit(folder):
    config = digit_config(folder, objective="catgan", labels=0, objective_options=("classes=5",))
    run(config)
    (first, last) = read_json_lines(config.out / "log.jsonl")
    assert "labelled_accuracy" not in last and 0 <= last["test_error"] <= 1
    names = Classifier.load(config.out / "classifier.safetensors").names
    assert len(names) == 5 and set(names) <= set(DIGITS)


def test_pictures_without_classes_are_shared_out_too(tmp_path):
    write_pictures(tmp_path / "pictures", size=20)
    config = pretrain_config(tmp_path, objective="catgan", architecture="dcgan", objective_options=("classes=3",), score_pictures=0)
    run(config)
    lines = read_json_lines(config.out / "log.jsonl")
    assert all("test_error" not in line and math.isfinite(line["real_marginal_entropy"]) for line in lines)
    classifier = Classifier.load(config.out / "classifier.safetensors")
    assert classifier.names == [0, 1, 2] and classifier(torch.randn(2, 3, 16, 16)).shape == (2, 3)


@pytest.mark.parametrize("objective", ["catgan", "semi-supervised"])
def test_stopped_and_resumed_equals_uninterrupted(folder, monkeypatch, objective):
    matching = ("matching=1",) if objective == "semi-supervised" else ()
    config = digit_config(folder, objective=objective, architecture="dcgan", objective_options=matching)
    assert_pretraining_resumes(config, folder, monkeypatch, steps=7)


def test_test_digits_may_be_missing(folder, capsys):
    for path in (folder / "mnist").glob("t10k*"):
        path.unlink()
    config = digit_config(folder, kimg=0.012, snapshot_kimg=0.012)
    run(config)
    assert "no test error: there is no t10k-images" in capsys.readouterr().out
    assert "test_error" not in read_json_lines(config.out / "log.jsonl")[0]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"objective": "nonsaturating"}, "nonsaturating cannot learn from some labels"),
        ({"digit": ()}, "give --digit with several classes"),
        ({"digit": (2,)}, "give --digit with several classes"),
        ({"labels": 2}, "3 classes between 1 and 30 digits, got 2"),
        ({"labels": 93}, "got 93 in all"),
        ({"labelled_share": 0.0}, "--labelled-share must be above 0"),
        ({"objective": "catgan", "objective_options": ("classes=2",)}, "2 classes, but --digit names 3"),
        ({"conditional": True, "architecture": "dcgan"}, "leave out --conditional"),
        ({"discriminator": "projected"}, "leave out --discriminator projected"),
    ],
)
def test_mistakes_are_one_sentence(folder, changes, words):
    with pytest.raises(UserError, match=words):
        run(digit_config(folder, **changes))


def test_only_classifiers_are_loaded(folder):
    config = digit_config(folder, architecture="dcgan", kimg=0.012)
    with pytest.raises(UserError, match="holds no classifier"):
        Classifier.load(run(config))


def test_majority_by_hand():
    outputs, classes = torch.tensor([0, 0, 0, 2, 2, 1]), torch.tensor([1, 1, 0, 0, 0, 2])
    assert majority(outputs, classes, 4) == [1, 2, 0, 0], "an output that nothing falls into gets the most frequent class"


def test_statistics_of_batch_normalisation_are_those_of_the_pictures():
    network = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 2, 1)).eval()
    batches = [torch.randn(8, 3, 4, 4) * 3 + k for k in range(4)]
    before = network[1].weight.clone()
    settle_statistics(network, batches)
    layer = network[0]
    torch.testing.assert_close(layer.running_mean, torch.stack([b.mean((0, 2, 3)) for b in batches]).mean(0))
    torch.testing.assert_close(layer.running_var, torch.stack([b.transpose(0, 1).flatten(1).var(1) for b in batches]).mean(0))
    assert layer.momentum == 0.1 and not layer.training and torch.equal(before, network[1].weight)


def test_critics_are_rebuilt_from_their_configuration():
    shape = {"size": 16, "channel_base": 64, "outputs": 3}
    for critic in (DcganCritic(**shape, norm="layer"), Discriminator(**shape, group=1)):
        again = type(critic)(**critic.config())
        again.load_state_dict(critic.state_dict())
        images = torch.randn(2, 3, 16, 16)
        torch.testing.assert_close(again(images), critic(images))
