# SPDX-License-Identifier: Apache-2.0
"""catGAN and the semi-supervised GAN against brute force, their limits, and each other's forms."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gangealing_fast.adversarial import objectives
from gangealing_fast.adversarial.objectives import Side, make
from gangealing_fast.adversarial.objectives import classes as c
from gangealing_fast.adversarial.step import AdversarialStep
from gangealing_fast.models import DcganCritic
from gangealing_fast.models.dcgan import Described
from gangealing_fast.training.optim import AdamEma

double = torch.float64


def side(logits, labels=None) -> Side:
    return Side(logits, logits, labels)


def entropy(probabilities) -> float:
    return -sum(p * math.log(p) for p in probabilities if p > 0)


def test_entropies_by_brute_force():
    logits = torch.randn(7, 4, dtype=double) * 3
    p = [[math.exp(v) / sum(math.exp(u) for u in row) for v in row] for row in logits.tolist()]
    expected = [entropy(row) for row in p]
    torch.testing.assert_close(c.conditional_entropy(logits), torch.tensor(expected, dtype=double))
    mean = [sum(row[k] for row in p) / 7 for k in range(4)]
    torch.testing.assert_close(c.marginal_entropy(logits).item(), entropy(mean))
    assert c.marginal_entropy(logits) > c.conditional_entropy(logits).mean(), "mutual information is positive"


def test_entropies_of_sure_and_unsure_critics():
    unsure, sure = torch.zeros(5, 3, dtype=double), 1e3 * torch.eye(3, dtype=double)
    torch.testing.assert_close(c.conditional_entropy(unsure), torch.full((5,), math.log(3), dtype=double))
    torch.testing.assert_close(c.marginal_entropy(unsure).item(), math.log(3))
    assert c.conditional_entropy(sure).abs().max() == 0
    torch.testing.assert_close(c.marginal_entropy(sure).item(), math.log(3))
    assert c.marginal_entropy(sure[:1].expand(6, 3)) == 0


@pytest.mark.parametrize("name", ["catgan", "semi-supervised"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_logits_stay_finite(name, dtype):
    objective = make(name, classes=3)
    real, fake = (torch.tensor([[1e4, -1e4, 0, 1e4], [-1e4, -1e4, -1e4, 1e4]], dtype=dtype)[:, : objective.outputs] for _ in "12")
    real.requires_grad_(), fake.requires_grad_()
    labels = torch.tensor([1, -1])
    loss = objective.critic(side(real, labels), side(fake), {}) + objective.generator(side(fake), {})
    assert loss.dtype == torch.float32 and loss.isfinite()
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(loss, (real, fake)))
    assert all(math.isfinite(value) for value in objective.statistics(side(real, labels), side(fake), {}).values())


def test_catgan_by_hand():
    real, fake = torch.randn(6, 3, dtype=double), torch.randn(5, 3, dtype=double)
    p, q = real.softmax(1), fake.softmax(1)
    labels = torch.tensor([2, -1, 0, -1, -1, 1])
    entropies = [entropy(row) for row in p.tolist()], [entropy(row) for row in q.tolist()]
    known = -sum(math.log(p[i, k]) for i, k in ((0, 2), (2, 0), (5, 1))) / 3
    expected = -entropy(p.mean(0).tolist()) + sum(entropies[0]) / 6 - sum(entropies[1]) / 5
    objective = make("catgan", classes=3, labelled=0.7)
    torch.testing.assert_close(objective.critic(side(real), side(fake), {}).item(), expected)
    torch.testing.assert_close(objective.critic(side(real, labels), side(fake), {}).item(), expected + 0.7 * known)
    expected = -entropy(q.mean(0).tolist()) + sum(entropies[1]) / 5
    torch.testing.assert_close(objective.generator(side(fake), {}).item(), expected)


def test_catgan_pushes_the_right_way():
    """The critic becomes surer of real samples and less sure of generated ones; the generator is drawn to what it is sure about."""
    objective = make("catgan", classes=3)
    real, fake = (torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=double, requires_grad=True) for _ in "12")
    on_real, on_fake = torch.autograd.grad(objective.critic(side(real), side(fake), {}), (real, fake))
    (made,) = torch.autograd.grad(objective.generator(side(fake), {}), fake)
    assert (on_real.diagonal() < 0).all() and (on_fake.diagonal() > 0).all() and (made.diagonal() < 0).all()
    uneven = torch.tensor([[3.0, 0], [3, 0], [3, 0], [2, 0]], dtype=double, requires_grad=True)
    (gradient,) = torch.autograd.grad(-c.marginal_entropy(uneven), uneven)
    assert (gradient[:, 0] > 0).all(), "a class that has most samples loses some"


def test_the_marginal_entropy_couples_a_batch():
    """Two sure samples of one class and of two differ in nothing but the mean: log 2 of a batch, not an average of samples."""
    same, other = torch.tensor([[50.0, 0], [50, 0]], dtype=double), torch.tensor([[50.0, 0], [0, 50]], dtype=double)
    torch.testing.assert_close((c.marginal_entropy(other) - c.marginal_entropy(same)).item(), math.log(2))
    objective = make("catgan", classes=2)
    fake = side(torch.zeros(2, 2, dtype=double))
    gain = objective.critic(side(same), fake, {}) - objective.critic(side(other), fake, {})
    torch.testing.assert_close(gain.item(), math.log(2))
    # So batch normalisation in the critic is no contradiction, but R1, a penalty at single samples, still refuses it.
    mixing = DcganCritic(16, channel_base=64, outputs=2)
    objectives.refuse_mixing(objective, mixing)
    with pytest.raises(ValueError, match="R1 penalises"):
        objectives.refuse_mixing(objective, mixing, penalised=True)


@pytest.mark.parametrize("name", ["catgan", "semi-supervised"])
def test_names_of_classes_do_not_matter(name):
    objective, order = make(name, classes=4), torch.tensor([2, 0, 3, 1])
    real, fake = torch.randn(2, 6, objective.outputs, dtype=double)
    labels = torch.tensor([0, -1, 3, 2, -1, 1])
    columns = torch.cat([order, torch.arange(4, objective.outputs)])
    renamed = torch.where(labels < 0, -1, order.argsort()[labels])
    expected = objective.critic(side(real, labels), side(fake), {})
    torch.testing.assert_close(objective.critic(side(real[:, columns], renamed), side(fake[:, columns]), {}), expected)
    torch.testing.assert_close(objective.generator(side(fake[:, columns]), {}), objective.generator(side(fake), {}))


def test_semi_supervised_by_hand():
    """Cross entropies over K + 1 classes: a sample without a label is of any of the K, a generated one of the last."""
    real, fake = torch.randn(4, 4, dtype=double), torch.randn(3, 4, dtype=double)
    p, q = real.softmax(1), fake.softmax(1)
    objective = make("semi-supervised", classes=3)
    game = -(1 - p[:, 3]).log().mean() - q[:, 3].log().mean()
    torch.testing.assert_close(objective.critic(side(real), side(fake), {}), game)
    torch.testing.assert_close(objective.generator(side(fake), {}), -(1 - q[:, 3]).log().mean())
    torch.testing.assert_close(objective.realness(real), (1 - p[:, 3]).log() - p[:, 3].log())
    # With every sample labelled, Odena's loss over K + 1 classes is the sum of our two terms.
    labels = torch.tensor([2, 0, 1, 1])
    odena = F.cross_entropy(real, labels) - q[:, 3].log().mean()
    torch.testing.assert_close(objective.critic(side(real, labels), side(fake), {}), odena)


def test_k_logits_are_k_plus_1_with_a_zero():
    """Salimans et al. 2016, section 5: D(x) = Z / (Z + 1), Z the sum of exp(logits); adding a constant to all changes nothing."""
    real, fake, labels = torch.randn(5, 3, dtype=double), torch.randn(5, 3, dtype=double), torch.tensor([0, 1, -1, -1, 2])
    objective = make("semi-supervised", classes=3)
    short = objective.critic(side(real, labels), side(fake), {})
    shift = torch.randn(2, 5, 1, dtype=double)
    long = [torch.cat([logits, logits.new_zeros(5, 1)], 1) + s for logits, s in zip((real, fake), shift, strict=True)]
    torch.testing.assert_close(objective.critic(side(long[0], labels), side(long[1]), {}), short)
    z = fake.exp().sum(1)
    torch.testing.assert_close(objective.generator(side(fake), {}), -(z / (z + 1)).log().mean())


@pytest.mark.parametrize("name", ["catgan", "semi-supervised"])
def test_unknown_labels_are_left_out(name):
    objective = make(name, classes=3)
    real, fake = torch.randn(2, 4, objective.outputs, dtype=double)
    none = objective.critic(side(real), side(fake), {})
    torch.testing.assert_close(objective.critic(side(real, torch.full((4,), -1)), side(fake), {}), none)
    one = objective.critic(side(real, torch.tensor([-1, -1, 2, -1])), side(fake), {})
    torch.testing.assert_close(one - none, -real[2, :3].log_softmax(0)[2])
    assert "labelled_accuracy" not in objective.statistics(side(real), side(fake), {})
    labels = torch.stack([real[0, :3].argmax(), real[1, :3].argmin(), torch.tensor(-1), torch.tensor(-1)])
    assert objective.statistics(side(real, labels), side(fake), {})["labelled_accuracy"] == 0.5


@pytest.mark.parametrize("name", ["catgan", "semi-supervised"])
def test_what_makes_no_sense_is_refused(name):
    objective = make(name, classes=3)
    logits = torch.zeros(2, objective.outputs)
    for labels, words in (
        (torch.tensor([0, 3]), "label 3 is none of the 3 classes 0 to 2"),
        (torch.tensor([-2, 0]), "label -2"),
        (torch.tensor([0]), "one class for each of the 2 samples"),
        (torch.zeros(2), "float32"),
    ):
        with pytest.raises(ValueError, match=words):
            objective.critic(side(logits, labels), side(logits), {})
    with pytest.raises(ValueError, match=r"returns logits \[N, "):
        objective.generator(side(torch.zeros(2, 7)), {})
    with pytest.raises(TypeError, match="one tensor of class logits"):
        objective.generator(side([logits, logits]), {})
    with pytest.raises(ValueError, match="whole number of at least 2, got 1.5"):
        make(name, classes=1.5)


def test_feature_matching_by_hand():
    real, fake = (Described(torch.randn(n, 4, dtype=double), torch.randn(n, 6, dtype=double)) for n in (5, 3))
    objective = make("semi-supervised", classes=3, matching=2)
    difference = [sum(real.features[:, k].tolist()) / 5 - sum(fake.features[:, k].tolist()) / 3 for k in range(6)]
    found = objective.match(Side(real.numbers, real), Side(fake.numbers, fake), {})
    torch.testing.assert_close(found.item(), 2 * sum(d * d for d in difference) / 6)
    assert objective.generator(Side(fake.numbers, fake), {}) == 0 and make("semi-supervised").match is None
    plain = make("semi-supervised", classes=3).critic(side(real.numbers), side(fake.numbers), {})
    torch.testing.assert_close(objective.critic(Side(real.numbers, real), Side(fake.numbers, fake), {}), plain)
    with pytest.raises(TypeError, match="returns its features"):
        objective.match(side(real.numbers), side(fake.numbers), {})


def test_the_step_matches_features_of_the_critic_as_it_is_now():
    """Only the generator moves by it, towards the real batch's features under the updated critic."""
    torch.manual_seed(0)
    critic = DcganCritic(8, channel_base=32, outputs=4, norm="none", features=True)
    generator = nn.Sequential(nn.Linear(4, 3 * 64), nn.Unflatten(1, (3, 8, 8)), nn.Tanh())
    optimisers = (AdamEma(network.parameters(), 1e-2) for network in (generator, critic))
    objective = make("semi-supervised", classes=3, matching=1)
    z, real = torch.randn(6, 4), torch.randn(6, 3, 8, 8)
    step = AdversarialStep(generator, critic, *optimisers, objective, lambda n, labels: generator(z))
    step.critic_step(real, torch.tensor([0, 1, 2, -1, -1, -1]))
    before = [p.clone() for p in critic.parameters()]
    expected = (critic(real).features.mean(0) - critic(generator(z)).features.mean(0)).square().mean()
    values = [step.generator_step(6, 0.0)["generator"] for _ in range(15)]
    torch.testing.assert_close(values[0], expected.item())
    assert values[-1] < 0.5 * values[0]
    assert all(torch.equal(p, q) for p, q in zip(before, critic.parameters(), strict=True))


def test_the_critic_sees_noise_and_its_average_forgets_the_beginning():
    generator, critic = nn.Linear(4, 3), nn.Linear(3, 2)
    average = copy.deepcopy(critic)
    optimisers = AdamEma(generator.parameters(), 0.0), AdamEma(critic.parameters(), 0.1, averages=average.parameters())
    seen = []
    critic.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    objective = make("catgan", classes=2)
    step = AdversarialStep(
        generator, critic, *optimisers, objective, lambda n, labels: torch.zeros(n, 3), noise=0.5, critic_decay=0.998
    )
    start = [p.clone() for p in critic.parameters()]
    step.critic_step(torch.zeros(400, 3))
    assert len(seen) == 2 and all(abs(points.std() - 0.5) < 0.05 for points in seen) and not torch.equal(*seen)
    for first, kept, now in zip(start, average.parameters(), critic.parameters(), strict=True):
        torch.testing.assert_close(kept, 0.1 * first + 0.9 * now)
    step.critic_count = 100_000
    before = [p.clone() for p in average.parameters()]
    step.critic_step(torch.zeros(400, 3))
    for old, kept, now in zip(before, average.parameters(), critic.parameters(), strict=True):
        torch.testing.assert_close(kept, 0.998 * old + 0.002 * now)
