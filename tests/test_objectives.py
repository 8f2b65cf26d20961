# SPDX-License-Identifier: Apache-2.0
"""Objectives and penalties against brute force, closed forms, and the mistakes that such losses are known for."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from torch import nn

from gangealing_fast.adversarial import objectives
from gangealing_fast.adversarial.objectives import OBJECTIVES, Reconstruction, Side, make
from gangealing_fast.adversarial.objectives import classic as c
from gangealing_fast.adversarial.objectives import energy as e
from gangealing_fast.adversarial.objectives import least_squares as ls
from gangealing_fast.adversarial.objectives import wasserstein as w
from gangealing_fast.adversarial.objectives.penalties import (
    gradient_norms,
    gradient_penalty,
    lines_between,
    near,
    path_length_penalty,
    path_lengths,
    r1_penalty,
)
from gangealing_fast.metrics.divergences import jensen_shannon, pearson_chi2, total_variation, wasserstein_1d
from gangealing_fast.models import Autoencoder, DcganCritic, DcganGenerator, Discriminator, Generator
from gangealing_fast.models.layers import EqualConv2d
from gangealing_fast.pretraining.config import ObjectiveName

double = torch.float64


def critic_of_pictures() -> nn.Module:
    """Smooth, nonlinear, and different in every pixel."""
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 2 * 3, 1), nn.Flatten(0)).to(double)


def test_the_options_name_every_objective():
    assert get_args(ObjectiveName) == tuple(OBJECTIVES)
    assert all(make(name).name == name and make(name).source for name in OBJECTIVES)
    with pytest.raises(ValueError, match="there is no objective gan; there are minimax"):
        make("gan")
    with pytest.raises(ValueError, match="has no option clip; it has weight, critic_steps"):
        make("wgan-gp", clip=0.1)


# ---- losses


def test_losses_by_hand():
    real, fake = torch.tensor([0.3, -1.2, 4.0], dtype=double), torch.tensor([-0.5, 2.0, 0.1], dtype=double)
    p, q = torch.sigmoid(real), torch.sigmoid(fake)
    expected = {
        "minimax": (-(p.log().mean() + (1 - q).log().mean()), (1 - q).log().mean()),
        "nonsaturating": (-(p.log().mean() + (1 - q).log().mean()), -q.log().mean()),
        "hinge": ((1 - real).clamp(min=0).mean() + (1 + fake).clamp(min=0).mean(), -fake.mean()),
        "lsgan": (((real - 1) ** 2).mean() / 2 + ((fake + 1) ** 2).mean() / 2, (fake**2).mean() / 2),
        "lsgan-01": (((real - 1) ** 2).mean() / 2 + (fake**2).mean() / 2, ((fake - 1) ** 2).mean() / 2),
        "wgan": (fake.mean() - real.mean(), -fake.mean()),
        "wgan-gp": (fake.mean() - real.mean(), -fake.mean()),
        "dragan": (-(p.log().mean() + (1 - q).log().mean()), -q.log().mean()),
    }
    names = {name for name in OBJECTIVES if make(name).output in ("logit", "score") and make(name).outputs == 1}
    assert expected.keys() == names
    for name, (critic, generator) in expected.items():
        objective = make(name)
        torch.testing.assert_close(objective.critic(Side(real, real), Side(fake, fake), {}), critic)
        torch.testing.assert_close(objective.generator(Side(fake, fake), {}), generator)


def test_losses_are_finite_where_the_critic_is_certain():
    for name in ("minimax", "nonsaturating", "dragan"):
        logits = torch.tensor([1e4, -1e4])
        assert make(name).critic(Side(logits, logits), Side(logits, logits), {}).isfinite()


def test_several_scales_weigh_alike():
    """A coarse scale with one patch counts as much as a fine one with sixteen."""
    fine, coarse = torch.randn(2, 1, 4, 4), torch.randn(2, 1, 1, 1)
    both = c.nonsaturating_generator([fine, coarse])
    torch.testing.assert_close(both, (c.nonsaturating_generator(fine) + c.nonsaturating_generator(coarse)) / 2)
    norms = gradient_norms(lambda x: [x.sum(1), 3 * x[:, :1]], torch.randn(5, 4))
    torch.testing.assert_close(norms, torch.tensor([2.0, 3.0])[:, None].expand(2, 5))


def test_generators_of_a_far_fake():
    """A fake that the critic takes for real, far from the data: the sigmoid's gradient has gone, the least squares' has not.

    And one that the critic is sure about: minimax has no gradient left, the non-saturating one has.
    """
    far = torch.tensor([20.0], dtype=double, requires_grad=True)
    (sigmoid,) = torch.autograd.grad(c.nonsaturating_generator(far), far)
    (squares,) = torch.autograd.grad(ls.least_squares_generator(far, 0.0), far)
    assert abs(sigmoid) < 1e-8 and abs(squares) == 20
    caught = torch.tensor([-20.0], dtype=double, requires_grad=True)
    (saturating,) = torch.autograd.grad(c.minimax_generator(caught), caught)
    (other,) = torch.autograd.grad(c.nonsaturating_generator(caught), caught)
    assert abs(saturating) < 1e-8 and abs(other + 1) < 1e-8


def test_least_squares_is_pearsons_divergence():
    """2 C(G) = chi²((p + q) ‖ 2 q) at the best critic of (a, b, c) = (-1, 1, 0) (arXiv 1611.04076, eq. 5-8), to 1e-12."""
    counts = torch.randint(1, 30, (2, 12))
    atoms = [torch.arange(12).repeat_interleave(n) for n in counts]
    p, q = (n.to(double) / n.sum() for n in counts)
    best = ((p - q) / (p + q)).requires_grad_()
    objective = make("lsgan")
    real, fake = (Side(a.to(double), best[a]) for a in atoms)
    (slope,) = torch.autograd.grad(objective.critic(real, fake, {}), best)
    assert slope.abs().max() < 1e-15, "the best critic of eq. 5 is a minimum of our critic's loss"
    value = objective.generator(real, {}) + objective.generator(fake, {})
    assert abs(2 * value.item() - pearson_chi2(p + q, 2 * q).item()) < 1e-12
    assert abs(2 * value.item() - ((2 * q - (p + q)) ** 2 / (p + q)).sum().item()) < 1e-12


# ---- divergences of parallel lines


@pytest.mark.parametrize("theta", [-1.5, 0.25, 3.0])
def test_parallel_lines(theta):
    """Example 1 of arXiv 1701.07875: P_0 on x = 0, P_theta on x = theta: JS = log 2, TV = 1, W = |theta|, whatever theta is."""
    y = torch.rand(64, dtype=double)
    x, z = torch.zeros(64, dtype=double), torch.full((64,), theta, dtype=double)
    edges = torch.linspace(-4, 4, 801, dtype=double)
    p, q = (torch.histogram(points, edges).hist / 64 for points in (x, z))
    assert abs(jensen_shannon(p, q).item() - math.log(2)) < 1e-12
    assert abs(total_variation(p, q).item() - 1) < 1e-12
    assert abs(wasserstein_1d(x, z).item() - abs(theta)) < 1e-12
    assert jensen_shannon(p, p) == total_variation(q, q) == wasserstein_1d(y, y.flip(0)) == 0
    real, fake = torch.stack([x, y], 1), torch.stack([z, y], 1)
    # The 1-Lipschitz critic f(x, y) = -sign(theta) x attains it in our loss; JS has no gradient in theta.
    f = [-math.copysign(1, theta) * points[:, 0] for points in (real, fake)]
    assert abs(w.wasserstein_estimate(*f).item() - abs(theta)) < 1e-12


# ---- penalties


def test_gradient_norm_is_over_all_axes_of_one_sample():
    """Not per pixel, per row or channel, and not over the batch: each sample's gradient from a batch of its own."""
    critic, points = critic_of_pictures(), torch.randn(5, 3, 4, 5, dtype=double)
    expected = []
    for point in points:
        single = point[None].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(critic(single).sum(), single)
        expected.append(math.sqrt(sum(value**2 for value in gradient.flatten().tolist())))
    expected = torch.tensor(expected, dtype=double)
    torch.testing.assert_close(gradient_norms(critic, points)[0], expected)
    penalty = gradient_penalty(critic, points)
    torch.testing.assert_close(penalty, sum((norm - 1) ** 2 for norm in expected) / 5)
    batch_wide = (expected.square().sum().sqrt() - 1) ** 2
    assert abs(penalty - batch_wide) > 0.1 * penalty, "the case must tell the two apart"


def test_gradient_penalty_is_two_sided_and_trains_the_critic():
    """A linear critic w x: penalty (|w| - 1)², derivative 2 (|w| - 1) w / |w|, below and above 1; and no NaN at 0."""
    for length in (0.3, 2.5, 0.0):
        weight = nn.functional.normalize(torch.randn(6, dtype=double), dim=0).mul(length).requires_grad_()
        penalty = gradient_penalty(lambda x, weight=weight: x.flatten(1) @ weight, torch.randn(4, 2, 3, dtype=double))
        torch.testing.assert_close(penalty.item(), (length - 1) ** 2)
        (slope,) = torch.autograd.grad(penalty, weight)
        torch.testing.assert_close(slope, 2 * (1 - 1 / length) * weight.detach() if length else torch.zeros_like(slope))


def test_lines_have_one_position_for_a_whole_sample():
    real, fake = torch.zeros(64, 3, 4, 4), torch.arange(1.0, 65)[:, None, None, None].expand(64, 3, 4, 4)
    points = lines_between(real, fake)
    position = (points / fake).flatten(1)
    torch.testing.assert_close(position, position[:, :1].expand_as(position))
    assert 0 <= position.min() and position.max() <= 1 and position[:, 0].std() > 0.2 and abs(position[:, 0].mean() - 0.5) < 0.15
    with pytest.raises(ValueError, match="of one shape"):
        lines_between(real, fake[:32])


def test_noise_near_the_data_is_drawn_for_every_element():
    points = near(torch.full((400, 3, 5), 7.0), 0.1) - 7
    assert abs(points.std() - 0.1) < 0.01 and points.mean().abs() < 0.01
    assert points.flatten(1).std(1).min() > 0.03 and points[:, 0, 0].std() > 0.08


def test_dragan_looks_near_the_data_only_and_wgan_gp_between():
    seen = []

    def critic(x):
        seen.append(x.detach())
        return x.sum(1)

    sides = [Side(torch.full((50, 2), value), torch.zeros(50)) for value in (0.0, 10.0)]
    make("dragan", weight=3, deviation=0.1).regulariser(critic, *sides)
    make("wgan-gp").regulariser(critic, *sides)
    assert seen[0].abs().max() < 0.6 and seen[1].max() > 8 and seen[1].min() > 0
    penalty = make("dragan", weight=3).regulariser(critic, *sides).item()
    assert penalty == pytest.approx(3 * (2**0.5 - 1) ** 2)


def test_batch_normalisation_is_refused_where_samples_are_judged_alone():
    mixing, alone = DcganCritic(16, channel_base=64), DcganCritic(16, channel_base=64, norm="layer")
    for name in ("wgan-gp", "dragan"):
        with pytest.raises(ValueError, match=f"{name} penalises.*batch normalisation"):
            objectives.refuse_mixing(make(name), mixing)
        objectives.refuse_mixing(make(name), alone)
    objectives.refuse_mixing(make("wgan"), mixing)
    with pytest.raises(ValueError, match="R1 penalises"):
        objectives.refuse_mixing(make("hinge"), mixing, penalised=True)


@pytest.mark.parametrize("kind", ["dcgan", "stylegan2"])
def test_critics_for_penalties_judge_each_sample_alone(kind):
    images = torch.randn(4, 3, 16, 16)
    build = {
        "dcgan": lambda alone: DcganCritic(16, channel_base=64, norm="layer" if alone else "batch"),
        "stylegan2": lambda alone: Discriminator(16, channel_base=64, max_channels=8, group=1 if alone else 4),
    }[kind]
    critic = build(True)
    torch.testing.assert_close(critic(images)[:2], critic(images[:2]))
    mixing = build(False)
    assert (mixing(images)[:2] - mixing(images[:2])).abs().max() > 1e-4, "the other kind must tell"


@pytest.mark.parametrize("kind", ["dcgan", "stylegan2"])
def test_penalty_goes_through_our_operators_twice(kind):
    """Its gradient by the critic's weights against finite differences."""
    critic = {
        "dcgan": lambda: DcganCritic(16, channel_base=64, norm="layer"),
        "stylegan2": lambda: Discriminator(16, channel_base=64, max_channels=8, group=1),
    }[kind]().to(double)
    points = torch.randn(3, 3, 16, 16, dtype=double)
    if kind == "dcgan":
        weight, judge = critic.layers[2].weight, lambda x: critic.head(critic.layers(x)).flatten()
    else:
        weight, judge = critic.convs[1].conv2[1].weight, critic
    (gradient,) = torch.autograd.grad(gradient_penalty(judge, points), weight)
    direction, step, values = torch.randn_like(weight), 1e-7, []
    for sign in (1, -1):
        with torch.no_grad():
            weight += sign * step * direction
        values.append(gradient_penalty(judge, points).item())
        with torch.no_grad():
            weight -= sign * step * direction
    torch.testing.assert_close((values[0] - values[1]) / (2 * step), (gradient * direction).sum().item(), rtol=1e-4, atol=1e-9)


def test_clipping_bounds_every_weight():
    """Equalised layers store weights 50 times larger than the paper's: clipping them alike would leave nothing of them."""
    critic = nn.Sequential(nn.Linear(4, 4), EqualConv2d(3, 5, 3))
    w.clip_weights(critic, 0.01)
    assert max(p.abs().max() for p in critic[0].parameters()) <= 0.01
    assert critic[1].weight.abs().max() == 0.5 and critic[1].bias.abs().max() <= 0.01


def test_wgan_warms_its_critic_up():
    schedule = make("wgan").critic_steps
    assert [schedule(step) for step in (0, 24, 25, 1000)] == [100, 100, 5, 5]


def test_r1_is_the_squared_gradient_norm():
    """A linear critic w x has the penalty ||w||² at every picture; its derivative by w is 2 w."""
    w = torch.randn(12, dtype=torch.float64, requires_grad=True)
    images = torch.randn(5, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    penalty = r1_penalty(images.flatten(1) @ w, images)
    torch.testing.assert_close(penalty, w.square().sum())
    torch.testing.assert_close(torch.autograd.grad(penalty, w)[0], 2 * w)


def test_r1_goes_through_the_whole_critic():
    """Its gradient by the critic's weights against finite differences: the second derivatives of our operators."""
    torch.manual_seed(0)
    critic = Discriminator(8, channel_base=32, max_channels=8).double()
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64, requires_grad=True)

    class Wide(torch.nn.Module):
        def forward(self, x):
            return critic.final_linear(critic.final_conv(torch.cat([critic.convs(x), x.new_ones(2, 1, 4, 4)], 1)).flatten(1))

    weight = critic.convs[1].conv2[1].weight
    penalty = r1_penalty(Wide()(images), images)
    gradient = torch.autograd.grad(penalty, weight)[0]
    direction, eps = torch.randn_like(weight), 1e-5
    with torch.no_grad():
        weight += eps * direction
    up = r1_penalty(Wide()(images), images)
    with torch.no_grad():
        weight -= 2 * eps * direction
    down = r1_penalty(Wide()(images), images)
    torch.testing.assert_close((up - down) / (2 * eps), (gradient * direction).sum(), rtol=1e-4, atol=1e-8)


def test_path_length_against_the_whole_jacobian():
    """Mean over y of |J^T y|² is the squared Frobenius norm of J over H W; and its penalty reaches the weights."""
    generator = Generator(8, 4, 1, channel_base=32, max_channels=4)
    w = generator.map(torch.randn(1, 4)).detach()
    jacobian = torch.autograd.functional.jacobian(lambda v: generator.synthesize(v, "fixed").flatten(), w)
    latents = w.expand(4000, -1).clone().requires_grad_()
    lengths = path_lengths(generator.synthesize(latents, "fixed"), latents)
    assert lengths.shape == (4000,)
    expected = jacobian.square().sum().item() / 64
    assert abs(lengths.square().mean().item() / expected - 1) < 0.1
    penalty, mean = path_length_penalty(lengths, torch.zeros(()))
    torch.testing.assert_close(mean, 0.01 * lengths.mean().detach())
    torch.testing.assert_close(penalty, (lengths - mean).square().mean())
    gradient = torch.autograd.grad(penalty, generator.convs[0].conv.weight)[0]
    assert gradient.isfinite().all() and gradient.abs().sum() > 0
    layered = w[:, None].expand(3, generator.n_latent, -1).clone().requires_grad_()
    assert path_lengths(generator.synthesize(layered), layered).shape == (3,)


# ---- autoencoders


def reconstruction(n: int = 4) -> Side:
    samples = torch.randn(n, 3, 2, 2, dtype=double)
    return Side(samples, Reconstruction(samples + torch.randn_like(samples), torch.randn(n, 6, dtype=double)))


def test_pulling_away_by_brute_force():
    code = torch.randn(5, 7, dtype=double)
    total = 0.0
    for i in range(5):
        for j in range(5):
            if i != j:
                total += float(code[i] @ code[j] / (code[i].norm() * code[j].norm())) ** 2
    torch.testing.assert_close(e.pulling_away(code).item(), total / (5 * 4))
    assert e.pulling_away(torch.eye(4)) == 0
    torch.testing.assert_close(e.pulling_away(torch.ones(4, 3)), torch.tensor(1.0))
    assert e.pulling_away(torch.ones(1, 3)) == 0


def test_ebgan_by_hand():
    real, fake = reconstruction(), reconstruction()
    energies = [[float((s.samples[i] - s.output.samples[i]).square().sum()) / 12 for i in range(4)] for s in (real, fake)]
    objective = make("ebgan", margin=1.1, pulling=0.2)
    hinge = sum(max(0.0, 1.1 - value) for value in energies[1]) / 4
    torch.testing.assert_close(objective.critic(real, fake, {}).item(), sum(energies[0]) / 4 + hinge)
    expected = sum(energies[1]) / 4 + 0.2 * float(e.pulling_away(fake.output.code))
    torch.testing.assert_close(objective.generator(fake, {}).item(), expected)
    with pytest.raises(TypeError, match="needs an autoencoder"):
        objective.generator(Side(torch.zeros(3), torch.zeros(3)), {})
    with pytest.raises(TypeError, match="not an autoencoder"):
        make("hinge").generator(fake, {})


def test_began_keeps_its_balance_within_bounds():
    real, fake = reconstruction(), reconstruction()
    good, bad = (float((s.samples - s.output.samples).abs().mean()) for s in (real, fake))
    objective = make("began", gamma=0.5, rate=0.001)
    assert objective.state == {"k": 0.0}
    torch.testing.assert_close(objective.critic(real, fake, {"k": 0.3}).item(), good - 0.3 * bad)
    torch.testing.assert_close(objective.generator(fake, {"k": 0.3}).item(), bad)
    moved = objective.update({"k": 0.3}, real, fake)["k"]
    torch.testing.assert_close(moved, 0.3 + 0.001 * (0.5 * good - bad))
    found = objective.statistics(real, fake, {"k": 0.3})
    torch.testing.assert_close(found["convergence"], good + abs(0.5 * good - bad))
    torch.testing.assert_close(found["fake_energy"], bad)
    wild = make("began", rate=1e6)
    perfect = Side(real.samples, Reconstruction(real.samples, real.output.code))
    assert wild.update({"k": 0.5}, perfect, fake) == {"k": 0.0}
    assert wild.update({"k": 0.5}, real, perfect) == {"k": 1.0}


# ---- networks


def test_autoencoders_reconstruct_any_pixel_and_may_be_normalised():
    """A tanh at the end would have no slope where a pixel is far on the wrong side."""
    images = torch.randn(4, 3, 16, 16)
    for norm, mixing in (("none", False), ("batch", True)):
        network = Autoencoder(16, channel_base=64, norm=norm)
        nn.init.constant_(network.decoder[-1].bias, -7.0)
        found = network(images)
        assert found.samples.shape == images.shape and found.code.shape == (4, 64) and found.samples.min() < -1
        assert (not torch.allclose(found.code[:2], network(images[:2]).code, atol=1e-3)) == mixing
    generator = DcganGenerator(8, 4, channel_base=32)
    nn.init.constant_(generator.layers[-1].bias, -7.0)
    assert generator(torch.randn(2, 4)).min() >= -1


def test_labels_go_through_a_linear_map():
    generator, critic = DcganGenerator(8, 4, channel_base=32, classes=3), DcganCritic(8, channel_base=32, classes=3)
    generator.eval(), critic.eval()
    z, images = torch.randn(2, 4), torch.randn(2, 3, 8, 8)
    labels = torch.tensor([0, 2])
    assert not torch.equal(generator(z, labels), generator(z, labels.flip(0)))
    assert not torch.equal(critic(images, labels), critic(images, labels.flip(0)))
    with pytest.raises(ValueError, match="give it labels"):
        generator(z)
    torch.testing.assert_close(generator.label_map(labels), generator.label_map.map.weight.T[labels])
    rebuilt = DcganGenerator(**generator.config())
    rebuilt.load_state_dict(generator.state_dict())
    assert torch.equal(rebuilt.eval()(z, labels), generator(z, labels))
    assert DcganCritic(8, channel_base=32, outputs=11)(images).shape == (2, 11)
    assert Discriminator(8, channel_base=32, outputs=11)(images).shape == (2, 11)
