# SPDX-License-Identifier: Apache-2.0
"""The loop behind `python -m gangealing_fast.contrast`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gangealing_fast.checkpoints.reading import load_generator
from gangealing_fast.contrastive.config import ContrastConfig
from gangealing_fast.contrastive.views import contrastive_loss, random_view
from gangealing_fast.data.pictures import Pictures, open_pictures, to_float
from gangealing_fast.data.sampler import InfiniteSampler
from gangealing_fast.models import Generator
from gangealing_fast.models.layers import resize_to
from gangealing_fast.models.self_supervised import EXPORT_NAME, SelfSupervisedPerceptual
from gangealing_fast.ops.environment import print_notice
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.runtime.precision import autocast, resolve
from gangealing_fast.runtime.setup import choose_device, prepare_process
from gangealing_fast.storage.runs import open_run
from gangealing_fast.training.fitting import fit
from gangealing_fast.training.optim import Stateful

COMMAND = "contrast"
PROJECTION = 64


class Mixture:
    """Batches `[N, 3, S, S]` of real pictures and samples, half of each where there are both."""

    def __init__(self, config: ContrastConfig, device: torch.device) -> None:
        self.size, self.device = config.size, device
        self.pictures: Pictures | None = None
        self.generator: Generator | None = None
        if config.data is not None:
            self.pictures = open_pictures(config.data, size=config.size, minimum=2)
            self.sampler = InfiniteSampler(len(self.pictures), config.seed)
        self.truncation, self.mean = config.truncation, None
        if config.generator is not None:
            self.generator = load_generator(config.generator).to(device)
            self.mean = self.generator.mean_latent() if config.truncation < 1 else None
            if self.generator.size % config.size:
                raise UserError(f"--size {config.size} does not divide the generator's {self.generator.size}; choose one that does")
        if self.pictures is None and self.generator is None:
            raise UserError("there is nothing to learn from: give --data, --generator or both")

    def next(self, n: int) -> Tensor:
        real = 0 if self.pictures is None else n if self.generator is None else n // 2
        parts = []
        if self.pictures is not None and real:
            parts.append(to_float(self.pictures.batch(self.sampler.next(real))).to(self.device))
        if self.generator is not None and n > real:
            with torch.no_grad():
                z = torch.randn(n - real, self.generator.latent_dim, device=self.device)
                samples = self.generator(z, truncation=self.truncation, truncation_latent=self.mean).float()
            parts.append(resize_to(samples, self.size).clamp(-1, 1))
        return torch.cat(parts)

    def state_dict(self) -> dict[str, Any]:
        return {} if self.pictures is None else self.sampler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.pictures is not None:
            self.sampler.load_state_dict(state)


def run(config: ContrastConfig) -> Path:
    """Learn, or go on learning; returns the exported file. Raises UserError for a user's mistakes."""
    print_notice(config.ops)
    with open_run(config.out, COMMAND, config, pictures={"--data": config.data}) as resuming:
        return _run(config, resuming)


def _run(config: ContrastConfig, resuming: bool) -> Path:
    device = choose_device(config.device)
    prepare_process(config)
    dtype = resolve(config.precision, device)
    source = Mixture(config, device)
    torch.manual_seed(config.seed)
    network = SelfSupervisedPerceptual(config.widths).to(device)
    width = sum(config.widths)
    # Means of rectified maps all point into one direction; without the normalisation nothing is learned.
    layers = (nn.BatchNorm1d(width), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, PROJECTION))
    projection = nn.Sequential(*layers).to(device)
    optimizer = torch.optim.Adam([*network.parameters(), *projection.parameters()], config.learning_rate, fused=True)

    def lesson() -> tuple[Tensor, float]:
        images = source.next(config.batch)
        with autocast(device, dtype):
            first, second = (projection(network.embedding(random_view(images, mirror=config.mirror))).float() for _ in range(2))
        return contrastive_loss(first, second, config.temperature), found_partner(first.detach(), second.detach())

    def export(line: Mapping[str, Any]) -> None:
        network.export(config.out / EXPORT_NAME, {key: line[key] for key in ("step", "loss", "found")})

    parts: dict[str, Stateful] = {"network": network, "projection": projection, "source": source}
    fit(config, COMMAND, optimizer, parts, lesson, "found", resuming=resuming, exported=export)
    return config.out / EXPORT_NAME


def found_partner(first: Tensor, second: Tensor) -> float:
    """The share of pictures whose second view is nearest to the first among all second views."""
    similarity = nn.functional.normalize(first, dim=1) @ nn.functional.normalize(second, dim=1).T
    return (similarity.argmax(1) == torch.arange(len(first), device=first.device)).float().mean().item()
