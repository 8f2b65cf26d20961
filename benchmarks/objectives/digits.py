# SPDX-License-Identifier: Apache-2.0
"""Training on upright MNIST digits by `pretrain`'s own networks and step, and a classifier of real digits to judge samples by."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gangealing_fast.adversarial.objectives import Side
from gangealing_fast.data.digits import training_digits, warp_digits
from gangealing_fast.data.mnist import find_images, labels_path, read_idx, read_images
from gangealing_fast.metrics import FeatureStatistics, batch_diversity, frechet_distance
from gangealing_fast.pretraining.config import PretrainConfig
from gangealing_fast.pretraining.networks import build
from gangealing_fast.pretraining.options import make_objective, resolved
from gangealing_fast.pretraining.sampling import latents
from gangealing_fast.pretraining.source import Source, open_source
from gangealing_fast.pretraining.trainer import make_augmentation, make_trainer
from gangealing_fast.runtime.precision import autocast, resolve

CPU = torch.device("cpu")
DIGITS = tuple(range(10))


def options(folder: Path, objective: str, seed: int, **changes: Any) -> PretrainConfig:
    """What `pretrain` would be called with: a small DCGAN on all ten digits, without warps or augmentation."""
    config: dict[str, Any] = {
        "data": folder,
        "out": Path("unused"),
        "digit": DIGITS,
        "warp": False,
        "size": 32,
        "architecture": "dcgan",
        "objective": objective,
        "latent_dim": 74,
        "channel_base": 512,
        "max_channels": 128,
        "batch": 64,
        "augment": "none",
        "ema_kimg": 5.0,
        "seed": seed,
    }
    return PretrainConfig(**(config | changes))


class Training:
    """A run of `pretrain`'s step without snapshots. networks: what is trained. cpu_seconds: what its steps have taken.

    source: where real pictures come from; None: all training digits with their classes.
    """

    def __init__(self, config: PretrainConfig, source: Source | None = None) -> None:
        self.objective = make_objective(config)
        self.config = config = resolved(config, self.objective)
        self.source = open_source(config) if source is None else source
        self.dtype = resolve(config.precision, CPU)
        torch.manual_seed(config.seed)
        self.networks = build(config, self.objective, CPU)
        self.cpu_seconds = 0.0

    def steps(self, count: int, last_rate: float = 0.1) -> Iterator[dict[str, float]]:
        """Update the generator `count` times, giving statistics; learning rates fall linearly to `last_rate` of themselves."""
        config, objective, networks = self.config, self.objective, self.networks
        step, shown = make_trainer(config, objective, networks, make_augmentation(config, objective), self.dtype), 0
        groups = [group for side in (step.generator_optimizer, step.critic_optimizer) for group in side.param_groups]
        rates = [group["lr"] for group in groups]
        for done in range(count):
            started = time.process_time()
            for group, rate in zip(groups, rates, strict=True):
                group["lr"] = rate * (1 - (1 - last_rate) * done / count)
            for _ in range(objective.critic_steps(done)):
                images, labels = self.source.next(config.batch)
                statistics = step.critic_step(images, labels if objective.classes or config.labels else None)
                shown += config.batch
            half_life = max(1.0, min(config.ema_kimg * 1000, shown * 0.05))
            statistics |= step.generator_step(config.batch, 0.5 ** (config.batch / half_life))
            networks.follow()
            self.cpu_seconds += time.process_time() - started
            yield statistics

    @torch.no_grad()
    def draw(self, n: int, codes: Tensor | None = None) -> Tensor:
        """n pictures `[n, 3, 32, 32]` of the averaged generator, made from `codes` `[n, C]` or from random ones."""
        found, of = [], self.objective.codes
        for start in range(0, n, 250):
            inputs = latents(self.networks.average, min(250, n - start), of)
            if of is not None and codes is not None:
                inputs = (of.into(inputs[0], codes[start : start + 250]),)
            with autocast(CPU, self.dtype):
                found.append(self.networks.average(*inputs).float())
        return torch.cat(found)

    @torch.no_grad()
    def statistics(self, pictures: Tensor, codes: Tensor) -> dict[str, float]:
        """What the objective says of pictures `[N, 3, 32, 32]` made from `codes` `[N, C]`, seen as they are."""
        assert self.objective.statistics is not None
        output = torch.cat([self.networks.critic(part) for part in pictures.split(250)])
        side = Side(pictures, output, codes)
        return self.objective.statistics(side, side, {})


def held_out(folder: Path) -> tuple[Tensor, Tensor]:
    """MNIST's test digits `[10000, 3, 32, 32]` in [-1, 1] and their classes `[10000]`. Raises UserError without their files."""
    path = find_images(folder, "t10k")
    images, positions = read_images(path, labels=DIGITS)
    return warp_digits(images), torch.from_numpy(read_idx(labels_path(path), dimensions=1)[positions]).long()


class Judge:
    """A small convolutional network that tells real digits apart, trained for one epoch of MNIST's training digits, then frozen.

    accuracy: the share of MNIST's test digits that it classifies correctly. real: its features of those digits.
    """

    def __init__(self, folder: Path, batch: int = 100) -> None:
        self.dtype = resolve("auto", CPU)
        self.build()
        images, classes = training_digits(folder, DIGITS)
        optimiser = torch.optim.Adam(self.network.parameters())
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=-(-len(images) // batch))
        for indices in torch.randperm(len(images)).split(batch):
            loss = F.cross_entropy(self._scores(self._features(warp_digits(images[indices]))), classes[indices])
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
        self.network.eval().requires_grad_(False)
        pictures, expected = held_out(folder)
        found, self.real = self(pictures)
        self.accuracy = (found == expected).float().mean().item()

    def build(self) -> None:
        """The network with its first weights."""
        layers: list[nn.Module] = []
        for inputs, outputs, width in ((1, 32, 5), (32, 64, 3), (64, 64, 3)):
            layers += [nn.Conv2d(inputs, outputs, width, padding=width // 2), nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)]
        self.network = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 16, 128), nn.ReLU(), nn.Linear(128, 10))

    def _features(self, images: Tensor) -> Tensor:
        with autocast(CPU, self.dtype):
            return self.network[:-1](images.mean(1, keepdim=True)).float()

    def _scores(self, features: Tensor) -> Tensor:
        return self.network[-1](features)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The class `[N]` of pictures `[N, 3, 32, 32]`, of which it sees the mean colour, and its features `[N, 128]`."""
        features = torch.cat([self._features(part) for part in images.split(250)])
        return self._scores(features).argmax(1), features

    def quality(self, images: Tensor) -> dict[str, float]:
        """Of at least 1000 pictures: how many digits make up 2 % or more each, Fréchet distance and diversity by its features.

        The distance is to the test digits; diversity is the mean distance within batches of 64 over the test digits' own.
        """
        classes, features = self(images)
        return {
            "digits": int((torch.bincount(classes, minlength=10) >= 0.02 * len(images)).sum()),
            "frechet": float(frechet_distance(FeatureStatistics().update(self.real), FeatureStatistics().update(features))),
            "diversity": batch_diversity(features) / batch_diversity(self.real),
        }


@functools.cache
def judge(folder: Path) -> Judge:
    """The same one for all trials of a process."""
    torch.manual_seed(0)
    return Judge(folder)
