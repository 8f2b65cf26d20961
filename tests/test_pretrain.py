# SPDX-License-Identifier: Apache-2.0
import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from runs import assert_identical, assert_pretraining_resumes, pretrain_config, write_pictures
from support import relative_error, shared

from gangealing_fast.adversarial import step as step_module
from gangealing_fast.adversarial.augment import Augmentation
from gangealing_fast.adversarial.objectives import OBJECTIVES, make
from gangealing_fast.checkpoints.reading import load_generator, load_plain_generator
from gangealing_fast.models import Discriminator, EfficientNetPerceptual, Generator
from gangealing_fast.models.layers import FusedLeakyReLU
from gangealing_fast.pretraining.growing import start_critic, start_generator
from gangealing_fast.pretraining.projected import ProjectedDiscriminator
from gangealing_fast.pretraining.trainer import run
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.storage import checkpoint
from gangealing_fast.storage.files import read_json_lines


@pytest.fixture
def folder(tmp_path):
    write_pictures(tmp_path / "pictures", size=20)
    return tmp_path


def test_a_run_leaves_everything_it_promises(folder):
    config = pretrain_config(folder)
    exported = run(config)
    names = {"checkpoint.pt", "samples-000000.png", "log.jsonl", "config.json", "report.html"}
    assert names <= {p.name for p in config.out.iterdir()}
    lines = read_json_lines(config.out / "log.jsonl")
    assert [line["step"] for line in lines] == [2, 4, 6, 8, 10]
    figures = ("score", "kid", "diversity", "precision", "recall")
    assert all(math.isfinite(line[name]) for line in lines for name in figures)
    generator = load_generator(exported)
    assert generator(torch.randn(2, 8)).shape == (2, 3, 16, 16)
    assert not any(p.requires_grad for p in generator.parameters())


@pytest.mark.parametrize("architecture", ["stylegan2", "dcgan"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_takes_three_steps(folder, objective, architecture):
    changes = {"objective": objective, "architecture": architecture, "critic_steps": 1}
    record = make(objective)
    if record.classes:
        changes |= {"data": shared("data", "mnist"), "digit": (3, 7), "size": 32}
    if record.codes is not None:
        changes |= {"latent_dim": 16}
    config = pretrain_config(folder, **changes, kimg=0.012, snapshot_kimg=0.012, score_pictures=0)
    exported = run(config)
    (line,) = read_json_lines(config.out / "log.jsonl")
    assert line["step"] == 3 and {"critic", "generator"} <= line.keys()
    assert all(math.isfinite(value) for value in line.values())
    state = checkpoint.load(config.out / "checkpoint.pt")["objective"]
    assert state["critic_count"] == state["generator_count"] == 3
    assert (state["state"].keys() == {"k"}) == (objective == "began")
    if architecture == "dcgan":
        assert load_plain_generator(exported)(torch.randn(2, config.latent_dim)).shape == (2, 3, config.size, config.size)
        with pytest.raises(UserError, match="no styles"):
            load_generator(exported)
        with pytest.raises(UserError, match="no styles"):
            load_generator(config.out / "checkpoint.pt")


def test_runs_from_before_objectives_had_a_state_go_on(folder):
    config = pretrain_config(folder, kimg=0.008, score_pictures=0)
    run(config)
    state = checkpoint.load(config.out / "checkpoint.pt")
    for key in ("objective", "shown"):
        del state[key]
    checkpoint.save_latest(config.out, state, kind="pretrain")
    path = config.out / "config.json"
    written = json.loads(path.read_text())
    for key in ("architecture", "objective_options", "critic_steps", "conditional", "critic_norm", "path_length"):
        del written["options"][key]
    assert (written["options"]["r1"], written["options"]["critic_learning_rate"]) == (1.0, 0.002)
    path.write_text(json.dumps(written))
    run(config)
    assert len(read_json_lines(config.out / "log.jsonl")) == 1


def test_the_critic_gets_its_steps(folder):
    config = pretrain_config(folder, objective="wgan-gp", kimg=0.06, snapshot_kimg=0.02, score_pictures=0)
    run(config)
    lines = read_json_lines(config.out / "log.jsonl")
    assert [(line["step"], line["kimg"]) for line in lines] == [(1, 0.02), (2, 0.04), (3, 0.06)]
    assert checkpoint.load(config.out / "checkpoint.pt")["objective"]["critic_count"] == 15


def test_classes_reach_both_networks(tmp_path):
    config = pretrain_config(
        tmp_path,
        data=shared("data", "mnist"),
        digit=(3, 7),
        size=32,
        objective="lsgan-01",
        architecture="dcgan",
        conditional=True,
        kimg=0.008,
    )
    generator = load_plain_generator(run(config))
    z = torch.randn(1, 8)
    assert generator.classes == 2
    assert not torch.equal(generator(z, torch.tensor([0])), generator(z, torch.tensor([1])))


RESUMED = {
    "stylegan2": {"augment_target": -1.0},
    "projected": {"discriminator": "projected", "augment_target": -1.0, "kimg": 0.024},
    "path length": {"path_length": 2.0},
    "acgan on digits": {
        **{"objective": "acgan", "data": "mnist", "digit": (3, 7), "warp": False, "size": 32, "score_pictures": 8},
        **{"kimg": 0.028, "augment_target": -1.0},
    },
    "infogan on dcgan": {"objective": "infogan", "architecture": "dcgan", "latent_dim": 16},
    "began on dcgan": {"objective": "began", "architecture": "dcgan", "objective_options": ("rate=0.1",)},
    "wgan on dcgan": {"objective": "wgan", "architecture": "dcgan", "critic_steps": 2, "kimg": 0.08},
}


@pytest.mark.parametrize("changes", RESUMED.values(), ids=RESUMED)
def test_stopped_and_resumed_equals_uninterrupted(folder, monkeypatch, changes):
    if changes.get("data") == "mnist":
        changes = changes | {"data": shared("data", "mnist")}
    config = pretrain_config(folder, **{"score_pictures": 0} | changes)
    assert_pretraining_resumes(config, folder, monkeypatch, steps=5)


def test_doubled_networks_compute_what_the_small_ones_did():
    """The generator shows its picture doubled; the critic judges smooth pictures (which halving does not change) alike."""
    small, large = (Generator(size, 8, 1, channel_base=128, max_channels=16).eval() for size in (16, 32))
    start_generator(large, small.state_dict())
    z = torch.randn(3, 8)
    for module in (small, large):
        for layer in (module.conv1, *module.convs):
            torch.nn.init.zeros_(layer.noise.weight)
    expected = large.to_rgbs[-1].upsample(small(z))
    assert relative_error(large(z), expected) < 1e-5

    small_critic, large_critic = (Discriminator(size, channel_base=256, max_channels=16) for size in (16, 32))
    for module in small_critic.modules():
        if isinstance(module, FusedLeakyReLU):
            torch.nn.init.normal_(module.bias)
    start_critic(large_critic, small_critic.state_dict())
    flat = torch.randn(4, 3, 1, 1)
    pictures = flat.expand(4, 3, 32, 32).clone()
    inside = large_critic.convs[1](large_critic.convs[0](pictures))[:, :, 2:-2, 2:-2]
    assert relative_error(inside, small_critic.convs[0](flat.expand(4, 3, 16, 16))[:, :, 2:-2, 2:-2]) < 1e-5
    assert (large_critic(pictures) - small_critic(flat.expand(4, 3, 16, 16))).abs().max() < 0.5


@pytest.mark.slow
def test_killed_at_random_moments_equals_uninterrupted(folder):
    changes = {"kimg": 0.32, "score_pictures": 0}
    run(pretrain_config(folder, out=folder / "whole", **changes))
    script = [sys.executable, str(Path(__file__).parent / "runs.py"), "pretrain", str(folder), "6", repr(changes)]
    result = subprocess.run(script, capture_output=True, text=True, timeout=1500)
    assert result.returncode == 0, result.stderr[-2000:]
    assert_identical(*(checkpoint.load(folder / name / "checkpoint.pt") for name in ("whole", "run")))


def test_start_from_continues_a_generator(folder):
    first = run(pretrain_config(folder, kimg=0.004, score_pictures=0))
    config = pretrain_config(folder, start_from=first, out=folder / "second", kimg=0.004, score_pictures=0)
    torch.testing.assert_close(load_generator(run(config)).input.input, load_generator(first).input.input, rtol=0, atol=0.02)
    grown = pretrain_config(folder, size=32, start_from=first.parent, out=folder / "grown", kimg=0.004, score_pictures=0)
    assert load_generator(run(grown)).size == 32
    with pytest.raises(UserError, match="size 16"):
        run(dataclasses.replace(grown, size=64, out=folder / "huge"))
    with pytest.raises(UserError, match="latent_dim 8"):
        run(dataclasses.replace(config, latent_dim=16, out=folder / "third"))


def test_digits_are_trained_from_their_idx_files(tmp_path):
    config = pretrain_config(tmp_path, data=shared("data", "mnist"), digit=(3, 7), size=32, kimg=0.008, score_pictures=0)
    assert load_generator(run(config)).size == 32


def test_a_loss_that_is_not_finite_stops_the_run(folder, monkeypatch):
    original = step_module.AdversarialStep.generator_step
    calls = iter(range(100))
    monkeypatch.setattr(
        step_module.AdversarialStep,
        "generator_step",
        lambda self, *arguments: {"generator": math.nan} if next(calls) == 4 else original(self, *arguments),
    )
    config = pretrain_config(folder, score_pictures=0)
    with pytest.raises(UserError, match="not finite at step 5"):
        run(config)
    assert checkpoint.load(config.out / "checkpoint.pt")["step"] == 4


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"size": 24}, "power of two"),
        ({"batch": 1}, "at least 2"),
        ({"data": Path("nowhere")}, "nowhere"),
        ({"digit": (3,)}, "32x32"),
        ({"objective_options": ("weight",)}, "NAME=NUMBER, got weight"),
        ({"objective": "hinge", "objective_options": ("clip=1",)}, "no option clip"),
        ({"objective": "wgan", "objective_options": ("critic_steps=0",)}, "whole number of at least 1, got 0"),
        ({"conditional": True}, "--conditional needs classes"),
        ({"objective": "acgan"}, "learns from the classes of pictures: give --digit"),
        ({"objective": "acgan", "digit": (3, 7), "objective_options": ("classes=3",)}, "has 3 classes, but --digit names 2"),
        ({"objective": "acgan", "digit": (3,)}, "give --digit with several classes"),
        ({"objective": "infogan", "digit": (3, 7), "conditional": True, "architecture": "dcgan"}, "leave out --conditional"),
        ({"objective": "infogan", "discriminator": "projected"}, "critic with 15 outputs; leave out --discriminator projected"),
        ({"objective": "infogan"}, "puts 12 codes into the latent"),
        ({"objective": "began", "discriminator": "projected"}, "needs an autoencoder"),
        ({"objective": "began", "r1": 1.0}, "is an autoencoder; leave out --r1"),
        ({"objective": "wgan-gp", "architecture": "dcgan", "critic_norm": "batch"}, "wgan-gp penalises .* batch normalisation"),
        ({"architecture": "dcgan", "r1": 1.0, "critic_norm": "batch"}, "R1 penalises"),
        ({"architecture": "dcgan", "path_length": 2.0}, "--path-length"),
        ({"architecture": "dcgan", "start_from": Path("elsewhere")}, "leave out --architecture dcgan"),
    ],
)
def test_mistakes_are_one_sentence(folder, changes, words):
    with pytest.raises(UserError, match=words):
        run(pretrain_config(folder, **changes))


def test_augmentation_keeps_shapes_and_does_nothing_at_zero():
    images = torch.rand(6, 3, 16, 16) * 2 - 1
    assert Augmentation(p=0.0)(images) is images
    augmented = Augmentation(p=0.8)(images.requires_grad_())
    assert augmented.shape == images.shape and torch.isfinite(augmented).all()
    assert torch.autograd.grad(augmented.sum(), images)[0].abs().sum() > 0
    half = Augmentation(p=0.3, target=None)(torch.ones(400, 3, 8, 8))
    untouched = (half == 1).flatten(1).all(1).float().mean()
    assert 0.1 < untouched < 0.5, "with p = 0.3 a fair share of pictures passes unchanged"


def test_adaptive_augmentation_follows_overconfidence():
    augmentation = Augmentation(p=0.5, target=0.6, speed=100)
    augmentation.adapt(torch.ones(10))
    assert augmentation.p == pytest.approx(0.6)
    augmentation.adapt(-torch.ones(10))
    assert augmentation.p == pytest.approx(0.5)


def test_projected_critic_trains_nothing_frozen():
    features = EfficientNetPerceptual((1, 2, 4, 6), min_size=64)
    critic = ProjectedDiscriminator(features.features, 64, width=8)
    images = torch.randn(2, 3, 64, 64, requires_grad=True)
    logits = critic(images)
    assert logits.shape == (8,)
    logits.sum().backward()
    assert images.grad.abs().sum() > 0
    trained = {name for name, p in critic.named_parameters() if p.grad is not None}
    assert trained and not any(name.startswith("mix") for name in trained)
    assert not any("stem" in name for name in critic.state_dict())


def test_latents_of_the_runs_own_seed_are_like_any_other(folder):
    """The weights are not drawn by the numbers that `torch.manual_seed(seed)` gives whoever samples."""
    config = pretrain_config(folder, latent_dim=64, kimg=0.004, snapshot_kimg=0.004, score_pictures=0, seed=3)
    generator = load_generator(run(config))
    spread = []
    for seed in (3, 4, 5):
        torch.manual_seed(seed)
        spread.append(generator.map(torch.randn(64, 64)).std().item())
    assert spread[0] == pytest.approx((spread[1] + spread[2]) / 2, rel=0.1)


def test_a_decoder_gives_a_generator_its_layers(folder, capsys):
    from gangealing_fast.autoencoders.autoencoder import EXPORT_NAME, AdversarialAutoencoder
    from gangealing_fast.autoencoders.networks import Decoder, Encoder
    from gangealing_fast.models import DcganGenerator
    from gangealing_fast.pretraining.decoders import start_from_decoder

    def exported(name: str, **options) -> Path:
        torch.manual_seed(1)
        made = AdversarialAutoencoder(Encoder(32, 1, 4, **options), Decoder(32, 1, 4, **options))
        (folder / name).mkdir()
        made.export(folder / name / EXPORT_NAME)
        return folder / name

    learned = exported("convolutional", architecture="convolutional", width=64)
    fitting = {"architecture": "dcgan", "size": 32, "max_channels": 64, "channel_base": 256}
    config = pretrain_config(folder, start_from=learned, kimg=0.004, score_pictures=0, **fitting)
    run(config)
    assert "3 of the generator's 4 layers begin as the decoder's" in capsys.readouterr().out
    decoder = AdversarialAutoencoder.load(learned).decoder
    generator = DcganGenerator(32, 4, max_channels=64, channel_base=256)
    start_from_decoder(learned, decoder, generator)
    drawn, source = generator.layers[-1], [m for m in decoder.modules() if isinstance(m, torch.nn.ConvTranspose2d)][-1]
    features = torch.randn(2, 16, 16, 16)
    expected = 2 * source(features).sigmoid() - 1
    torch.testing.assert_close(drawn(features).tanh(), expected.expand(-1, 3, -1, -1))
    dense = exported("dense", width=16)
    for path, changes, words in (
        (dense, fitting, "dense layers alone"),
        (learned, fitting | {"max_channels": 32}, "--size 32 --max-channels 64 --channel-base 256"),
        (learned, {"size": 32}, "no styles: give --architecture dcgan"),
    ):
        with pytest.raises(UserError, match=words):
            run(pretrain_config(folder, start_from=path, out=folder / "wrong", **changes))
