# SPDX-License-Identifier: Apache-2.0
"""Differentiable augmentation of what the critic sees, so that a few thousand pictures suffice.

Each sample gets each group of transforms (flip, translation, similarity, colour, cutout) with probability p. Applied to real
and generated pictures alike with p < 1 the transforms do not leak into the generator (Karras et al. 2020, arXiv 2006.06676,
section 2.2). p is fixed, or adapted so that the fraction of real pictures the critic calls real stays near a target (eq. 1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gangealing_fast.ops import grid_sample


def _chosen(n: int, p: float, device: torch.device) -> Tensor:
    return (torch.rand(n, device=device) < p).float()


def _geometry(images: Tensor, p: float, strength: float) -> Tensor:
    """Translation by up to an eighth, rotation and scaling: one bilinear resampling for all."""
    n, device = images.shape[0], images.device
    shift = (torch.rand(n, 2, device=device) * 2 - 1) * 0.25 * _chosen(n, p, device)[:, None]
    similar = _chosen(n, p * strength, device)
    scale = torch.exp2(torch.randn(n, device=device) * 0.2 * similar)
    angle = (torch.rand(n, device=device) * 2 - 1) * (math.pi / 12) * similar
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    matrix = torch.stack([torch.stack([cos, -sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)], 1)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    return grid_sample(images, grid.to(images.dtype), padding_mode="reflection")


def _colour(images: Tensor, p: float) -> Tensor:
    n, device = images.shape[0], images.device
    brightness = torch.randn(n, 1, 1, 1, device=device) * 0.2 * _chosen(n, p, device)[:, None, None, None]
    contrast = torch.exp2(torch.randn(n, 1, 1, 1, device=device) * 0.5 * _chosen(n, p, device)[:, None, None, None])
    saturation = torch.exp2(torch.randn(n, 1, 1, 1, device=device) * 0.7 * _chosen(n, p, device)[:, None, None, None])
    grey = images.mean(1, keepdim=True)
    images = grey + (images - grey) * saturation
    return images * contrast + brightness


def _cutout(images: Tensor, p: float) -> Tensor:
    n, _, h, w = images.shape
    centre = torch.rand(n, 2, device=images.device)
    used = _chosen(n, p, images.device)[:, None, None]
    rows = (torch.arange(h, device=images.device) + 0.5) / h
    columns = (torch.arange(w, device=images.device) + 0.5) / w
    inside = ((rows[None, :, None] - centre[:, 0, None, None]).abs() < 0.25) & (
        (columns[None, None, :] - centre[:, 1, None, None]).abs() < 0.25
    )
    return images * (1 - inside.float() * used)[:, None].to(images.dtype)


@dataclass
class Augmentation:
    """p: probability of each transform. target: what mean sign of the real logits p is steered to; None keeps p fixed.

    speed: pictures it takes p to go from 0 to 1. geometry: whether rotation and scaling join the translation.
    """

    p: float = 0.0
    target: float | None = 0.6
    speed: int = 100_000
    maximum: float = 0.8
    similarity: float = 0.5

    def __call__(self, images: Tensor) -> Tensor:
        """Pictures `[N, 3, H, W]` → augmented pictures of the same shape; the identity where p is 0."""
        if self.p <= 0:
            return images
        return _cutout(_colour(_geometry(images, self.p, self.similarity), self.p), self.p * 0.5)

    def adapt(self, real_logits: Tensor) -> None:
        """Move p one step towards keeping `mean(sign(real_logits))` at the target."""
        if self.target is None:
            return
        direction = 1.0 if real_logits.sign().mean().item() > self.target else -1.0
        self.p = min(self.maximum, max(0.0, self.p + direction * real_logits.shape[0] / self.speed))
