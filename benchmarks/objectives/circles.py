# SPDX-License-Identifier: Apache-2.0
"""Two concentric circles without labels (arXiv 1511.06390, section 4.1): what the generator is good for in catGAN."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor, nn

from gangealing_fast.adversarial.objectives import Side, State, make
from gangealing_fast.adversarial.objectives.classes import conditional_entropy, marginal_entropy
from gangealing_fast.adversarial.step import AdversarialStep
from gangealing_fast.training.optim import AdamEma

RADII, DEVIATION, WIDTH, BATCH = (0.2, 1.0), 0.05, 100, 128
RATES, BETAS = (1e-4, 1e-3), (0.5, 0.99)
# Without them every kink of the critic would pass through the common centre, and only directions could be told apart.
FIRST_BIAS, OTHER_BIAS, NOISE = 3.0, 0.9, 0.1


class Noise(nn.Module):
    """Gaussian noise on hidden units while training."""

    def forward(self, x: Tensor) -> Tensor:
        return x + NOISE * torch.randn_like(x) if self.training else x


def network(slope: float, noisy: bool) -> nn.Sequential:
    """Points of the plane → two numbers, with three hidden layers of 100; `noisy` makes it a critic."""
    layers: list[nn.Module] = []
    for inputs in (2, WIDTH, WIDTH):
        linear = nn.Linear(inputs, WIDTH)
        bound = FIRST_BIAS if inputs == 2 else OTHER_BIAS
        nn.init.kaiming_normal_(linear.weight, slope)
        nn.init.uniform_(linear.bias, -bound, bound)
        layers += [linear, nn.LeakyReLU(slope)] + ([Noise()] if noisy else [])
    last = nn.Linear(WIDTH, 2)
    with torch.no_grad():
        nn.init.kaiming_normal_(last.weight, slope).mul_(0.1 if noisy else 1.0)  # the critic begins unsure
        last.bias.zero_()
    return nn.Sequential(*layers, last)


def circles(n: int) -> tuple[Tensor, Tensor]:
    """n points `[n, 2]` of two circles, equally often, and which circle `[n]`."""
    which, angle = torch.randint(2, (n,)), 2 * math.pi * torch.rand(n)
    points = torch.stack([angle.cos(), angle.sin()], 1) * torch.tensor(RADII)[which, None]
    return points + DEVIATION * torch.randn(n, 2), which


@torch.no_grad()
def accuracy(critic: nn.Module) -> float:
    """The share of 5 000 points whose circle the larger output tells, for the better of the two assignments."""
    critic.eval()
    points, which = circles(5000)
    agreeing = (critic(points).argmax(1) == which).float().mean().item()
    critic.train()
    return max(agreeing, 1 - agreeing)


def train(seed: int, steps: int, generated: bool) -> float:
    """The critic's accuracy after `steps` updates; without `generated` its loss has the terms of real points alone."""
    torch.manual_seed(seed)
    objective = make("catgan", classes=2)

    def discriminative(real: Side, fake: Side, state: State) -> Tensor:
        assert isinstance(real.output, Tensor)
        return conditional_entropy(real.output).mean() - marginal_entropy(real.output)

    if not generated:
        objective = dataclasses.replace(objective, critic=discriminative)
    generator, critic = network(0.0, False), network(0.2, True)
    optimisers = (AdamEma(generator.parameters(), RATES[0], BETAS), AdamEma(critic.parameters(), RATES[1], BETAS))
    step = AdversarialStep(generator, critic, *optimisers, objective, lambda n, labels: generator(torch.randn(n, 2)))
    for _ in range(steps):
        step.critic_step(circles(BATCH)[0])
        step.generator_step(BATCH, 0.0)
    return accuracy(critic)


def circles_trial(seed: int, steps: int = 600) -> dict[str, Any]:
    """Accuracy of catGAN with K = 2, and of the same critic without generated points."""
    return {"accuracy": train(seed, steps, True), "without_generator": train(seed, steps, False)}
