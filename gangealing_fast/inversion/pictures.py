# SPDX-License-Identifier: Apache-2.0
"""The pictures that an encoder learns from beside samples, and those that are inverted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gangealing_fast.data.digits import SIZE, WarpedDigits, load_heldout_digits, random_similarity, training_digits, warp_digits
from gangealing_fast.data.pictures import Pictures, open_pictures, to_float
from gangealing_fast.inversion.config import InvertConfig
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.runtime.randomness import derived_seed

WARPS = 7
"""Seed of the held-out digits' warps, as where an aligner is judged by them."""


class Source(NamedTuple):
    """Pictures of a set by number: read in parts, as a set may be larger than the memory."""

    pictures: Pictures | WarpedDigits
    rows: Sequence[int]

    def __len__(self) -> int:
        return len(self.rows)

    def floats(self, indices: Tensor | Sequence[int]) -> Tensor:
        """`[N, 3, S, S]` in [-1, 1]."""
        chosen = torch.as_tensor(self.rows)[torch.as_tensor(indices, dtype=torch.int64)]
        return to_float(self.pictures.batch(chosen))


class Wanted(NamedTuple):
    """What is inverted: names, and the pictures `[N, 3, S, S]` in [-1, 1] of some rows. classes: of digits, `[N]`."""

    names: list[str]
    source: Source | Tensor
    classes: Tensor | None = None

    def floats(self, start: int, stop: int) -> Tensor:
        """The pictures from `start` on, up to `stop`."""
        if isinstance(self.source, Source):
            return self.source.floats(range(start, stop))
        return self.source[start:stop]


def open_sources(config: InvertConfig, size: int) -> tuple[Source | None, Wanted | None]:
    """What to learn from beside samples, and what to invert; None for neither.

    Raises UserError if pictures cannot be read, or none are left to learn from.
    """
    needed = config.train_steps > 0 and config.encoder is None
    if config.digit:
        wanted, learning = _digits(config, size), None
        if config.data is not None and needed:
            images, _ = training_digits(config.data, config.digit)
            warped = WarpedDigits(images, seed=derived_seed(config.seed, "warps"))
            learning = Source(warped, range(len(warped)))
        return learning, wanted
    if config.data is None:
        return None, None
    pictures = open_pictures(config.data, size=size)
    learned = range(len(pictures) - config.held_out)
    if needed and len(learned) < 2:
        raise UserError(f"--held-out {config.held_out} leaves {max(0, len(learned))} of {len(pictures)} pictures to learn from")
    every = range(len(pictures))[: config.limit or None]
    return Source(pictures, learned) if needed else None, Wanted([pictures.names[k] for k in every], Source(pictures, every))


def _digits(config: InvertConfig, size: int) -> Wanted:
    if size != SIZE:
        raise UserError(f"--digit are pictures of {SIZE}x{SIZE}, but {config.generator} makes pictures of {size}x{size}")
    digits = load_heldout_digits(config.digit)
    warps = random_similarity(len(digits.images), generator=torch.Generator().manual_seed(WARPS))
    pictures = warp_digits(digits.images, warps)[: config.limit or None]
    names = [f"digit {label} of test {number}" for label, number in zip(digits.labels.tolist(), digits.ids.tolist(), strict=True)]
    return Wanted(names[: len(pictures)], pictures, digits.labels[: len(pictures)])
