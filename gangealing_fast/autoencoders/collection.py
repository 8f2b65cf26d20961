# SPDX-License-Identifier: Apache-2.0
"""The pictures that an autoencoder learns from, is tuned by and is examined on, all in memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gangealing_fast.autoencoders.config import AutoencodeConfig
from gangealing_fast.data.digits import training_digits
from gangealing_fast.data.mnist import find_images
from gangealing_fast.data.pictures import open_pictures
from gangealing_fast.data.sampler import InfiniteSampler, split_held_out
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.runtime.randomness import derived_seed

DIGITS = tuple(range(10))
VALIDATION = 10_000
"""Of MNIST's training digits, the last ones: the paper's own division."""
NEEDS_CLASSES = {"conditional", "supervised", "semi"}
TAKES_CLASSES = NEEDS_CLASSES | {"map"}


@dataclass(frozen=True)
class Part:
    """images `[N, C, S, S]`, uint8. classes `[N]`, int64; None if nobody knows them."""

    images: Tensor
    classes: Tensor | None

    def __len__(self) -> int:
        return len(self.images)

    def shown(self, indices: Tensor | slice = slice(None)) -> Tensor:
        """Pictures in [0, 1], float32."""
        return self.images[indices].float() / 255


@dataclass(frozen=True)
class Collection:
    """training, validation and test pictures; kinds: how many classes they have, 0 if nobody knows."""

    training: Part
    validation: Part
    test: Part
    kinds: int

    def summary(self) -> str:
        """One sentence."""
        _, channels, size, _ = self.training.images.shape
        return (
            f"{len(self.training)} pictures of {channels}x{size}x{size} to learn from, {len(self.validation)} to tune by, "
            f"{len(self.test)} to examine"
        )


def open_collection(config: AutoencodeConfig) -> Collection:
    """The pictures that the options name. Raises UserError if they cannot be read, or lack the classes that the use needs."""
    if _is_mnist(config.data):
        return _mnist(config)
    if config.use in NEEDS_CLASSES:
        raise UserError(f"--use {config.use} needs classes: give --data the folder with MNIST's original files, labels among them")
    if config.labels:
        raise UserError(f"--labels {config.labels} needs classes, and {config.data} has none; leave it out")
    pictures = open_pictures(config.data, size=config.size or 64, minimum=20)
    images = pictures.batch(range(len(pictures)))
    held = config.held_out or max(5, len(images) // 10)
    if 2 * held >= len(images):
        raise UserError(f"--held-out {held}, and as many to tune by, leave none of {len(images)} pictures to learn from")
    rest, test = split_held_out(pictures.names, held)
    learned, tuned = rest[: len(rest) - held], rest[len(rest) - held :]
    learned_from, tuned_by, examined = (Part(images[indices], None) for indices in (learned, tuned, test))
    return Collection(learned_from, tuned_by, examined, 0)


def _is_mnist(path: Path) -> bool:
    try:
        find_images(path, "train")
    except UserError:
        return False
    return path.is_dir()


def _mnist(config: AutoencodeConfig) -> Collection:
    if config.size not in (0, 28, 32):
        raise UserError(f"MNIST's digits are 28x28: --size may be 28, or 32 with a margin of 2 pixels, got {config.size}")
    margin = 2 if config.size == 32 else 0

    def part(name: str) -> Part:
        images, classes = training_digits(find_images(config.data, name), DIGITS)
        return Part(torch.nn.functional.pad(images[:, None], (margin,) * 4), classes)

    training, test = part("train"), part("t10k")
    held = min(VALIDATION, len(training) // 6)
    assert training.classes is not None
    tuned = Part(training.images[-held:], training.classes[-held:])
    learned = Part(training.images[:-held], training.classes[:-held])
    if config.held_out:
        assert test.classes is not None
        test = Part(test.images[-config.held_out :], test.classes[-config.held_out :])
    return Collection(learned, tuned, test, len(DIGITS))


class Batches:
    """Endless batches: pictures of unknown class, and pictures with their class, each in an order of its own.

    told: positions of the pictures whose class is told; None for all.
    """

    def __init__(self, part: Part, told: Tensor | None, seed: int) -> None:
        self.part = part
        self.told = torch.arange(len(part)) if told is None else told
        self.every = InfiniteSampler(len(part), seed)
        self.labelled = InfiniteSampler(max(1, len(self.told)), derived_seed(seed, "labelled"))
        self._is_told = torch.zeros(len(part), dtype=torch.bool)
        self._is_told[self.told] = True

    def any(self, count: int) -> tuple[Tensor, Tensor]:
        """Pictures `[count, C, S, S]` of all, and their classes `[count]`, -1 if not told."""
        indices = self.every.next(count)
        classes = torch.full((count,), -1)
        if self.part.classes is not None:
            classes = torch.where(self._is_told[indices], self.part.classes[indices], -1)
        return self.part.shown(indices), classes

    def known(self, count: int) -> tuple[Tensor, Tensor]:
        """Pictures whose class is told, and their classes."""
        assert self.part.classes is not None
        indices = self.told[self.labelled.next(count)]
        return self.part.shown(indices), self.part.classes[indices]

    def state_dict(self) -> dict[str, Any]:
        return {"every": self.every.state_dict(), "labelled": self.labelled.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.every.load_state_dict(state["every"])
        self.labelled.load_state_dict(state["labelled"])
