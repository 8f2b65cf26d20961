# SPDX-License-Identifier: Apache-2.0
"""Where real pictures come from: batches in [-1, 1], endless, resumable."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from gangealing_fast.data.digits import random_similarity, training_digits, warp_digits
from gangealing_fast.data.pictures import Pictures, open_pictures, to_float
from gangealing_fast.data.sampler import InfiniteSampler, balanced, split_held_out
from gangealing_fast.pretraining.config import PretrainConfig
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.runtime.randomness import derived_seed


class Source(Protocol):
    """`next(n)`: the next pictures `[n, 3, S, S]` and their classes `[n]`, None where unknown; `fixed(n)`: batches of the same n
    pictures every time, for scores."""

    def next(self, n: int) -> tuple[Tensor, Tensor | None]: ...
    def fixed(self, n: int) -> Iterator[Tensor]: ...
    def summary(self) -> str: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class PictureSource:
    """Pictures of a folder or tar, shuffled anew each epoch, mirrored at random where asked; the last `held_out` are never used."""

    def __init__(self, pictures: Pictures, seed: int, mirror: bool, held_out: int = 0) -> None:
        self.pictures, self.mirror, self.held_out = pictures, mirror, held_out
        self.used, _ = split_held_out(pictures.names, held_out)
        self.sampler = InfiniteSampler(len(self.used), seed)

    def next(self, n: int) -> tuple[Tensor, None]:
        images = to_float(self.pictures.batch(self.sampler.next(n)))
        if self.mirror:
            images = torch.where(torch.rand(n, 1, 1, 1) < 0.5, images.flip(3), images)
        return images, None

    def fixed(self, n: int) -> Iterator[Tensor]:
        order = InfiniteSampler(len(self.used), 0).next(min(n, len(self.used)))
        for indices in order.split(64):
            yield to_float(self.pictures.batch(indices))

    def summary(self) -> str:
        kept = f"; the last {self.held_out} are held out" if self.held_out else ""
        return self.pictures.summary() + kept

    def state_dict(self) -> dict[str, Any]:
        return self.sampler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.sampler.load_state_dict(state)


class DigitSource:
    """MNIST digits of some classes, upright or each time under a new random similarity warp.

    labels: 0: every class is told. Else those of so many digits, and `share` of each batch is drawn from them; the rest is drawn
    from all digits, with class -1.
    """

    def __init__(
        self,
        images: Tensor,
        classes: Tensor,
        digits: Sequence[int],
        seed: int,
        warp: bool = True,
        labels: int = 0,
        share: float = 0.5,
    ) -> None:
        self.images, self.classes, self.digits, self.warp, self.share = images, classes, digits, warp, share
        self.sampler = InfiniteSampler(len(images), seed)
        self.labelled = balanced(classes, labels, seed) if labels else None
        self.labelled_sampler = InfiniteSampler(max(1, labels), derived_seed(seed, "labelled"))

    def next(self, n: int) -> tuple[Tensor, Tensor]:
        if self.labelled is None:
            indices = self.sampler.next(n)
            classes = self.classes[indices]
        else:
            known = min(n, max(1, round(n * self.share)))
            indices = torch.cat([self.labelled[self.labelled_sampler.next(known)], self.sampler.next(n - known)])
            classes = torch.where(torch.arange(n) < known, self.classes[indices], -1)
        return warp_digits(self.images[indices], random_similarity(n) if self.warp else None), classes

    def fixed(self, n: int) -> Iterator[Tensor]:
        order = InfiniteSampler(len(self.images), 0).next(n)
        warps = random_similarity(n, generator=torch.Generator().manual_seed(0))
        for indices, matrices in zip(order.split(64), warps.split(64), strict=True):
            yield warp_digits(self.images[indices], matrices if self.warp else None)

    def summary(self) -> str:
        classes = ", ".join(map(str, self.digits))
        shown = "each time under a new random similarity warp" if self.warp else "upright"
        told = "" if self.labelled is None else f", {len(self.labelled)} of them labelled"
        return f"{len(self.images)} training digits of class {classes}{told}, {shown}"

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = self.sampler.state_dict()
        return state if self.labelled is None else state | {"labelled": self.labelled_sampler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.sampler.load_state_dict(state)
        if self.labelled is not None:
            self.labelled_sampler.load_state_dict(state["labelled"])


def open_source(config: PretrainConfig) -> Source:
    """The source that the options name. Raises UserError for unusable data or options that do not fit together."""
    if config.size < 8 or config.size & (config.size - 1):
        raise UserError(f"--size must be a power of two of at least 8, got {config.size}")
    if not config.digit:
        pictures = open_pictures(config.data, size=config.size, minimum=2)
        return PictureSource(pictures, config.seed, config.mirror, config.held_out)
    if config.size != 32:
        raise UserError(f"--digit trains at 32x32, got --size {config.size}")
    digits = training_digits(config.data, config.digit)
    return DigitSource(*digits, config.digit, config.seed, config.warp, config.labels, config.labelled_share)
