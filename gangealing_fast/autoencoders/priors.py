# SPDX-License-Identifier: Apache-2.0
"""What codes shall be distributed as. Sampling is all that is needed of a prior (arXiv 1511.05644, section 2)."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
import torch.nn.functional as F
from torch import Tensor

from gangealing_fast.checkpoints.reading import load_generator
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.runtime.text import reason_of

COMPONENTS = 10
"""Parts of the mixture and of the swiss roll, one for each class of MNIST."""


@dataclass(frozen=True)
class Prior:
    """draw(n, parts): n samples `[n, dimensions]`. parts `[n]`, int64: which part of the prior each sample is of, -1 for any; None
    for any of all. components: how many parts there are; 1 for a prior of one piece."""

    name: str
    dimensions: int
    draw: Callable[[int, Tensor | None], Tensor]
    components: int = 1

    def sample(self, count: int, parts: Tensor | None = None) -> Tensor:
        """`count` samples, drawn from torch's default generator."""
        return self.draw(count, parts)


def gaussian(dimensions: int, scale: float = 1.0) -> Prior:
    """N(0, scale² I)."""
    return Prior("gaussian", dimensions, lambda count, parts: scale * torch.randn(count, dimensions))


def uniform(dimensions: int, scale: float = 1.0) -> Prior:
    """Uniform in [-scale, scale] along each axis."""
    return Prior("uniform", dimensions, lambda count, parts: scale * (2 * torch.rand(count, dimensions) - 1))


def mixture(dimensions: int, scale: float = 1.0) -> Prior:
    """Ten long Gaussians around the origin like petals: in the plane of the first two axes; along others N(0, 0.15² scale² I).

    Petal k lies at the angle 36° k, its middle at the distance 1, with deviations 0.35 outwards and 0.08 across (times scale).
    Raises UserError for fewer than two dimensions.
    """
    _at_least_two("mixture", dimensions)

    def draw(count: int, parts: Tensor | None) -> Tensor:
        angle = 2 * math.pi / COMPONENTS * _parts(count, parts).to(torch.float32)
        along, across = 1 + 0.35 * torch.randn(count), 0.08 * torch.randn(count)
        plane = torch.stack([along * angle.cos() - across * angle.sin(), along * angle.sin() + across * angle.cos()], 1)
        return scale * torch.cat([plane, 0.15 * torch.randn(count, dimensions - 2)], 1)

    return Prior("mixture", dimensions, draw, COMPONENTS)


def swiss_roll(dimensions: int, scale: float = 1.0) -> Prior:
    """A spiral of two turns in the plane of the first two axes, uniform along its length, with deviations of 0.03 (times scale).

    Its parts are ten pieces of equal length, from the inside out. Raises UserError for fewer than two dimensions.
    """
    _at_least_two("swiss-roll", dimensions)

    def draw(count: int, parts: Tensor | None) -> Tensor:
        along = (_parts(count, parts) + torch.rand(count)) / COMPONENTS
        # The length of an Archimedean spiral grows about as the square of its angle.
        turn = along.sqrt()
        angle = 4 * math.pi * turn
        plane = turn[:, None] * torch.stack([angle.cos(), angle.sin()], 1)
        noise = 0.03 * torch.randn(count, dimensions)
        return scale * (F.pad(plane, (0, dimensions - 2)) + noise)

    return Prior("swiss-roll", dimensions, draw, COMPONENTS)


def categorical(categories: int) -> Prior:
    """One-hot vectors, each as likely as the others; part k is the k-th."""

    def draw(count: int, parts: Tensor | None) -> Tensor:
        return F.one_hot(_parts(count, parts, categories), categories).to(torch.float32)

    return Prior("categorical", categories, draw, categories)


def of_samples(path: Path, dimensions: int, scale: float = 1.0) -> Prior:
    """The samples `[M, dimensions]` in an .npy file, drawn with replacement. Raises UserError for a file that does not fit."""
    try:
        values = numpy.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"--prior {path} cannot be read ({reason_of(error, 100)}); save an array with numpy.save") from None
    if not isinstance(values, numpy.ndarray) or values.ndim != 2 or not len(values) or values.dtype.kind not in "fiu":
        shape = getattr(values, "shape", None)
        raise UserError(f"--prior {path} must hold numbers [samples, {dimensions}], but its array is {shape}")
    samples = torch.from_numpy(values.astype(numpy.float32))
    _check(path.name, samples, dimensions)
    return Prior(str(path), dimensions, lambda count, parts: scale * samples[torch.randint(len(samples), (count,))])


def of_generator(path: Path, dimensions: int, scale: float = 1.0) -> Prior:
    """The w of the generator in a file. Raises UserError if there is none, or its w has other dimensions."""
    generator = load_generator(path)
    if generator.latent_dim != dimensions:
        raise UserError(
            f"the w of {path} are {generator.latent_dim} numbers: give --style {generator.latent_dim}, not {dimensions}"
        )

    @torch.no_grad()
    def draw(count: int, parts: Tensor | None) -> Tensor:
        return scale * generator.map(torch.randn(count, dimensions)).float()

    return Prior("generator", dimensions, draw)


def of_function(name: str, dimensions: int, scale: float = 1.0) -> Prior:
    """MODULE:FUNCTION, a function of the number of samples that returns an array or tensor. Raises UserError if there is none."""
    module, _, attribute = name.partition(":")
    try:
        function = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"--prior {name} cannot be had ({reason_of(error, 100)}); name MODULE:FUNCTION") from None

    def draw(count: int, parts: Tensor | None) -> Tensor:
        samples = torch.as_tensor(function(count)).to(torch.float32)
        if len(samples) != count:
            raise UserError(f"--prior {name} returned {list(samples.shape)} when asked for {count} samples")
        _check(name, samples, dimensions)
        return scale * samples

    draw(2, None)
    return Prior(name, dimensions, draw)


MADE = {"gaussian": gaussian, "uniform": uniform, "mixture": mixture, "swiss-roll": swiss_roll}


def make(name: str, dimensions: int, scale: float = 1.0, generator: Path | None = None) -> Prior:
    """The prior that an option names, "generator" with the generator's file. Raises UserError for one that there is not, or of
    other dimensions."""
    if (name == "generator") != (generator is not None):
        raise UserError(f"--prior generator and --generator go together, but --prior is {name} and --generator is {generator}")
    if generator is not None:
        return of_generator(generator, dimensions, scale)
    if name in MADE:
        return MADE[name](dimensions, scale)
    if ":" in name:
        return of_function(name, dimensions, scale)
    if name.endswith(".npy"):
        return of_samples(Path(name), dimensions, scale)
    raise UserError(f"there is no prior {name}; there are {', '.join(MADE)}, generator, a file NAME.npy and MODULE:FUNCTION")


def _parts(count: int, parts: Tensor | None, components: int = COMPONENTS) -> Tensor:
    """Which part each sample is of, where it is not told: any."""
    drawn = torch.randint(components, (count,))
    return drawn if parts is None else torch.where(parts < 0, drawn, parts)


def _check(name: object, samples: Tensor, dimensions: int) -> None:
    if samples.ndim != 2 or samples.shape[1] != dimensions:
        raise UserError(
            f"--prior {name} gives samples {list(samples.shape)}, but --style {dimensions} asks for {dimensions} numbers"
        )
    if not bool(samples.isfinite().all()):
        raise UserError(f"--prior {name} gives numbers that are not finite")


def _at_least_two(name: str, dimensions: int) -> None:
    if dimensions < 2:
        raise UserError(f"--prior {name} lies in a plane: --style must be 2 or more, got {dimensions}")
