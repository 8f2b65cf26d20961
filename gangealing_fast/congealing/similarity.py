# SPDX-License-Identifier: Apache-2.0
"""Congealing: joint alignment of a stack by minimising its pixelwise entropy over one similarity transform per image.

The classical method that learned alignment is compared with, after Learned-Miller, "Data Driven Image Models through
Continuous Joint Alignment", PAMI 28(2), 2006. Every image x_i has parameters (rotation, log scale, shift x, shift y);
the stack x_i∘W_i has at pixel p the mean m(p), the chance of ink there, and the objective is Σ_p h(m(p)) with h the
binary entropy. Coordinate descent: each parameter of each image in turn is moved by a step if that lowers the
objective. As in the paper far transforms are penalised, the mean transform is taken out after every sweep, so that the
stack cannot lower its entropy by shrinking, and the images start out blurred. Two liberties, both for speed and reach:
all images decide at the same time against one mean, each with its own share of it replaced; and steps fall from coarse
to fine with the blur.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, conv2d, grid_sample, pad

from gangealing_fast.geometry.warps import similarity_matrix

STEPS = (math.radians(20.0), 0.16, 0.16, 0.16)
"""Coarsest step of each parameter: radians, log scale, and shifts in normalised units (the picture is 2 wide)."""
SPREAD = (math.radians(45.0), 0.35, 0.35, 0.35)
"""Size of each parameter that costs one `penalty`."""
FACTORS = (-1.0, -0.5, 0.5, 1.0)
"""The moves that are tried, in steps."""


@torch.no_grad()
def congeal(
    images: Tensor,
    iterations: int = 10,
    *,
    blurs: tuple[float, ...] = (0.1, 0.06, 0.03, 0.015, 0.0),
    decay: float = 0.7,
    penalty: float = 5.0,
) -> Tensor:
    """Align a stack; returns matrices [N, 2, 3] from template (output) to image coordinates, normalised, edges at ±1.

    `grid_sample(images, affine_grid(matrices, ...))` with `align_corners=False` gives the aligned stack.

    Args:
        images: [N, C, H, W] in [0, 1], N >= 1, dark (0) where there is nothing; read as 0 beyond their edges.
        iterations: sweeps over the four parameters at each blur.
        blurs: standard deviations in parts of the larger side, one stage each.
        decay: of the steps over one stage.
        penalty: bits of one image's share of the entropy that a transform costs at `SPREAD`. Without it an odd one out
            leaves its frame: an empty picture agrees with all others wherever they have no ink.

    Deterministic. Raises ValueError for other shapes or values outside [0, 1].
    """
    if images.dim() != 4 or images.shape[0] == 0:
        raise ValueError(f"images must be a non-empty [N, C, H, W], got {tuple(images.shape)}")
    images = images.detach().to(torch.float32)
    if not bool(((images >= 0) & (images <= 1)).all()):
        raise ValueError("images must lie in [0, 1] and be finite; map [-1, 1] there with (x + 1) / 2")
    if iterations < 0 or not 0 < decay <= 1 or penalty < 0:
        raise ValueError(
            f"iterations and penalty must not be negative and decay must be in (0, 1], got {iterations}, {penalty} and {decay}"
        )
    parameters = images.new_zeros(images.shape[0], 4)
    steps = images.new_tensor(STEPS)
    for stage, blur in enumerate(blurs):
        blurred = _blur(images, blur * max(images.shape[2:]))
        for sweep in range(iterations):
            scale = decay ** (stage + sweep / iterations)
            parameters = _sweep(blurred, parameters, steps * scale, penalty)
            parameters = _recentre(parameters)
    return similarity_matrix(*parameters.unbind(1))


def soft_stack_entropy(images: Tensor) -> Tensor:
    """The objective: mean over pixels and channels of h(mean of the stack), in bits. images: [N, C, H, W] in [0, 1]."""
    return _entropy(images.mean(0)).mean()


def _sweep(images: Tensor, parameters: Tensor, steps: Tensor, penalty: float) -> Tensor:
    """Move every parameter once, in each image if that lowers the entropy of the stack."""
    count = images.shape[0]
    factors = images.new_tensor(FACTORS)
    repeated = images.repeat(len(FACTORS), 1, 1, 1)
    current = _warp(images, parameters)
    for coordinate in range(4):
        move = images.new_zeros(len(FACTORS), 1, 4)
        move[:, 0, coordinate] = factors * steps[coordinate]
        tried = parameters + move
        warped = _warp(repeated, tried.reshape(-1, 4)).view(len(FACTORS), *images.shape)
        rest = current.mean(0) - current / count
        before = _entropy(rest + current / count).sum((1, 2, 3)) + _distance(parameters) * (penalty / count)
        gains = _entropy(rest + warped / count).sum((2, 3, 4)) + _distance(tried) * (penalty / count) - before
        gain, choice = gains.min(0)
        better = gain < 0
        sample = torch.arange(count, device=images.device)
        parameters = torch.where(better[:, None], tried[choice, sample], parameters)
        current = torch.where(better[:, None, None, None], warped[choice, sample], current)
    return parameters


def _distance(parameters: Tensor) -> Tensor:
    return (parameters / parameters.new_tensor(SPREAD)).square().sum(-1)


def _recentre(parameters: Tensor) -> Tensor:
    """Right-multiply all transforms with the one that makes mean rotation, log scale and shift zero."""
    common = parameters[:, :2].mean(0)
    linear = similarity_matrix(*parameters.unbind(1))[:, :, :2]
    shift = -torch.linalg.solve(linear.mean(0), parameters[:, 2:].mean(0))
    moved = parameters[:, 2:] + linear @ shift
    return torch.cat([parameters[:, :2] - common, moved], 1)


def _warp(images: Tensor, parameters: Tensor) -> Tensor:
    grid = affine_grid(similarity_matrix(*parameters.unbind(1)), list(images.shape), align_corners=False)
    return grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _entropy(mean: Tensor) -> Tensor:
    mean = mean.clamp(1e-6, 1 - 1e-6)
    return -(mean * mean.log2() + (1 - mean) * (1 - mean).log2())


def _blur(images: Tensor, sigma: float) -> Tensor:
    if sigma <= 0:
        return images
    radius = max(1, math.ceil(3 * sigma))
    kernel = torch.exp(-torch.arange(-radius, radius + 1, dtype=images.dtype).square() / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    flat = pad(images.reshape(-1, 1, *images.shape[2:]), (radius,) * 4)
    return conv2d(conv2d(flat, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1)).view_as(images)
