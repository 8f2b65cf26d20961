# SPDX-License-Identifier: Apache-2.0
"""Training between two domains: runs, resuming, refusals, figures, and the table of ablations; on tiny networks."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
from pathlib import Path

import pytest
import torch
from picture_files import fill
from translators import RUN, TINY, fill_folders, make_translator, pictures

from gangealing_fast.models import EfficientNetPerceptual
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.storage import checkpoint
from gangealing_fast.storage.files import read_json, read_json_lines, write_json
from gangealing_fast.translation import figures as measured
from gangealing_fast.translation import trainer
from gangealing_fast.translation.config import TranslateTrainConfig
from gangealing_fast.translation.domains import DomainPictures, Domains, open_domains, unlike
from gangealing_fast.translation.translator import EXPORT_NAME, Translator

TOOLS = Path(__file__).parents[1] / "tools"


@pytest.fixture
def translator() -> Translator:
    return make_translator()


@pytest.fixture
def folders(tmp_path):
    return fill_folders(tmp_path)


def test_a_run_writes_everything_and_a_killed_one_ends_the_same(folders, monkeypatch, capsys):
    whole = TranslateTrainConfig(first=folders / "first", second=folders / "second", out=folders / "whole", mirror=True, **RUN)
    trainer.run(whole)
    assert {"translator.safetensors", "report.html", "figures.json", "README.md", "matrix-first-to-second.png"} <= {
        path.name for path in whole.out.iterdir()
    }
    found = read_json(whole.out / "figures.json")
    assert set(found) == {"first-to-second", "second-to-first"}
    assert all(math.isfinite(figure["value"]) for way in found.values() for figure in way.values())
    cut = dataclasses.replace(whole, out=folders / "cut")
    original, calls = checkpoint.save_latest, iter(range(10))

    def stop_after_one(*arguments, **keywords):
        original(*arguments, **keywords)
        if next(calls) == 0:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoint, "save_latest", stop_after_one)
        trainer.run(cut)
    trainer.run(cut)
    assert (cut.out / EXPORT_NAME).read_bytes() == (whole.out / EXPORT_NAME).read_bytes()
    logs = [[{**line, "seconds": 0} for line in read_json_lines(run.out / "log.jsonl")] for run in (whole, cut)]
    assert logs[0] == logs[1] and [line["step"] for line in logs[0]] == [2, 4]
    assert "resuming" in capsys.readouterr().out


def test_edges_of_one_half_and_pictures_of_the_other(folders):
    domains = open_domains(TranslateTrainConfig(out=folders / "x", second=folders / "second", made="edges", **TINY))
    assert len(domains.first.training) + len(domains.first.test) == 5 and domains.first.name == "edges"
    assert torch.equal(domains.first.training[:, 0], domains.first.training[:, 2])


REFUSED = {
    "nothing": ({}, "give the pictures of both domains"),
    "one": ({"first": "first"}, "give the pictures of both domains"),
    "same": ({"first": "first", "second": "first"}, "are the same pictures"),
    "few": ({"first": "lonely", "second": "second"}, "has only 1 usable picture, but at least 4 are needed"),
    "held": ({"first": "first", "second": "second", "held_out": 7}, "leaves fewer than two to learn from"),
    "size": ({"first": "first", "second": "second", "size": 18}, "--size 18 must be a multiple of 4"),
    "small": ({"first": "first", "second": "second", "size": 4}, "at least 8"),
    "scales": ({"first": "first", "second": "second", "critic_scales": 4}, "--critic-scales 4 leaves pictures below 4 pixels"),
    "objective": ({"first": "first", "second": "second", "objective": "gan"}, "--objective gan is not known"),
    "autoencoder": ({"first": "first", "second": "second", "objective": "began"}, "needs a critic of its own kind"),
    "weights": ({"first": "first", "second": "second", "image_weight": 0.0, "adversarial_weight": 0.0}, "give one of them"),
    "edges": ({"first": "first", "second": "second", "made": "edges"}, "leave --first out"),
    "digits": ({"first": "first", "made": "edges-digits", "size": 32}, "leave --first out"),
    "digits-size": ({"made": "edges-digits"}, "digits are 32 pixels a side"),
    "mnist": ({"made": "edges-digits", "size": 32, "second": "second"}, "no train-images-idx3-ubyte.gz"),
    "classifier": ({"first": "first", "second": "second", "classifier": "first"}, "is no .pt2 or TorchScript file"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_learned_from_is_one_sentence(folders, case):
    fill(folders / "lonely", 1, size=16)
    options, words = REFUSED[case]
    paths = {name: folders / value for name, value in options.items() if name in ("first", "second", "classifier")}
    with pytest.raises(UserError, match=words):
        trainer.run(TranslateTrainConfig(out=folders / "run", **{**RUN, **options, **paths}))


@pytest.mark.parametrize(
    ("counts", "sides", "size", "words"),
    [
        ((6, 60), (24, 24), 16, ["--first has 6 pictures to learn from, --second 60"]),
        ((60, 6), (24, 24), 16, ["--second has 6 pictures to learn from, --first 60"]),
        ((6, 59), (24, 24), 16, []),
        ((6, 6), (16, 24), 24, ["pictures of --first are 16 pixels a side and are enlarged to 24"]),
        ((6, 6), (24, 16), 24, ["pictures of --second are 16 pixels a side and are enlarged to 24"]),
        ((6, 6), (16, 16), 24, []),
        ((6, 60), (16, 24), 24, ["--first has 6", "enlarged to 24"]),
    ],
)
def test_domains_of_very_different_sizes_are_said(tmp_path, counts, sides, size, words):
    paths = tmp_path / "first", tmp_path / "second"
    for path, side in zip(paths, sides, strict=True):
        fill(path, 3, size=side)
    (paths[0] / "broken.png").write_bytes(b"no picture")
    notices = unlike(paths, counts, size)
    assert len(notices) == len(words)
    assert all(word in notice for word, notice in zip(words, notices, strict=True))


def test_a_run_says_that_its_domains_differ(folders, capsys):
    open_domains(
        TranslateTrainConfig(out=folders / "run", first=folders / "first", second=folders / "second", **{**RUN, "size": 20})
    )
    assert "NOTE: pictures of --first are 16 pixels a side and are enlarged to 20" in capsys.readouterr().out


# ---- figures


class _Plain(Translator):
    """Translates a picture into a plane of colours that the first three numbers of the style give, times `strength`."""

    strength = 1.0

    def decode(self, content: torch.Tensor, styles: torch.Tensor, domain: str = "second") -> torch.Tensor:
        colour = (self.strength * styles[:, :3]).tanh()
        return colour[:, :, None, None].expand(-1, -1, 16, 16).contiguous()


def some_domains() -> Domains:
    shown = ((pictures(12, seed=8) + 1) * 127).to(torch.uint8)
    return Domains(DomainPictures("a", shown[:4], shown[:6]), DomainPictures("b", shown[6:], shown[6:]))


def test_a_collapse_to_one_style_is_noticed_and_said(translator):
    network = EfficientNetPerceptual(min_size=64)
    plain = _Plain(translator.networks, translator.about)
    found = measured.variety_figures(plain, some_domains(), 1, network)
    assert measured.collapse(found, "second") is None
    plain.strength = 1e-4
    sentence = measured.collapse(measured.variety_figures(plain, some_domains(), 1, network), "second")
    assert sentence is not None and sentence.startswith(
        "collapsed to one style: translations of one picture into the second domain"
    )


def test_the_conditional_inception_score_counts_modes_of_one_picture(translator):
    plain = _Plain(translator.networks, translator.about)
    images = pictures(3)

    def by_style(shown: torch.Tensor) -> torch.Tensor:  # two sure answers, by the sign of red
        return torch.stack([shown[:, 0, 0, 0], -shown[:, 0, 0, 0]], 1).sign() * 50

    found = measured.conditional_inception(plain, images, by_style, images)
    codes = plain.random_styles(measured.STYLES, 20_000 + 28_000)
    share = (codes[:, 0] > 0).double().mean().item()
    entropy = -sum(p * math.log(p) for p in (share, 1 - share) if p)
    assert found["conditional_inception"].value == pytest.approx(entropy, abs=1e-4)
    same = measured.conditional_inception(plain, images, lambda shown: torch.zeros(len(shown), 2), images)
    assert same["conditional_inception"].value == pytest.approx(0, abs=1e-6)


# ---- the table of tools/measure_translation.py


def test_each_loss_is_left_out_in_turn(tmp_path, monkeypatch, capsys):
    specification = importlib.util.spec_from_file_location("measure_translation", TOOLS / "measure_translation.py")
    assert specification is not None and specification.loader is not None
    tool = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(tool)
    seen = []

    def run(config):
        seen.append((config.style_weight, config.image_weight, config.seed, config.steps))
        figure = {"value": 1.0 + config.seed, "beside": 2.0}
        write_json(config.out / "figures.json", {"first-to-second": {name: figure for name, _ in tool.COLUMNS.values()}})

    monkeypatch.setattr(trainer, "run", run)
    common = ["--out", str(tmp_path), "--mnist", "m", "--seeds", "0", "1", "2", "--steps", "7"]
    for variant in ("whole", "no-style"):
        for seed in (0, 1, 2):
            (tmp_path / f"{variant}-{seed}").mkdir()
    tool.main([*common, "--variants", "whole", "no-style"])
    assert seen == [(weight, 10.0, seed, 7) for seed in (0, 1, 2) for weight in (1.0, 0.0)]
    said = capsys.readouterr().out
    assert (
        "| readable | 2.000 (1.000, 2.000, 3.000) |" in said and "| style error over zero's | 1.000 (0.500, 1.000, 1.500) |" in said
    )
    with pytest.raises(UserError, match="--seeds must all differ"):
        tool.main([*common, "--seeds", "1", "1"])
