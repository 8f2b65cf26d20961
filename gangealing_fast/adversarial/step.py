# SPDX-License-Identifier: Apache-2.0
"""One adversarial training step for any generator, critic and objective: critic, penalties, generator, running average."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from gangealing_fast.adversarial.augment import Augmentation
from gangealing_fast.adversarial.objectives import Objective, Output, Side
from gangealing_fast.adversarial.objectives.penalties import path_length_penalty, path_lengths, r1_penalty
from gangealing_fast.models.generator import Generator
from gangealing_fast.runtime.precision import autocast
from gangealing_fast.training.optim import AdamEma, RmsPropEma


@dataclass
class AdversarialStep:
    """What one step needs; `critic_step` and `generator_step` change the networks in place.

    sample(n, labels): n samples of the generator, `[n, ...]`, made from `labels`: codes `[n, C]` where `objective` has codes, the
    real samples' classes `[n]` if `conditional`, else None.
    critic: samples, and their classes if `conditional`, → what `objective` needs; the objective sees the real ones' in any case.
    augmentation: what the critic sees of either side; None for all as it is. noise: deviation of Gaussian noise on top of it.
    critic_decay: the share that an update of the critic keeps of the running average of its weights, less at first, so that the
    average forgets where it began; None where the critic's optimiser keeps no average.
    dtype: what the networks compute in (weights and optimisers stay float32). r1: gamma of R1, 0 for none, applied every
    `r1_interval` steps with its weight multiplied accordingly (lazy regularisation, StyleGAN2 section 3.1). path_length: weight of
    StyleGAN2's path-length regularisation every `path_interval` updates of the generator, 0 for none.
    state, path_mean, critic_count and generator_count are what a resumed run needs beside networks and optimisers.
    """

    generator: nn.Module
    critic: nn.Module
    generator_optimizer: AdamEma | RmsPropEma
    critic_optimizer: torch.optim.Optimizer
    objective: Objective
    sample: Callable[[int, Tensor | None], Tensor]
    augmentation: Augmentation | None = None
    conditional: bool = False
    dtype: torch.dtype = torch.float32
    r1: float = 0.0
    r1_interval: int = 16
    path_length: float = 0.0
    path_interval: int = 4
    noise: float = 0.0
    critic_decay: float | None = None
    state: dict[str, float] = field(default_factory=dict)
    path_mean: float = 0.0
    critic_count: int = 0
    generator_count: int = 0
    _real: Side | None = None

    def __post_init__(self) -> None:
        if not self.state:
            self.state = dict(self.objective.state or {})

    def state_dict(self) -> dict[str, object]:
        """Plain numbers that `load_state_dict` takes back."""
        names = ("path_mean", "critic_count", "generator_count")
        return {"state": dict(self.state)} | {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Go on where `state_dict` was taken, after a generator step."""
        for name, value in state.items():
            setattr(self, name, dict(value) if isinstance(value, dict) else value)

    def _seen(self, samples: Tensor) -> Tensor:
        seen = samples if self.augmentation is None else self.augmentation(samples)
        return seen + self.noise * torch.randn_like(seen) if self.noise else seen

    def _judge(self, samples: Tensor, labels: Tensor | None) -> Output:
        return self.critic(samples, labels) if self.conditional else self.critic(samples)

    @torch.no_grad()
    def _seen_now(self, side: Side) -> Side:
        """What the critic, which has moved since, says now about what it saw."""
        return Side(side.samples, self._judge(side.samples, side.labels), side.labels)

    def _made_from(self, n: int, labels: Tensor | None) -> Tensor | None:
        """What n samples are to be made from: fresh codes, the classes given, or nothing."""
        if self.objective.codes is not None:
            return self.objective.codes.draw(n, next(self.generator.parameters()).device)
        return labels if self.conditional else None

    def critic_step(self, real: Tensor, labels: Tensor | None = None) -> dict[str, float]:
        """Improve the critic on real samples `[N, ...]`, with their classes `[N]` if any, and on as many generated ones."""
        objective, device = self.objective, real.device
        self.critic.requires_grad_(True)
        with autocast(device, self.dtype):
            with torch.no_grad():
                made_from = self._made_from(real.shape[0], labels)
                fake = self.sample(real.shape[0], made_from)
            real_seen, fake_seen = self._seen(real), self._seen(fake)
            sides = (
                Side(real_seen, self._judge(real_seen, labels), labels),
                Side(fake_seen, self._judge(fake_seen, made_from), made_from),
            )
            loss = objective.critic(*sides, self.state)
            statistics = {"critic": loss.item()}
            if objective.regulariser is not None:
                penalty = objective.regulariser(lambda samples: self._judge(samples, labels), *sides)
                loss = loss + penalty
                statistics["penalty"] = penalty.item()
        self.critic_optimizer.zero_grad(set_to_none=True)
        loss.backward()
        with torch.no_grad():
            statistics |= self._judgement(*sides)
        if self.r1 > 0 and self.critic_count % self.r1_interval == 0:
            images = self._seen(real).detach().requires_grad_(True)
            with autocast(device, self.dtype):
                penalty = r1_penalty(objective.realness(self._judge(images, labels)), images)
            (penalty * (0.5 * self.r1 * self.r1_interval)).backward()
            statistics["r1"] = penalty.item()
        self._move_critic()
        if objective.post_step is not None:
            objective.post_step(self.critic)
        if self.augmentation is not None and objective.boundary is not None:
            self.augmentation.adapt(objective.realness(sides[0].output).detach() - objective.boundary)
        self.critic_count += 1
        self._real = sides[0].detached()
        return statistics

    def _move_critic(self) -> None:
        if self.critic_decay is None:
            self.critic_optimizer.step()
        else:
            assert isinstance(self.critic_optimizer, AdamEma)
            self.critic_optimizer.step(decay=min(self.critic_decay, (1 + self.critic_count) / (10 + self.critic_count)))

    def _judgement(self, real: Side, fake: Side) -> dict[str, float]:
        objective, statistics = self.objective, {}
        if objective.boundary is not None:
            statistics = {
                name: (objective.realness(side.output) - objective.boundary).sign().mean().item()
                for name, side in (("real_sign", real), ("fake_sign", fake))
            }
        if objective.statistics is not None:
            statistics |= objective.statistics(real, fake, self.state)
        return statistics

    def generator_step(self, n: int, decay: float, labels: Tensor | None = None) -> dict[str, float]:
        """Improve the generator on n samples, of the classes `labels` `[n]` if conditional; its running average keeps `decay`."""
        self.critic.requires_grad_(False)
        device = next(self.generator.parameters()).device
        with autocast(device, self.dtype):
            made_from = self._made_from(n, labels)
            seen = self._seen(self.sample(n, made_from))
            fake = Side(seen, self._judge(seen, made_from), made_from)
            loss = self.objective.generator(fake, self.state)
            if self.objective.match is not None and self._real is not None:
                loss = loss + self.objective.match(self._seen_now(self._real), fake, self.state)
        self.generator_optimizer.zero_grad(set_to_none=True)
        loss.backward()
        statistics = {"generator": loss.item()}
        if self.path_length > 0 and self.generator_count % self.path_interval == 0:
            statistics |= self._straighten(max(1, n // 2))
        self.generator_optimizer.step(decay=decay)
        self.generator_count += 1
        if self.objective.update is not None and self._real is not None:
            with torch.no_grad():
                self.state = dict(self.objective.update(self.state, self._real, fake.detached()))
        return statistics

    def _straighten(self, n: int) -> dict[str, float]:
        """Add the gradient of the path-length penalty on n samples."""
        generator = self.generator
        if not isinstance(generator, Generator):
            raise TypeError("path-length regularisation needs the StyleGAN2 generator")
        device = generator.input.input.device
        with autocast(device, self.dtype):
            z, codes = torch.randn(n, generator.latent_dim, device=device), self.objective.codes
            w = generator.map(z if codes is None else codes.into(z, codes.draw(n, device)))
            w = w[:, None].expand(-1, generator.n_latent, -1)
            lengths = path_lengths(generator.synthesize(w), w)
        penalty, mean = path_length_penalty(lengths, torch.tensor(self.path_mean))
        self.path_mean = mean.item()
        (penalty * (self.path_length * self.path_interval)).backward()
        return {"path_penalty": penalty.item(), "path_length": lengths.mean().item()}
