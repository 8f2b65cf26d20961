# SPDX-License-Identifier: Apache-2.0
"""Distributions in the plane, small networks for them, and training by any objective with the step that pictures use too."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from gangealing_fast.adversarial.objectives import Objective
from gangealing_fast.adversarial.step import AdversarialStep
from gangealing_fast.training.optim import AdamEma, RmsPropEma

RADIUS, MODES = 2.0, 8


def ring_centres() -> Tensor:
    """The modes `[8, 2]` on a circle of radius 2."""
    angle = torch.arange(MODES) * (2 * math.pi / MODES)
    return RADIUS * torch.stack([angle.cos(), angle.sin()], 1)


def ring(n: int, deviation: float, offset: float = 0.0) -> Tensor:
    """n points `[n, 2]` of eight equally likely Gaussians on a ring, moved by `offset` along x."""
    points = ring_centres()[torch.randint(MODES, (n,))] + deviation * torch.randn(n, 2)
    return points + torch.tensor([offset, 0.0])


def mlp(inputs: int, outputs: int, width: int, slope: float) -> nn.Sequential:
    """Three hidden layers of `width`, (leaky) ReLU."""
    layers: list[nn.Module] = []
    for _ in range(3):
        layers += [nn.Linear(inputs, width), nn.LeakyReLU(slope)]
        inputs = width
    network = nn.Sequential(*layers, nn.Linear(width, outputs))
    for layer in network:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight, slope)
            nn.init.zeros_(layer.bias)
    return network


@dataclass
class Trial:
    """How one objective is trained: two rates (generator, critic), widths, batch, dimension of z, generator updates."""

    objective: Objective
    steps: int
    rates: tuple[float, float]
    betas: tuple[float, float] = (0.5, 0.9)
    width: int = 128
    batch: int = 256
    latent_dim: int = 2
    half_life: float = 50.0
    last_rate: float = 1.0
    offset: float = 0.0
    generator: nn.Module = field(init=False)
    average: nn.Module = field(init=False)
    critic: nn.Module = field(init=False)

    def train(self, deviation: float, seed: int) -> Iterator[tuple[int, dict[str, float]]]:
        """Train on the ring; gives (updates of the generator done, statistics of the last one).

        The learning rates fall linearly to `last_rate` of themselves. `average` is the generator's running average of weights.
        """
        torch.manual_seed(seed)
        self.generator = mlp(self.latent_dim, 2, self.width, 0.0)
        self.critic = nn.Sequential(mlp(2, 1, self.width, 0.2), nn.Flatten(0))
        self.average = copy.deepcopy(self.generator)
        optimisers = self._optimisers()
        step = AdversarialStep(
            self.generator, self.critic, *optimisers, self.objective, lambda n, labels: self.sample(self.generator, n)
        )
        for done in range(self.steps):
            for optimiser, rate in zip(optimisers, self.rates, strict=True):
                for group in optimiser.param_groups:
                    group["lr"] = rate * (1 - (1 - self.last_rate) * done / self.steps)
            for _ in range(self.objective.critic_steps(done)):
                statistics = step.critic_step(ring(self.batch, deviation, self.offset))
            statistics |= step.generator_step(self.batch, 0.5 ** (1 / self.half_life))
            yield done + 1, statistics

    def sample(self, generator: nn.Module, n: int) -> Tensor:
        """n generated points `[n, 2]`."""
        return generator(torch.randn(n, self.latent_dim))

    def _optimisers(self) -> tuple[AdamEma | RmsPropEma, AdamEma | RmsPropEma]:
        kind = AdamEma if self.objective.optimiser.kind == "adam" else RmsPropEma
        second = {"betas": self.betas} if kind is AdamEma else {"alpha": 0.99}
        return (
            kind(self.generator.parameters(), self.rates[0], averages=self.average.parameters(), **second),
            kind(self.critic.parameters(), self.rates[1], **second),
        )


def quality(points: Tensor, deviation: float, share: float = 0.01) -> tuple[int, float]:
    """How many modes hold at least `share` of the points `[N, 2]`, and the share of points within 3 deviations of a mode."""
    distance, mode = torch.cdist(points, ring_centres()).min(1)
    good = distance <= 3 * deviation
    counts = torch.bincount(mode[good], minlength=MODES)
    return int((counts >= share * len(points)).sum()), good.float().mean().item()
