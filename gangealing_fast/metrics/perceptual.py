# SPDX-License-Identifier: Apache-2.0
"""How much the pictures of a set resemble each other, and how sharp their average is."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Distance = Callable[[Tensor, Tensor], Tensor]


def random_pairs(count: int, pairs: int, generator: torch.Generator | None = None) -> Tensor:
    """`pairs` index pairs [P, 2] of different pictures among `count`, uniform, with replacement between pairs."""
    if count < 2:
        raise ValueError(f"pairs need at least two pictures, got {count}")
    first = torch.randint(count, (pairs,), generator=generator)
    second = torch.randint(count - 1, (pairs,), generator=generator)
    return torch.stack([first, second + (second >= first)], 1)


@torch.no_grad()
def mean_pairwise_distance(
    perceptual: Distance,
    images: Tensor,
    pairs: int | Tensor = 1000,
    generator: torch.Generator | None = None,
    batch: int = 50,
) -> Tensor:
    """Mean perceptual distance over pairs of different pictures: lower after alignment than before it.

    perceptual: maps two stacks [B, C, H, W] to [B]. images: [N, C, H, W] in [-1, 1]. pairs: how many random pairs, or
    the index pairs [P, 2] themselves, so that two sets can be compared on the same pairs. generator: draws the pairs
    (on the CPU). Returns a float64 scalar.
    """
    if images.dim() != 4:
        raise ValueError(f"images must be [N, C, H, W], got {tuple(images.shape)}")
    chosen = random_pairs(images.shape[0], pairs, generator) if isinstance(pairs, int) else pairs
    if chosen.dim() != 2 or chosen.shape[1] != 2 or chosen.shape[0] == 0:
        raise ValueError(f"pairs must be a positive number or index pairs [P, 2], got {tuple(chosen.shape)}")
    total = torch.zeros((), dtype=torch.float64)
    for some in chosen.to(images.device).split(batch):
        total += perceptual(images[some[:, 0]], images[some[:, 1]]).to(torch.float64).sum().cpu()
    return total / chosen.shape[0]


def average_image(images: Tensor) -> Tensor:
    """Mean picture [1, C, H, W] of a stack [N, C, H, W], accumulated in float64, returned as float32."""
    if images.dim() != 4 or images.shape[0] == 0:
        raise ValueError(f"images must be a non-empty [N, C, H, W], got {tuple(images.shape)}")
    return images.to(torch.float64).mean(0, keepdim=True).to(torch.float32)


def sharpness(image: Tensor) -> Tensor:
    """Mean gradient magnitude, per pixel, of the grey version of one picture, in units of its value range [0, 1].

    image: [C, H, W] or [1, C, H, W] in [-1, 1]. Forward differences on the common (H-1) x (W-1) window of
    (mean over channels + 1) / 2; the Euclidean norm of both is averaged. A float64 scalar: 0 for a flat picture; the
    average of an aligned set has the higher figure.
    """
    grey = _grey(image)
    horizontal = grey[:-1, 1:] - grey[:-1, :-1]
    vertical = grey[1:, :-1] - grey[:-1, :-1]
    return (horizontal.square() + vertical.square()).sqrt().mean()


def laplacian_variance(image: Tensor) -> Tensor:
    """Variance over inner pixels of the four-neighbour Laplacian of the grey picture in [0, 1]; float64 scalar."""
    grey = _grey(image)
    centre = grey[1:-1, 1:-1]
    laplacian = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * centre
    return laplacian.var(unbiased=False)


def _grey(image: Tensor) -> Tensor:
    if image.dim() == 4 and image.shape[0] == 1:
        image = image[0]
    if image.dim() != 3 or min(image.shape[1:]) < 3:
        raise ValueError(f"image must be one picture [C, H, W] of at least 3x3 pixels, got {tuple(image.shape)}")
    return (image.to(torch.float64).mean(0) + 1) / 2
