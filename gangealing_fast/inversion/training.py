# SPDX-License-Identifier: Apache-2.0
"""Training of the encoder: on samples, whose w is known, and on real pictures, whose latents are to be distributed as w."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gangealing_fast.autoencoders.game import Game, code_objective
from gangealing_fast.autoencoders.networks import CodeCritic, Encoder
from gangealing_fast.data.sampler import InfiniteSampler
from gangealing_fast.inversion.config import InvertConfig
from gangealing_fast.inversion.inverter import EXPORT_NAME, Inverter
from gangealing_fast.inversion.pictures import Source
from gangealing_fast.models.generator import Generator
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.training.loop import Means, Plan, Progress
from gangealing_fast.training.optim import AdamEma
from gangealing_fast.training.parts import InParts

COMMAND = "invert"
DECAY = 0.998
CRITIC_WIDTH = 256


class Training(InParts):
    """The work of the first part of `invert` in the loop.

    Each step: samples w → picture → E(picture), which shall be w and make the picture again; and real pictures x → E(x), which
    shall make x again and be taken for a w by a critic of latents, as in an adversarial autoencoder (arXiv 1511.05644) whose
    decoder is the generator and whose prior is its W.
    """

    def __init__(self, config: InvertConfig, inverter: Inverter, real: Source | None) -> None:
        self.config, self.real, generator = config, real, inverter.generator
        self.device, self.looks = inverter.device, True
        self.inverter = inverter
        inverter.encoder = make_encoder(config, generator).to(self.device)
        self.average = copy.deepcopy(inverter.encoder).eval().requires_grad_(False)
        self.optimizer = AdamEma(
            inverter.encoder.parameters(), config.learning_rate, (0.9, 0.999), averages=self.average.parameters(), decay=DECAY
        )
        self.game: Game | None = None
        if real is not None:
            self.sampler = InfiniteSampler(len(real), config.seed)
            critic = CodeCritic(generator.latent_dim, 0, CRITIC_WIDTH).to(self.device)
            self.game = Game(critic, code_objective("nonsaturating"), config.learning_rate / 4)

    def step(self, at: Progress, means: Means) -> int:
        rate = 0.5 * (1 + math.cos(math.pi * at.step / self.config.train_steps))
        self._set_rates(rate)
        self.looks = at.step >= (1 - self.config.picture_share) * self.config.train_steps
        loss = self._on_samples(means)
        if self.real is not None and self.game is not None:
            loss = loss + self._on_pictures(self.real, self.game, means)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step(decay=min(DECAY, (1 + at.step) / (10 + at.step)))
        return 1

    def _set_rates(self, share: float) -> None:
        rates = [(self.optimizer, self.config.learning_rate)]
        rates += [] if self.game is None else [(self.game.optimizer, self.config.learning_rate / 4)]
        for optimizer, rate in rates:
            for group in optimizer.param_groups:
                group["lr"] = rate * share

    def _latents(self) -> Tensor:
        generator = self.inverter.generator
        with torch.no_grad():
            return generator.map(torch.randn(self.config.batch, generator.latent_dim, device=self.device)).float()

    def _reconstruction(self, pictures: Tensor, w: Tensor, prefix: str, means: Means) -> Tensor:
        """What the encoder minimises of the picture that w makes; 0 as long as nobody looks at it."""
        if not self.looks:
            return w.new_zeros(())
        made = self.inverter.generator.synthesize(w, "fixed").float()
        pixels, perceptual = F.mse_loss(made, pictures), self.inverter.perceptual(made, pictures).mean()
        means.add({f"{prefix}pixels": pixels.item(), f"{prefix}perceptual": perceptual.item()})
        return perceptual + self.config.pixel_weight * pixels

    def _on_samples(self, means: Means) -> Tensor:
        inverter, w = self.inverter, self._latents()
        with torch.no_grad():
            pictures = inverter.generator.synthesize(w, "random").float()
        found = inverter.place(pictures)
        apart = ((found - w) / inverter.deviation).square().mean()
        means.add({"latent": apart.item()})
        return self.config.latent_weight * apart + self._reconstruction(pictures, found, "", means)

    def _on_pictures(self, real: Source, game: Game, means: Means) -> Tensor:
        inverter, pictures = self.inverter, real.floats(self.sampler.next(self.config.batch)).to(self.device)
        found = inverter.place(pictures)
        codes = (found - inverter.mean) / inverter.deviation
        judged = game.judge((self._latents() - inverter.mean) / inverter.deviation, codes)
        fooling = game.loss(codes)
        means.add({"prior": fooling.item(), **judged})
        return self._reconstruction(pictures, found, "real_", means) + self.config.prior_weight * fooling

    def measure(self, at: Progress, line: dict[str, Any]) -> None:
        """The means of the losses are all there is."""

    def show(self, at: Progress, line: Mapping[str, Any]) -> None:
        kept, self.inverter.encoder = self.inverter.encoder, self.average
        self.inverter.export(self.config.out / EXPORT_NAME, {"generator_file": str(self.config.generator), "steps": at.step})
        self.inverter.encoder = kept

    def named_parts(self) -> dict[str, Any]:
        parts = {"encoder": self.inverter.encoder, "average": self.average, "optimizer": self.optimizer}
        return parts | ({} if self.game is None else {"game": self.game, "sampler": self.sampler})


def make_encoder(config: InvertConfig, generator: Generator) -> Encoder:
    """A fresh encoder of the generator's pictures. Raises UserError for one that there cannot be."""
    try:
        return Encoder(generator.size, 3, generator.latent_dim, architecture="convolutional", width=config.width)
    except ValueError as error:
        raise UserError(f"there is no encoder for {config.generator}: {error}") from None


def plan_of(config: InvertConfig) -> Plan:
    """Ten lines of the log for each checkpoint."""
    return Plan(
        COMMAND,
        config.train_steps,
        tick=max(1, config.snapshot // 10),
        snapshot=config.snapshot,
        pictures=config.batch,
        postfix={"latent": ".3f", "perceptual": ".3f"},
        draws=True,
        tracker=config.tracker,
    )
