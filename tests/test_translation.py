# SPDX-License-Identifier: Apache-2.0
"""Translation between two domains: networks, losses, training, resuming, use and refusals; on tiny networks."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
from pathlib import Path

import pytest
import torch
from picture_files import fill
from runs import call
from torch import nn

from gangealing_fast import ops, translate
from gangealing_fast.adversarial.objectives import make
from gangealing_fast.applications import translating
from gangealing_fast.data.pictures import to_float
from gangealing_fast.models import EfficientNetPerceptual
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.storage import checkpoint
from gangealing_fast.storage.files import read_json, read_json_lines, write_json
from gangealing_fast.training.optim import AdamEma
from gangealing_fast.translation import figures as measured
from gangealing_fast.translation import trainer
from gangealing_fast.translation.config import TranslateApplyConfig, TranslateExportConfig, TranslateTrainConfig
from gangealing_fast.translation.critics import MultiScaleCritic
from gangealing_fast.translation.domains import DomainPictures, Domains, open_domains
from gangealing_fast.translation.losses import Weights, pass_through, reconstruction_losses
from gangealing_fast.translation.making import COLOURS, colour_of, draw_digits, edges
from gangealing_fast.translation.networks import StyleEncoder, TranslationNetworks, Upsampling
from gangealing_fast.translation.step import TranslationStep
from gangealing_fast.translation.translator import EXPORT_NAME, Translator

TOOLS = Path(__file__).parents[1] / "tools"
SMALL = {"width": 4, "halvings": 2, "blocks": 1, "style": 3, "hidden": 8, "style_halvings": 2}
TINY = {**SMALL, "critic_width": 4, "critic_layers": 2, "critic_scales": 2, "size": 16, "batch": 2, "threads": 1}
RUN = {**TINY, "steps": 4, "tick": 2, "snapshot": 2}


def networks(seed: int = 0) -> TranslationNetworks:
    torch.manual_seed(seed)
    return TranslationNetworks(**SMALL)


def pictures(count: int = 2, side: int = 16, seed: int = 1) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture
def translator() -> Translator:
    made = Translator(networks(), {"size": 16, "domains": ["edges", "cats"]}).eval()
    return made.requires_grad_(False)


@pytest.fixture
def folders(tmp_path):
    fill(tmp_path / "first", 8, size=16)
    fill(tmp_path / "second", 9, size=24)
    return tmp_path


# ---- networks


@pytest.mark.parametrize("shape", [(16, 16), (20, 28), (64, 32)])
def test_any_size_that_the_stride_divides(shape):
    net, images = networks(), torch.rand(2, 3, *shape) * 2 - 1
    content = net[0].content(images)
    assert content.shape == (2, 16, shape[0] // 4, shape[1] // 4)
    made = net[1].decoder(content, net[1].style(images))
    assert made.shape == images.shape and made.abs().max() <= 1


def test_content_knows_no_contrast_and_style_does():
    net, images = networks(), pictures()
    content, style = net[0].content(images), net[0].style(images)
    assert torch.allclose(net[0].content(images / 2), content, atol=2e-2)
    assert not torch.allclose(net[0].style(images / 2), style, atol=2e-2)
    assert not any("norm" in type(layer).__name__.lower() for layer in net[0].style.modules())


def test_a_style_changes_means_and_spreads_alone_within_a_block():
    """Of a block's second half, what the style does to every channel is a scale and a shift."""
    block = networks()[0].decoder.blocks[0]
    x, one, other = torch.randn(2, 16, 6, 6), torch.randn(2, 4, 16), torch.randn(2, 4, 16)
    other[:, :2] = one[:, :2]  # the first half stays
    first, second = (block(x, affine) - x for affine in (one, other))
    normal = (first - one[:, 3, :, None, None]) / (1 + one[:, 2, :, None, None])
    expected = normal * (1 + other[:, 2, :, None, None]) + other[:, 3, :, None, None]
    assert torch.allclose(second, expected, atol=1e-4)


def test_upsampling_by_sums_is_upsampling_then_convolution():
    torch.manual_seed(0)
    layer, x = Upsampling(6, 4).double(), torch.randn(2, 6, 5, 7, dtype=torch.float64)
    assert torch.allclose(layer._folded(x), layer._plain(x), atol=1e-12)
    grads = [torch.autograd.grad(way(x).sin().sum(), layer.convolution.weight)[0] for way in (layer._folded, layer._plain)]
    assert torch.allclose(*grads, atol=1e-11)


def test_kernels_and_references_make_the_same_step():
    found = []
    for reference in (False, True):
        step = make_step(Weights(cycle=1.0))
        with ops.reference() if reference else torch.enable_grad():
            found.append(step([pictures(), pictures(seed=2)], [torch.ones(2, 3), -torch.ones(2, 3)], 0.5))
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        assert value == pytest.approx(found[1][name], rel=1e-3, abs=1e-4), name


def test_the_critic_sees_every_scale_by_an_anti_aliased_filter():
    critic = MultiScaleCritic(32, width=4, layers=2, scales=3)
    board = torch.ones(1, 3, 32, 32)
    board[..., ::2] = -1  # a pattern that plain subsampling would take for a plane
    seen: list[torch.Tensor] = []
    for scale in critic.scales:
        scale.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    scores = critic(board)
    assert [tuple(score.shape[2:]) for score in scores] == [(8, 8), (4, 4), (2, 2)]
    assert torch.equal(seen[0], board) and seen[1].shape[2:] == (16, 16)
    assert seen[1][..., 2:-2].abs().max() < 1e-6 and seen[2][..., 2:-2].abs().max() < 1e-6


# ---- losses and step


def make_step(weights: Weights, objective: str = "lsgan-01") -> TranslationStep:
    net = networks()
    torch.manual_seed(5)
    critics = nn.ModuleList(MultiScaleCritic(16, width=4, layers=2, scales=2) for _ in range(2))
    optimizers = [AdamEma(part.parameters(), 1e-3, (0.5, 0.999)) for part in (net, critics)]
    return TranslationStep(net, critics, *optimizers, make(objective), weights)


def test_translations_have_the_others_content_and_the_drawn_style():
    net, images = networks(), [pictures(), pictures(seed=2)]
    drawn = [torch.randn(2, 3), torch.randn(2, 3)]
    passed = pass_through(net, images, drawn)
    for k in (0, 1):
        expected = net[k].decoder(net[1 - k].content(images[1 - k]), drawn[k])
        assert torch.allclose(passed.translated[k], expected, atol=1e-5)
        own = net[k].decoder(net[k].content(images[k]), net[k].style(images[k]))
        assert torch.allclose(passed.rebuilt[k], own, atol=1e-5)


class _Fixed(StyleEncoder):
    """Answers what it was told, whatever it sees."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.answer


@pytest.mark.parametrize("k", [0, 1])
def test_a_domains_style_is_compared_with_what_was_drawn_for_that_domain(k):
    net, images, drawn = networks(), [pictures(), pictures(seed=2)], [torch.randn(2, 3), torch.randn(2, 3)]
    passed = pass_through(net, images, drawn)
    fixed = _Fixed(4, 2, 3, 7)
    fixed.answer = drawn[k]
    net.domains[k].style = fixed
    losses = reconstruction_losses(net, images, passed, Weights())
    names = ("style_first", "style_second")
    assert losses[names[k]] == 0 and losses[names[1 - k]] > 0


@pytest.mark.parametrize("left_out", ["image", "content", "style", "adversarial", "cycle"])
def test_a_loss_of_weight_nothing_is_left_out(left_out):
    weights = dataclasses.replace(Weights(cycle=1.0), **{left_out: 0.0})
    said = make_step(weights)([pictures(), pictures(seed=2)], [torch.randn(2, 3)] * 2, 0.9)
    assert not any(name.startswith((left_out, "critic" if left_out == "adversarial" else left_out)) for name in said)
    others = {"image", "content", "style", "adversarial", "cycle"} - {left_out}
    assert all(any(name.startswith(other) for name in said) for other in others)


@pytest.mark.parametrize("objective", ["lsgan-01", "nonsaturating", "hinge", "wgan-gp"])
def test_objectives_of_the_registry_train_both_sides(objective):
    step = make_step(Weights(), objective)
    before = [[p.clone() for p in part.parameters()] for part in (step.networks, step.critics)]
    said = step([pictures(), pictures(seed=2)], [torch.randn(2, 3)] * 2, 0.9)
    assert all(math.isfinite(value) for value in said.values())
    for part, old in zip((step.networks, step.critics), before, strict=True):
        assert any(not torch.equal(p, q) for p, q in zip(part.parameters(), old, strict=True))


# ---- what is made


def test_digits_have_the_colours_that_they_were_given():
    images = torch.zeros(70, 28, 28, dtype=torch.uint8)
    images[:, 6:22, 10:18] = 255
    made = draw_digits(images, torch.arange(70) % 10, 140, 3, of="colours")
    assert torch.equal(colour_of(to_float(made.images)), made.colours)
    assert set(made.colours.tolist()) == set(range(len(COLOURS)))
    assert torch.equal(made.classes, torch.arange(140) % 70 % 10)
    upright = (made.matrices == torch.tensor([[1.0, 0, 0], [0, 1, 0]])).all(-1).all(-1)
    assert 30 < upright.sum() < 110
    assert torch.equal(colour_of(-torch.ones(2, 3, 8, 8)), torch.tensor([-1, -1]))


def test_edges_lie_where_the_brightness_changes():
    image = -torch.ones(1, 3, 32, 32)
    image[..., 8:24, 8:24] = 0.5
    found = edges(image)
    assert found[0, 0, 16, 8] > 0.5 and found[0, 0, 16, 16] == -1 and found[0, 0, 2, 2] == -1
    assert torch.equal(edges(torch.zeros(1, 3, 16, 16)), -torch.ones(1, 3, 16, 16))


def test_the_packages_digits_make_both_domains_and_none_is_in_both(tmp_path, monkeypatch):
    monkeypatch.setattr("gangealing_fast.translation.domains.MADE", 400)
    seen = []
    original = draw_digits
    monkeypatch.setattr(
        "gangealing_fast.translation.domains.draw_digits",
        lambda images, *rest, **options: (seen.append(images), original(images, *rest, **options))[1],
    )
    domains = open_domains(TranslateTrainConfig(out=tmp_path, made="edges-digits", size=32, held_out=20))
    assert domains.kinds == 3 and len(domains.first.test) == 20 and domains.first.training.shape == (400, 3, 32, 32)
    parts = [{image.numpy().tobytes() for image in images} for images in (seen[0], seen[2], seen[1])]
    assert not parts[0] & parts[1] and not (parts[0] | parts[1]) & parts[2]


# ---- training


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


# ---- use


def test_a_translator_survives_its_file_and_a_damaged_one_is_named(translator, tmp_path):
    translator.save(tmp_path / EXPORT_NAME)
    loaded, images = Translator.load(tmp_path), pictures()
    assert torch.equal(loaded.translate(images, n=2), translator.translate(images, n=2))
    assert list(loaded.domain_names()) == ["edges", "cats"] and loaded.size == 16
    whole = (tmp_path / EXPORT_NAME).read_bytes()
    (tmp_path / EXPORT_NAME).write_bytes(whole.replace(b'"style"', b'"stile"', 1).replace(b'\\"width\\": 4', b'\\"width\\": 9'))
    with pytest.raises(UserError):
        Translator.load(tmp_path)


def test_styles_are_said_in_three_ways(translator):
    images, like = pictures(), pictures(3, seed=4)
    made = translator.translate(images, n=3, seed=5)
    assert made.shape == (2, 3, 3, 16, 16)
    assert torch.equal(translator.translate(images, n=1, seed=6)[:, 0], made[:, 1])
    codes = translator.style(like)
    assert torch.equal(translator.translate(images, like=like), translator.translate(images, styles=codes))
    ends = translator.path(codes[0], codes[2], 4)
    assert torch.allclose(ends[[0, 3]], codes[[0, 2]], atol=1e-6) and torch.allclose(
        ends[1] * 3, codes[0] * 2 + codes[2], atol=1e-5
    )
    back = translator.translate(images, styles=codes[:1], source="second", target="second")
    assert torch.allclose(back[:, 0], translator.decode(translator.content(images, "second"), codes[:1].repeat(2, 1)), atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"styles": torch.zeros(1, 4)}, r"styles must be \[K, 3\] for this translator, got \[1, 4\]"),
        ({"styles": torch.zeros(0, 3)}, r"got \[0, 3\]"),
        ({"styles": torch.zeros(1, 3), "n": 2}, "give one of them"),
        ({"n": 0}, "n must be at least 1"),
        ({"source": "third"}, 'a domain is "first" or "second"'),
        ({"like": torch.zeros(1, 3, 15, 16)}, "must be multiples of 4"),
    ],
)
def test_what_makes_no_style_is_one_sentence(translator, arguments, words):
    with pytest.raises(ValueError, match=words):
        translator.translate(pictures(), **arguments)


@pytest.mark.parametrize(
    "images", [torch.zeros(3, 16, 16), torch.zeros(1, 1, 16, 16), torch.zeros(1, 3, 16, 18), torch.zeros(1, 3, 4, 4)]
)
def test_pictures_that_do_not_fit_are_one_sentence(translator, images):
    with pytest.raises(ValueError, match="pictures must be"):
        translator.translate(images)


def test_domains_that_are_swapped_are_noticed(translator, capsys):
    network = EfficientNetPerceptual(min_size=64)
    dark, bright = pictures(6) * 0.1 - 0.8, pictures(6) * 0.1 + 0.8
    assert not translator.other_domain(dark, "second", network)  # nothing is known yet
    translator.learn_features(dark, bright, network)
    assert translator.other_domain(dark, "second", network) and not translator.other_domain(dark, "first", network)
    translating.warn_if_swapped(translator, bright, "first")
    assert "look like the second domain (cats), but are translated as the first one (edges)" in capsys.readouterr().out


def test_apply_writes_pictures_codes_and_a_sheet(translator, folders, monkeypatch, capsys):
    translator.save(folders / EXPORT_NAME)
    common = ["apply", "--translator", folders, "--data", folders / "first", "--limit", 3]
    assert call(monkeypatch, translate, *common, "--out", folders / "random", "--styles", 2, "--seed", 7) == 0
    out = folders / "random"
    assert len(list(out.glob("*-style*.png"))) == 6 and (out / "sheet.png").is_file()
    said = read_json(out / "styles.json")["styles"]
    assert [one["style"] for one in said] == ["seed 7", "seed 8"]
    assert torch.allclose(torch.tensor(said[1]["code"]), translator.random_styles(1, 8)[0])
    example = next((folders / "second").iterdir())
    like = ["--like", example, next((folders / "first").iterdir()), "--path", 3, "--direction", "within-second"]
    assert call(monkeypatch, translate, *common, "--out", folders / "path", *like) == 0
    assert len(read_json(folders / "path" / "styles.json")["styles"]) == 3
    assert len(read_json_lines(folders / "path" / "translations.jsonl")) == 3
    capsys.readouterr()
    for options, words in (
        (["--styles", 0], "--styles 0 asks for nothing"),
        (["--size", 18], "--size 18 must be a multiple of 4"),
        (["--styles", 1, "--path", 5], "at least two styles"),
        (["--like", folders / EXPORT_NAME], "is no picture that can be read"),
    ):
        assert call(monkeypatch, translate, *common, "--out", folders / "bad", *options) == 2
        error = capsys.readouterr().err
        assert words in error.splitlines()[-1] and "Traceback" not in error
    for first in ([], ["aply"]):
        assert call(monkeypatch, translate, *first) == 2
        assert "the first word must be train or apply or export" in capsys.readouterr().err


@pytest.mark.parametrize("ending", ["pt2", pytest.param("onnx", marks=pytest.mark.slow)])
def test_an_exported_program_translates_the_same(translator, tmp_path, ending):
    if ending == "onnx":
        runtime = pytest.importorskip("onnxruntime")
    translator.save(tmp_path / EXPORT_NAME)
    file = tmp_path / f"program.{ending}"
    config = TranslateExportConfig(translator=tmp_path, out=file)
    translating.use(config)
    images, styles = pictures(3), torch.randn(3, 3)
    expected = translator.decode(translator.content(images), styles)
    if ending == "pt2":
        made = torch.export.load(file).module()(images, styles)
    else:
        session = runtime.InferenceSession(str(file))
        made = torch.from_numpy(session.run(None, {"images": images.numpy(), "styles": styles.numpy()})[0])
    assert torch.allclose(made, expected, atol=1e-4)
    with pytest.raises(UserError, match="exists"):
        translating.use(config)


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


def test_apply_config_is_imported_without_torch_being_needed():
    assert TranslateApplyConfig(translator="a", data="b", out="c").direction == "first-to-second"


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
