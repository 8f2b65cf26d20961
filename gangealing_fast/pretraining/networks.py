# SPDX-License-Identifier: Apache-2.0
"""The networks and optimisers that options name: generators and critics of either architecture, for any objective."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from gangealing_fast.adversarial import objectives
from gangealing_fast.adversarial.objectives import Objective
from gangealing_fast.checkpoints.writing import export_generator, export_plain_generator
from gangealing_fast.models import Autoencoder, DcganCritic, DcganGenerator, Discriminator, EfficientNetPerceptual, Generator
from gangealing_fast.pretraining.config import PretrainConfig
from gangealing_fast.pretraining.decoders import autoencoder_in, start_from_decoder
from gangealing_fast.pretraining.growing import start_from
from gangealing_fast.pretraining.projected import ProjectedDiscriminator
from gangealing_fast.pretraining.sampling import PictureGenerator
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.training.optim import AdamEma, RmsPropEma, restore

Network = TypeVar("Network", bound=nn.Module)
COMMAND = "pretrain"
PROJECTED_TAPS = (1, 2, 4, 6)
CLASSIFIER_DECAY = 0.998


@dataclass
class Networks:
    """Everything trained that a checkpoint stores."""

    generator: PictureGenerator
    average: PictureGenerator
    critic: nn.Module
    generator_optimizer: AdamEma | RmsPropEma
    critic_optimizer: AdamEma | RmsPropEma
    classifier: nn.Module | None = None
    """The running average of a critic that learns classes."""

    def _stored(self) -> list[str]:
        return [field.name for field in dataclasses.fields(self) if getattr(self, field.name) is not None]

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name).state_dict() for name in self._stored()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Everything but the learning rates, which are the options' of today."""
        optimizers = (self.generator_optimizer, self.critic_optimizer)
        rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
        for name in self._stored():
            restore(getattr(self, name), state[name])
        for optimizer, found in zip(optimizers, rates, strict=True):
            for group, rate in zip(optimizer.param_groups, found, strict=True):
                group["lr"] = rate

    @torch.no_grad()
    def follow(self) -> None:
        """Give the averaged generator the statistics of batch normalisation, which the optimiser's average leaves out."""
        if isinstance(self.generator, DcganGenerator):
            for average, current in zip(self.average.buffers(), self.generator.buffers(), strict=True):
                average.copy_(current)


def build(config: PretrainConfig, objective: Objective, device: torch.device) -> Networks:
    """Networks and optimisers of a fresh run, seeded by torch's default generator; `config` as `resolved`.

    Raises UserError for a critic that does not suit the objective, or for a start of another shape.
    """
    widths = {"channel_base": config.channel_base, "max_channels": config.max_channels}
    generator: PictureGenerator
    if config.architecture == "stylegan2":
        generator = Generator(config.size, config.latent_dim, config.mapping_layers, **widths)
    else:
        classes = len(config.digit) if config.conditional else 0
        generator = DcganGenerator(config.size, config.latent_dim, classes=classes, **widths)
    critic = _critic(config, objective, widths, device)
    if config.start_from is not None:
        _begin(config.start_from, generator, critic)
    try:
        objectives.refuse_mixing(objective, critic, penalised=bool(config.r1))
    except ValueError as error:
        raise UserError(str(error)) from None
    generator, critic = generator.to(device), critic.to(device)
    average = _average_of(generator)
    classifier = _average_of(critic) if objective.categories else None
    optimizers = _optimizers(config, objective, generator, average, critic, classifier)
    return Networks(generator, average, critic, *optimizers, classifier)


def _begin(path: Path, generator: PictureGenerator, critic: nn.Module) -> None:
    """Give the networks the weights of --start-from. Raises UserError for what they cannot begin with."""
    autoencoder = autoencoder_in(path)
    if autoencoder is not None:
        start_from_decoder(path, autoencoder.decoder, generator)
    elif isinstance(generator, Generator):
        start_from(path, COMMAND, generator, critic)
    else:
        raise UserError(
            "--start-from continues a StyleGAN2 generator, or with --architecture dcgan the decoder of an autoencoder; leave out "
            "--architecture dcgan, or give the folder of autoencode"
        )


def _average_of(network: Network) -> Network:
    return copy.deepcopy(network).eval().requires_grad_(False)


def _critic(config: PretrainConfig, objective: Objective, widths: dict[str, int], device: torch.device) -> nn.Module:
    if config.discriminator == "projected":
        # Twice the size, 128 at least: the deepest tap of a 64² picture would otherwise be two pixels wide.
        backbone = EfficientNetPerceptual(PROJECTED_TAPS, min_size=max(128, config.size)).to(device)
        return ProjectedDiscriminator(backbone.features, config.size)
    if objective.output == "autoencoder":
        return Autoencoder(config.size, norm="none" if config.critic_norm == "auto" else config.critic_norm, **widths)
    features = objective.match is not None
    if config.architecture == "stylegan2":
        group = 1 if objective.alone or objective.categories > 0 else 4
        return Discriminator(config.size, **widths, outputs=objective.outputs, group=group, features=features)
    norm = config.critic_norm
    if norm == "auto":
        norm = "layer" if objective.alone or config.r1 else "batch"
    classes = len(config.digit) if config.conditional else 0
    return DcganCritic(config.size, outputs=objective.outputs, norm=norm, features=features, classes=classes, **widths)


def _optimizers(
    config: PretrainConfig,
    objective: Objective,
    generator: nn.Module,
    average: nn.Module,
    critic: nn.Module,
    classifier: nn.Module | None,
) -> tuple[AdamEma | RmsPropEma, AdamEma | RmsPropEma]:
    trained = [p for p in critic.parameters() if p.requires_grad]
    generator_rate, critic_rate = config.generator_learning_rate, config.critic_learning_rate
    assert generator_rate is not None and critic_rate is not None, "the options are as `resolved`"
    if objective.optimiser.kind == "rmsprop":
        alpha = objective.optimiser.betas[1]
        return (
            RmsPropEma(generator.parameters(), generator_rate, alpha, averages=average.parameters()),
            RmsPropEma(trained, critic_rate, alpha),
        )
    betas = (0.0, 0.99) if config.architecture == "stylegan2" else objective.optimiser.betas
    # A lazy penalty leaves out r1_interval - 1 of r1_interval updates: learning rate and moments shrink with it (StyleGAN2).
    lazy = config.r1_interval / (config.r1_interval + 1) if config.r1 else 1.0
    return (
        AdamEma(generator.parameters(), generator_rate, betas, averages=average.parameters()),
        AdamEma(
            trained,
            critic_rate * lazy,
            (betas[0] ** lazy, betas[1] ** lazy),
            averages=None if classifier is None else classifier.parameters(),
        ),
    )


def export(generator: PictureGenerator, path: Path, statistics: dict[str, Any]) -> None:
    """Write the generator with its configuration; `load_plain_generator` or `checkpoints.reading.load_generator` read it."""
    if isinstance(generator, Generator):
        export_generator(generator, path, statistics)
    else:
        export_plain_generator(generator, path, statistics)
