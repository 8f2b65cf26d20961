# SPDX-License-Identifier: Apache-2.0
"""Random views of pictures: what SimCLR calls the same picture (arXiv 2002.05709, appendix A)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from gangealing_fast.ops import grid_sample


def random_view(images: Tensor, *, mirror: bool = True) -> Tensor:
    """A crop of a quarter to the whole area, mirrored at random, with other colours, `[N, 3, H, W]` in [-1, 1] → the same shape.

    Random numbers come from torch's default generator.
    """
    n, device = images.shape[0], images.device
    side = (0.25 + 0.75 * torch.rand(n, device=device)).sqrt()
    stretch = torch.exp((torch.rand(n, device=device) * 2 - 1) * 0.25)
    width, height = (side * stretch.sqrt()).clamp_max(1), (side / stretch.sqrt()).clamp_max(1)
    x = (torch.rand(n, device=device) * 2 - 1) * (1 - width)
    y = (torch.rand(n, device=device) * 2 - 1) * (1 - height)
    sign = torch.where(torch.rand(n, device=device) < 0.5, -1.0, 1.0) if mirror else torch.ones(n, device=device)
    zero = torch.zeros_like(x)
    matrix = torch.stack([torch.stack([width * sign, zero, x], 1), torch.stack([zero, height, y], 1)], 1)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    return _recolour(grid_sample(images, grid.to(images.dtype), padding_mode="border"))


def _recolour(images: Tensor) -> Tensor:
    """Brightness, contrast and saturation for four of five pictures, grey for one of five."""
    n, device = images.shape[0], images.device

    def draw(strength: float) -> Tensor:
        used = (torch.rand(n, 1, 1, 1, device=device) < 0.8).to(images.dtype)
        return (torch.rand(n, 1, 1, 1, device=device).to(images.dtype) * 2 - 1) * strength * used

    images = images + draw(0.4)
    mean = images.mean((1, 2, 3), keepdim=True)
    images = mean + (images - mean) * torch.exp(draw(0.6))
    grey = images.mean(1, keepdim=True)
    saturation = torch.exp(draw(0.6)) * (torch.rand(n, 1, 1, 1, device=device) >= 0.2).to(images.dtype)
    return (grey + (images - grey) * saturation).clamp(-1, 1)


def contrastive_loss(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """NT-Xent (arXiv 2002.05709, eq. 1) of embeddings `[N, D]` of two views: each finds its partner among 2N - 1."""
    if first.shape != second.shape or first.ndim != 2 or first.shape[0] < 2:
        raise ValueError(f"two views of 2 or more embeddings [N, D] are needed, got {list(first.shape)} and {list(second.shape)}.")
    n = first.shape[0]
    both = F.normalize(torch.cat([first, second]).float(), dim=1)
    similarity = both @ both.T / temperature
    similarity = similarity.masked_fill(torch.eye(2 * n, dtype=torch.bool, device=both.device), -torch.inf)
    partner = torch.arange(2 * n, device=both.device).roll(n)
    return F.cross_entropy(similarity, partner)
