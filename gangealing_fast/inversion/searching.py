# SPDX-License-Identifier: Apache-2.0
"""The search for the latent that makes a given picture: gradient descent through the generator, for many pictures at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gangealing_fast.metrics.perceptual import Distance
from gangealing_fast.models.generator import Generator
from gangealing_fast.training.optim import AdamEma

NOISE_WEIGHT = 1e-3
"""Of the penalty on noise that holds the picture; small beside a perceptual distance of some tenths."""


class Inversion(NamedTuple):
    """w: `[N, D]`, or `[N, layers, D]` of a search in w+. images `[N, 3, S, S]`: what the generator makes of it. distance `[N]`:
    perceptual, to the pictures. noise: the noise of the generator's layers, `[N, 1, r, r]` each; None for its own fixed noise.
    history `[steps + 1, N]`: the distance before each step and after the last."""

    w: Tensor
    images: Tensor
    distance: Tensor
    noise: list[Tensor] | None
    history: Tensor


def search(
    generator: Generator,
    perceptual: Distance,
    pictures: Tensor,
    start: Tensor,
    deviation: float,
    *,
    steps: int = 100,
    rate: float = 0.1,
    w_plus: bool = False,
    noise: bool = False,
    pixel_weight: float = 1.0,
) -> Inversion:
    """The latents near `start` whose pictures are nearest to `pictures` `[N, 3, S, S]` in [-1, 1] (Karras et al., arXiv 1912.04958,
    appendix D: projection).

    Adam on w in units of `deviation`, whose rate falls from `rate` to 0 by a cosine; of the latents on the way those are returned
    whose pictures were the nearest by the perceptual distance. start: `[N, D]`, or `[N, layers, D]`. No picture looks at another:
    the result of each is that of a search of its own, but for rounding. steps 0 looks at the start alone.
    noise: search the noise of the layers too, kept at mean 0 and deviation 1 and from resembling itself when shifted.
    The generator's parameters are left as they are. Raises ValueError for shapes that do not fit.
    """
    count = len(pictures)
    if start.shape[0] != count or start.shape[-1] != generator.latent_dim or pictures.shape[2:] != (generator.size,) * 2:
        raise ValueError(
            f"{list(pictures.shape)} pictures and a start of {list(start.shape)} do not fit a generator of {generator.size}x"
            f"{generator.size} pictures and latents of {generator.latent_dim} numbers."
        )
    begin = start.detach().float()
    if w_plus and begin.ndim == 2:
        begin = begin[:, None].repeat(1, generator.n_latent, 1)
    moved = torch.zeros_like(begin, requires_grad=True)
    layers = [buffer.expand(count, -1, -1, -1).clone() for buffer in generator.noises.buffers()] if noise else []
    searched = [layer.requires_grad_(True) for layer in layers]
    optimizer = AdamEma([moved, *searched], rate, (0.9, 0.999))
    best = Inversion(begin, pictures, torch.full((count,), math.inf, device=pictures.device), layers or None, pictures)
    history: list[Tensor] = []
    for step in range(steps + 1):
        with torch.set_grad_enabled(step < steps):
            w = begin + deviation * moved
            images = generator.synthesize(w, searched or "fixed").float()
            distance = perceptual(images, pictures)
        history.append(distance.detach())
        best = _nearer(best, w, images, distance, searched)
        if step == steps:
            break
        errors = F.mse_loss(images, pictures, reduction="none").mean((1, 2, 3))
        loss = (distance + pixel_weight * errors).sum() + NOISE_WEIGHT * sum(
            (_likeness(layer) for layer in searched), moved.new_zeros(())
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.step()
        _normalise(searched)
    return best._replace(history=torch.stack(history))


@torch.no_grad()
def _nearer(best: Inversion, w: Tensor, images: Tensor, distance: Tensor, noise: Sequence[Tensor]) -> Inversion:
    """`best` with what is nearer now."""
    is_nearer = distance < best.distance

    def chosen(new: Tensor, old: Tensor) -> Tensor:
        return torch.where(is_nearer.reshape(-1, *[1] * (new.ndim - 1)), new.detach(), old)

    kept = None if best.noise is None else [chosen(new, old) for new, old in zip(noise, best.noise, strict=True)]
    return Inversion(
        chosen(w, best.w), chosen(images, best.images), torch.where(is_nearer, distance, best.distance), kept, best.history
    )


def _likeness(noise: Tensor) -> Tensor:
    """How much noise `[N, 1, r, r]` resembles itself shifted by a pixel, at all sizes down to 8 (arXiv 1912.04958, appendix D)."""
    total = noise.new_zeros(())
    while True:
        for axis in (2, 3):
            total = total + (noise * noise.roll(1, axis)).mean((1, 2, 3)).square().sum()
        if noise.shape[2] <= 8:
            return total
        noise = 2 * F.avg_pool2d(noise, 2)


@torch.no_grad()
def _normalise(layers: Sequence[Tensor]) -> None:
    """Bring each picture's noise of each layer to mean 0 and deviation 1."""
    for layer in layers:
        layer.sub_(layer.mean((2, 3), keepdim=True))
        layer.div_(layer.square().mean((2, 3), keepdim=True).sqrt().clamp(min=1e-8))
