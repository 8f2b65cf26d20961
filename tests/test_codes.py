# SPDX-License-Identifier: Apache-2.0
"""Codes in latents; ACGAN and infoGAN against closed forms and brute force."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from gangealing_fast.adversarial.codes import Codes
from gangealing_fast.adversarial.objectives import Objective, Side, make
from gangealing_fast.adversarial.objectives import auxiliary as a
from gangealing_fast.adversarial.step import AdversarialStep
from gangealing_fast.models import DcganCritic, DcganGenerator, Generator
from gangealing_fast.pretraining.sampling import columns, picture_sampler, samples
from gangealing_fast.training.optim import AdamEma

double = torch.float64


def critic_output(n: int, outputs: int) -> torch.Tensor:
    return torch.randn(n, outputs, dtype=double)


def side(output: torch.Tensor, labels: torch.Tensor | None) -> Side:
    return Side(output, output, labels)


# ---- codes


def test_codes_are_drawn_from_their_distribution():
    codes = Codes(5, 2)
    drawn = codes.draw(20_000)
    assert drawn.shape == (20_000, 7) and codes.length == 7
    assert set(drawn[:, :5].unique().tolist()) == {0.0, 1.0} and (drawn[:, :5].sum(1) == 1).all()
    torch.testing.assert_close(drawn[:, :5].mean(0), torch.full((5,), 0.2), atol=0.02, rtol=0)
    assert drawn[:, 5:].min() < -0.99 and drawn[:, 5:].max() > 0.99 and drawn[:, 5:].mean().abs() < 0.02
    category, numbers = codes.split(drawn)
    assert torch.equal(codes.of(category, numbers), drawn)
    with pytest.raises(ValueError, match=r"codes must be \[N, 7\], got \[4, 6\]"):
        codes.split(torch.zeros(4, 6))


def test_codes_weigh_in_the_latent_like_its_other_entries():
    """StyleGAN2 divides z by its length: its squares must have the mean of a normal distribution's, 1."""
    codes, z = Codes(10, 2), torch.randn(20_000, 16)
    latents = codes.into(z, codes.draw(20_000))
    assert torch.equal(latents[:, 12:], z[:, 12:])
    torch.testing.assert_close(latents.square().mean(0), torch.ones(16), atol=0.1, rtol=0)


@pytest.mark.parametrize("kind", ["dcgan", "stylegan2"])
def test_samples_are_made_from_the_codes_they_are_given(kind):
    """The gradient of a picture flows into its own codes only, also where two styles are mixed, which carry the same codes."""
    codes = Codes(3, 1)
    if kind == "dcgan":
        generator = DcganGenerator(8, 6, channel_base=32).eval()
    else:
        generator = Generator(8, 6, 1, channel_base=32, max_channels=8)
    sample = picture_sampler(generator, 1.0, codes)
    given = codes.draw(4).requires_grad_()
    (gradient,) = torch.autograd.grad(sample(4, given)[1].square().sum(), given)
    assert gradient[1].abs().min() > 0 and gradient[[0, 2, 3]].abs().max() == 0
    torch.manual_seed(0)
    first = sample(2, codes.of(torch.tensor([0, 0]), torch.zeros(2, 1)))
    torch.manual_seed(0)
    second = sample(2, codes.of(torch.tensor([0, 1]), torch.zeros(2, 1)))
    torch.testing.assert_close(first[0], second[0], atol=1e-5, rtol=1e-4)
    assert (first[1] - second[1]).abs().max() > 1e-3


def test_a_table_of_samples_has_a_column_for_each_category():
    codes, generator = Codes(3, 1), DcganGenerator(8, 6, channel_base=32).eval()
    seen = []
    generator.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    assert samples(generator, codes).shape == (24, 3, 8, 8) and columns(codes) == 3 and columns(None) == 8
    table = seen[0].view(8, 3, 6)
    assert (table[:, :, :3].argmax(2) == torch.arange(3)).all()
    assert torch.equal(table[:, :1, 3:].expand(-1, 3, -1), table[:, :, 3:]) and (table[0, 0, 3:] != table[1, 0, 3:]).all()


# ---- ACGAN


def test_acgan_by_hand():
    objective, codes = make("acgan", classes=3, weight=0.7), Codes(3)
    real, fake = critic_output(4, 4), critic_output(2, 4)
    classes, made_from = torch.tensor([2, 0, -1, 1]), codes.of(torch.tensor([1, 1]), torch.zeros(2, 0))
    source = -(real[:, 0].sigmoid().log().mean() + (1 - fake[:, 0].sigmoid()).log().mean())
    of_real = -sum(real[i, 1:].softmax(0)[c].log() for i, c in ((0, 2), (1, 0), (3, 1))) / 3
    of_fake = -sum(fake[i, 1:].softmax(0)[1].log() for i in range(2)) / 2
    sides = side(real, classes), side(fake, made_from)
    torch.testing.assert_close(objective.critic(*sides, {}), source + 0.7 * (of_real + of_fake))
    torch.testing.assert_close(objective.generator(sides[1], {}), -fake[:, 0].sigmoid().log().mean() + 0.7 * of_fake)
    alone = make("acgan", classes=3, weight=0.7, generated=0)
    torch.testing.assert_close(alone.critic(*sides, {}), source + 0.7 * of_real)
    torch.testing.assert_close(alone.generator(sides[1], {}), objective.generator(sides[1], {}))
    assert objective.outputs == 4 and objective.classes == 3 and objective.codes == codes
    torch.testing.assert_close(objective.realness(real), real[:, 0])


def test_acgan_counts_what_is_classified_as_known_or_asked():
    objective, codes = make("acgan", classes=3), Codes(3)
    scores = torch.tensor([[5.0, 9, 0, 0], [5, 0, 9, 0], [5, 0, 0, 9], [5, 0, 0, 9]])
    fake = side(scores, codes.of(torch.tensor([0, 0, 0, 2]), scores[:, :0]))
    found = objective.statistics(side(scores, torch.tensor([0, 1, 0, -1])), fake, {})
    assert found == {"real_classified": pytest.approx(2 / 3), "fake_classified": 0.5}


def test_unknown_classes_do_not_count():
    scores = torch.randn(3, 4, requires_grad=True)
    loss = a.class_loss(scores, torch.full((3,), -1))
    assert loss == 0 and torch.autograd.grad(loss, scores)[0].abs().sum() == 0


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (None, "needs the class of each real sample"),
        (torch.zeros(4, 3), "needs the class of each real sample"),
        (torch.tensor([0, 1, 2, 3]), "classes from 0 to 2, got 0 to 3"),
        (torch.tensor([0, -2, 2, 1]), "classes from 0 to 2, got -2 to 2"),
    ],
)
def test_acgan_refuses_classes_that_do_not_fit(labels, words):
    fake = side(torch.zeros(4, 4), Codes(3).draw(4))
    with pytest.raises(ValueError, match=words):
        make("acgan", classes=3).critic(side(torch.zeros(4, 4), labels), fake, {})


def test_outputs_and_codes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"critic with 4 outputs for each sample, got \[4, 3\]"):
        make("acgan", classes=3).generator(side(torch.zeros(4, 3), Codes(3).draw(4)), {})
    with pytest.raises(ValueError, match="needs the codes"):
        make("infogan").generator(side(torch.zeros(4, 15), None), {})
    for name, options, words in (
        ("acgan", {"classes": 1}, "classes must be a whole number of at least 2, got 1"),
        ("infogan", {"categories": 2.5}, "categories must be a whole number of at least 2, got 2.5"),
        ("infogan", {"continuous": -1}, "continuous must be a whole number of at least 0, got -1"),
    ):
        with pytest.raises(ValueError, match=words):
            make(name, **options)


# ---- infoGAN


def test_gaussian_log_likelihood_against_torch():
    numbers, mean, log_deviation = torch.randn(3, 5, 2, dtype=double)
    expected = torch.distributions.Normal(mean, log_deviation.exp()).log_prob(numbers).sum(1)
    torch.testing.assert_close(a.gaussian_log_likelihood(numbers, mean, log_deviation), expected)


def test_infogan_by_hand():
    objective, codes = make("infogan", categories=3, continuous=2, weight=0.5, continuous_weight=0.2), Codes(3, 2)
    real, fake, made_from = critic_output(4, 8), critic_output(4, 8), codes.draw(4).to(double)
    category, numbers = codes.split(made_from)
    of_category = math.log(3) + sum(fake[i, 1:4].softmax(0)[category[i]].log() for i in range(4)) / 4
    deviation = (3 * torch.tanh(fake[:, 6:] / 3)).exp()
    of_numbers = torch.distributions.Normal(fake[:, 4:6], deviation).log_prob(numbers).sum(1).mean() + 2 * math.log(2)
    information = 0.5 * of_category + 0.2 * of_numbers
    source = -(real[:, 0].sigmoid().log().mean() + (1 - fake[:, 0].sigmoid()).log().mean())
    sides = side(real, None), side(fake, made_from)
    torch.testing.assert_close(objective.critic(*sides, {}), source - information)
    torch.testing.assert_close(objective.generator(sides[1], {}), -fake[:, 0].sigmoid().log().mean() - information)
    found = objective.statistics(*sides, {})
    assert found == {"information": pytest.approx(of_category.item()), "continuous_information": pytest.approx(of_numbers.item())}
    assert objective.outputs == 8 and objective.classes == 0


def test_the_bound_never_exceeds_the_information():
    """A channel of known mutual information: Q = its posterior attains it, any other Q stays below; and all stay below log K."""
    k, n = 4, 4000
    objective, codes = make("infogan", categories=k, continuous=0), Codes(k)
    channel = torch.softmax(2 * torch.randn(k, 6, dtype=double), 1)
    counts = (channel * n).round().long()
    category = torch.arange(k).repeat_interleave(counts.sum(1))
    seen = torch.cat([torch.arange(6).repeat_interleave(row) for row in counts])
    joint = counts.to(double) / counts.sum()
    marginals = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
    information = (joint * (joint / marginals).clamp(min=1e-300).log()).sum().item()
    prior = -(joint.sum(1) * joint.sum(1).log()).sum().item()
    posterior = (joint / joint.sum(0)).T.clamp(min=1e-300)

    def bound(q: torch.Tensor) -> float:
        output = torch.cat([q.new_zeros(len(seen), 1), q.log()[seen]], 1)
        fake = side(output, codes.of(category, torch.zeros(len(seen), 0, dtype=double)))
        return objective.statistics(fake, fake, {})["information"]

    best = bound(posterior)
    assert best == pytest.approx(information, abs=1e-3) and abs(prior - math.log(k)) < 1e-3
    for _ in range(20):
        assert bound(torch.softmax(posterior.log().clamp(min=-9) + torch.randn(6, k, dtype=double), 1)) < best < math.log(k)


# ---- one step


def coded_step(objective: Objective, critic: nn.Module, **options: float) -> tuple[AdversarialStep, list[torch.Tensor | None]]:
    generator = DcganGenerator(8, 16, channel_base=32)
    made_from: list[torch.Tensor | None] = []
    draw = picture_sampler(generator, 0.0, objective.codes)

    def sample(n: int, labels: torch.Tensor | None) -> torch.Tensor:
        made_from.append(labels)
        return draw(n, labels)

    optimisers = AdamEma(generator.parameters(), 1e-3), AdamEma(critic.parameters(), 1e-3)
    return AdversarialStep(generator, critic, *optimisers, objective, sample, **options), made_from


def test_the_sides_of_a_step_have_classes_and_codes():
    """Real ones keep their classes, generated ones have fresh codes in both halves of a step."""
    sides = []
    objective = replace(make("acgan", classes=3), statistics=lambda real, fake, state: sides.extend([real, fake]) or {})
    step, made_from = coded_step(objective, DcganCritic(8, channel_base=32, outputs=4))
    classes = torch.tensor([0, -1, 2, 1])
    step.critic_step(torch.randn(4, 3, 8, 8), classes)
    step.generator_step(4, 0.9, classes)
    real, fake = sides
    assert real.labels is classes and fake.labels is made_from[0]
    assert made_from[0].shape == made_from[1].shape == (4, 3)


def test_r1_penalises_the_logit_alone():
    """The critic is linear: the penalty is the squared length of the logit's weights, whatever the class scores' are."""
    critic = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 4))
    step, _ = coded_step(make("acgan", classes=3), critic, r1=1.0)
    weight = critic[1].weight.detach().clone()
    found = step.critic_step(torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 1]))
    assert found["r1"] == pytest.approx(weight[0].square().sum().item(), rel=1e-4)


def test_classes_of_unconditional_networks_make_no_samples():
    """Objectives that only learn from classes get none on the generated side."""
    step, made_from = coded_step(make("hinge"), DcganCritic(8, channel_base=32))
    step.critic_step(torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 1]))
    assert made_from == [None]
