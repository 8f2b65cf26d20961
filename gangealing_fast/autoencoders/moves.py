# SPDX-License-Identifier: Apache-2.0
"""Random affine maps of the pictures that an autoencoder learns from: as if there were more of them."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from gangealing_fast.ops import grid_sample


def moved(images: Tensor, strength: float) -> Tensor:
    """Pictures `[N, C, S, S]`, each turned, sheared, scaled and shifted at random; as they are where strength is 0.

    At strength 1 angle and shear are uniform within 15 degrees, either scale within 15 % and either shift within 1/14 of the side,
    which is two pixels of MNIST's 28. What lies beyond the edge is the edge. Random numbers come from torch's default generator.
    """
    if not strength:
        return images
    count = len(images)
    drawn = strength * (2 * torch.rand(count, 6) - 1)
    angle, shear = (math.pi / 12 * drawn[:, :2]).unbind(1)
    across, down = (0.15 * drawn[:, 2:4]).exp().unbind(1)
    cos, sin = angle.cos(), angle.sin()
    # Output pixel to input pixel: shear first, then scale, then turn.
    first = torch.stack([cos * across, (cos * shear * across) - sin * down, drawn[:, 4] / 7], 1)
    second = torch.stack([sin * across, (sin * shear * across) + cos * down, drawn[:, 5] / 7], 1)
    grid = F.affine_grid(torch.stack([first, second], 1), list(images.shape), align_corners=False)
    return grid_sample(images, grid.to(images.device, images.dtype), padding_mode="border")
