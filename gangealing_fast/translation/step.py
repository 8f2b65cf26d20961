# SPDX-License-Identifier: Apache-2.0
"""One step of MUNIT: both critics, then encoders and decoders, on the same translations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from gangealing_fast.adversarial.objectives import Objective, Side
from gangealing_fast.models import EfficientNetPerceptual
from gangealing_fast.runtime.precision import autocast
from gangealing_fast.training.optim import AdamEma
from gangealing_fast.translation.critics import MultiScaleCritic
from gangealing_fast.translation.losses import Passed, Weights, invariant_distance, pass_through, reconstruction_losses, weight_of
from gangealing_fast.translation.networks import TranslationNetworks

DOMAINS = ("first", "second")


@dataclass
class TranslationStep:
    """What one step needs; calling it changes networks and critics in place.

    critics: one for each domain. dtype: what convolutions compute in; weights, codes and losses stay float32. perceptual: the
    frozen network of the domain-invariant distance, needed if its weight is not 0. states: what the objective remembers.
    """

    networks: TranslationNetworks
    critics: nn.ModuleList
    optimizer: AdamEma
    critic_optimizer: torch.optim.Optimizer
    objective: Objective
    weights: Weights
    dtype: torch.dtype = torch.float32
    perceptual: EfficientNetPerceptual | None = None
    states: list[dict[str, float]] = field(default_factory=list)
    count: int = 0

    def __post_init__(self) -> None:
        if not self.states:
            self.states = [dict(self.objective.state or {}) for _ in DOMAINS]

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers that `load_state_dict` takes back."""
        return {"states": [dict(state) for state in self.states], "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.states, self.count = [dict(one) for one in state["states"]], int(state["count"])

    def __call__(self, images: Sequence[Tensor], drawn: Sequence[Tensor], decay: float) -> dict[str, float]:
        """Update everything once; returns every loss, without its weight.

        images: of both domains, `[N, 3, S, S]` in [-1, 1] each. drawn: styles `[N, style]` from N(0, I), drawn[k] for translations
        *into* domain k. decay: the share that the running average of the weights keeps.
        """
        with autocast(images[0].device, self.dtype):
            passed = pass_through(self.networks, images, drawn)
        statistics: dict[str, float] = {}
        if self.weights.adversarial:
            for _ in range(self.objective.critic_steps(self.count)):
                statistics |= self._judge(images, passed)
        statistics |= self._improve(images, passed, decay)
        self.count += 1
        return statistics

    def _critic(self, k: int) -> MultiScaleCritic:
        critic = self.critics[k]
        assert isinstance(critic, MultiScaleCritic)
        return critic

    def _judge(self, images: Sequence[Tensor], passed: Passed) -> dict[str, float]:
        """Improve both critics on real pictures and on translations as they are before this step's update."""
        self.critics.requires_grad_(True)
        statistics, total = {}, images[0].new_zeros(())
        for k, name in enumerate(DOMAINS):
            critic, fake = self._critic(k), passed.translated[k].detach()
            with autocast(fake.device, self.dtype):
                scores = critic(torch.cat([images[k], fake]))
                halves = [score.split([len(images[k]), len(fake)]) for score in scores]
                sides = Side(images[k], [half[0] for half in halves]), Side(fake, [half[1] for half in halves])
                loss = self.objective.critic(*sides, self.states[k])
                if self.objective.regulariser is not None:
                    loss = loss + self.objective.regulariser(critic, *sides)
            total = total + loss
            statistics[f"critic_{name}"] = loss.item()
            if self.objective.boundary is not None:
                for side, what in zip(sides, ("real", "fake"), strict=True):
                    sign = (self.objective.realness(side.output) - self.objective.boundary).sign().mean()
                    statistics[f"{what}_sign_{name}"] = sign.item()
        self.critic_optimizer.zero_grad(set_to_none=True)
        total.backward()
        self.critic_optimizer.step()
        if self.objective.post_step is not None:
            self.objective.post_step(self.critics)
        return statistics

    def _improve(self, images: Sequence[Tensor], passed: Passed, decay: float) -> dict[str, float]:
        self.critics.requires_grad_(False)
        with autocast(images[0].device, self.dtype):
            losses = reconstruction_losses(self.networks, images, passed, self.weights)
            for k, name in enumerate(DOMAINS):
                if self.weights.adversarial:
                    side = Side(passed.translated[k], self._critic(k)(passed.translated[k]))
                    losses[f"adversarial_{name}"] = self.objective.generator(side, self.states[k])
                if self.weights.perceptual and self.perceptual is not None:
                    distance = invariant_distance(self.perceptual, passed.translated[k], images[1 - k])
                    losses[f"perceptual_{name}"] = distance
        if not losses:
            return {}
        total = torch.stack([weight_of(name, self.weights) * loss for name, loss in losses.items()]).sum()
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        self.optimizer.step(decay=decay)
        return {name: loss.item() for name, loss in losses.items()}
