# SPDX-License-Identifier: Apache-2.0
"""Networks of adversarial autoencoders and their critics, without any training run."""

from __future__ import annotations

import math

import pytest
import torch

from gangealing_fast.autoencoders.autoencoder import AdversarialAutoencoder
from gangealing_fast.autoencoders.game import Game, code_objective
from gangealing_fast.autoencoders.moves import moved
from gangealing_fast.autoencoders.networks import CodeCritic, Decoder, Encoder, heads_too_near


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
