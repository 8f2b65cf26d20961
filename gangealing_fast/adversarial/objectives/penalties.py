# SPDX-License-Identifier: Apache-2.0
"""Penalties on gradients: of the critic by its input, of the generator by its latents. All can be differentiated again."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gangealing_fast.ops._common import compute_dtype

if TYPE_CHECKING:
    from gangealing_fast.adversarial.objectives.record import Critic


def _norms(gradient: Tensor) -> Tensor:
    """`[N]`: the Euclidean norm over all axes but the first; its derivative at 0 is 0 instead of NaN."""
    squares = gradient.flatten(1).to(compute_dtype(gradient.dtype)).square().sum(1)
    positive = squares > 0
    return torch.where(positive, torch.where(positive, squares, 1.0).sqrt(), 0.0)


def gradient_norms(critic: Critic, points: Tensor) -> Tensor:
    """`[S, N]`: |∇ critic| at each of the points `[N, ...]`, for each of the critic's S scales; patches are averaged."""
    points = points.detach().requires_grad_(True)
    output = critic(points)
    found = []
    for scale in [output] if isinstance(output, Tensor) else output:
        share = scale.numel() // max(1, points.shape[0])
        (gradient,) = torch.autograd.grad(scale.sum() / max(1, share), points, create_graph=True)
        found.append(_norms(gradient))
    return torch.stack(found)


def gradient_penalty(critic: Critic, points: Tensor, target: float = 1.0) -> Tensor:
    """E (|∇ critic(x)| - target)² over the points `[N, ...]`: the two-sided penalty of arXiv 1704.00028, eq. 3. A scalar."""
    return (gradient_norms(critic, points) - target).square().mean()


def lines_between(real: Tensor, fake: Tensor) -> Tensor:
    """A uniform point on the line between each real sample and its generated partner, both `[N, ...]` (section 4 there).

    One position for a whole sample. Raises ValueError where the shapes differ.
    """
    if real.shape != fake.shape:
        raise ValueError(f"lines need real and generated samples of one shape, got {list(real.shape)} and {list(fake.shape)}")
    position = torch.rand(real.shape[0], *[1] * (real.dim() - 1), device=real.device, dtype=real.dtype)
    return torch.lerp(real.detach(), fake.detach(), position)


def near(real: Tensor, deviation: float) -> Tensor:
    """x + δ with δ ~ N(0, deviation² I), an own δ for every element of every sample `[N, ...]` (arXiv 1705.07215, eq. 1)."""
    return real.detach() + deviation * torch.randn_like(real)


def r1_penalty(real_logits: Tensor, real_images: Tensor) -> Tensor:
    """R1 (Mescheder et al. 2018, eq. 9 without gamma / 2): mean over samples of the squared gradient norm at real pictures.

    real_logits `[N]` must have been computed from `real_images` `[N, ...]` that require a gradient. Returns a scalar that can
    itself be differentiated with respect to the critic's weights.
    """
    (gradient,) = torch.autograd.grad(real_logits.sum(), real_images, create_graph=True)
    return gradient.square().flatten(1).sum(1).mean()


def path_lengths(images: Tensor, latents: Tensor) -> Tensor:
    """`[N]`: |J^T y| of StyleGAN2 (arXiv 1912.04958, eq. 4), y ~ N(0, 1 / (H W)) of the shape of `images` `[N, C, H, W]`.

    latents: `[N, D]`, or `[N, layers, D]`, of which the mean square over layers counts; the images were made from them. y is
    scaled so that lengths do not depend on the resolution (appendix B there).
    """
    noise = torch.randn_like(images) / math.sqrt(images.shape[2] * images.shape[3])
    (gradient,) = torch.autograd.grad((images * noise).sum(), latents, create_graph=True)
    squares = gradient.to(compute_dtype(gradient.dtype)).square()
    return squares.sum(-1).flatten(1).mean(1).sqrt() if gradient.dim() > 2 else squares.sum(-1).sqrt()


def path_length_penalty(lengths: Tensor, mean: Tensor, decay: float = 0.99) -> tuple[Tensor, Tensor]:
    """E (|J^T y| - a)² and the new a, the running mean of lengths `[N]` (eq. 4 and section 3.2 there); a `[]` starts at 0."""
    mean = mean.lerp(lengths.detach().mean().to(mean), 1 - decay)
    return (lengths - mean).square().mean(), mean
