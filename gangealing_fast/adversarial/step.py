# SPDX-License-Identifier: Apache-2.0
"""One adversarial training step: critic, lazy R1, generator, running average."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gangealing_fast.adversarial.augment import Augmentation
from gangealing_fast.adversarial.objectives import Objective
from gangealing_fast.adversarial.penalties import r1_penalty
from gangealing_fast.models.generator import Generator
from gangealing_fast.optim import AdamEma
from gangealing_fast.precision import autocast


@dataclass
class AdversarialStep:
    """What one step needs; `critic_step` and `generator_step` change the networks in place.

    dtype: what the networks compute in (weights and optimisers stay float32). r1: gamma of R1, 0 for none, applied every
    `r1_interval` steps with its weight multiplied accordingly (lazy regularisation, StyleGAN2 section 3.1).
    style_mixing: probability that the later layers get the latent of a second sample (StyleGAN section 3.1).
    """

    generator: Generator
    critic: nn.Module
    generator_optimizer: AdamEma
    critic_optimizer: torch.optim.Optimizer
    objective: Objective
    augmentation: Augmentation
    dtype: torch.dtype = torch.float32
    r1: float = 1.0
    r1_interval: int = 16
    style_mixing: float = 0.9

    def sample(self, n: int) -> Tensor:
        """Pictures `[n, 3, size, size]` of random latents, with style mixing."""
        generator = self.generator
        device = generator.input.input.device
        w = generator.map(torch.randn(2 * n, generator.latent_dim, device=device))
        cut = generator.n_latent
        if torch.rand(()).item() < self.style_mixing:
            cut = int(torch.randint(1, generator.n_latent, ()).item())
        return generator.synthesize([w[:n]] * cut + [w[n:]] * (generator.n_latent - cut))

    def critic_step(self, real: Tensor, step: int) -> dict[str, float]:
        """Improve the critic on real pictures `[N, 3, H, W]` and as many samples."""
        device = real.device
        self.critic.requires_grad_(True)
        with autocast(device, self.dtype):
            with torch.no_grad():
                fake = self.sample(real.shape[0])
            real_logits = self.critic(self.augmentation(real))
            fake_logits = self.critic(self.augmentation(fake))
            loss = self.objective.critic(real_logits, fake_logits)
        self.critic_optimizer.zero_grad(set_to_none=True)
        loss.backward()
        statistics = {
            "critic": loss.item(),
            "real_sign": real_logits.detach().sign().mean().item(),
            "fake_sign": fake_logits.detach().sign().mean().item(),
        }
        if self.r1 > 0 and step % self.r1_interval == 0:
            images = self.augmentation(real).detach().requires_grad_(True)
            with autocast(device, self.dtype):
                penalty = r1_penalty(self.critic(images), images)
            (penalty * (0.5 * self.r1 * self.r1_interval)).backward()
            statistics["r1"] = penalty.item()
        self.critic_optimizer.step()
        self.augmentation.adapt(real_logits.detach())
        return statistics

    def generator_step(self, n: int, decay: float) -> dict[str, float]:
        """Improve the generator on n samples; its running average keeps the share `decay`."""
        self.critic.requires_grad_(False)
        with autocast(self.generator.input.input.device, self.dtype):
            logits = self.critic(self.augmentation(self.sample(n)))
            loss = self.objective.generator(logits)
        self.generator_optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.generator_optimizer.step(decay=decay)
        return {"generator": loss.item()}
