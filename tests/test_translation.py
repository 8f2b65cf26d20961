# SPDX-License-Identifier: Apache-2.0
"""Translation between two domains: networks, losses, a step, and the digits that are made; on tiny networks."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import nn
from translators import networks, pictures

from gangealing_fast import ops
from gangealing_fast.adversarial.objectives import make
from gangealing_fast.data.pictures import to_float
from gangealing_fast.training.optim import AdamEma
from gangealing_fast.translation.config import TranslateTrainConfig
from gangealing_fast.translation.critics import MultiScaleCritic
from gangealing_fast.translation.domains import open_domains
from gangealing_fast.translation.losses import Weights, pass_through, reconstruction_losses
from gangealing_fast.translation.making import COLOURS, colour_of, draw_digits, edges
from gangealing_fast.translation.networks import StyleEncoder, Upsampling
from gangealing_fast.translation.step import TranslationStep

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
