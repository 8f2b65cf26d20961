# SPDX-License-Identifier: Apache-2.0
"""A similarity transformer that looks at pictures with frozen EfficientNet features instead of layers learned from scratch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gangealing_fast.models.efficientnet import EfficientNetPerceptual
from gangealing_fast.models.layers import normalised
from gangealing_fast.models.warp_heads import SimilarityHead

STAGES, SCALE = (2, 3), 16  # those that still tell where things are: 8x8 and 4x4 places of a picture of 64x64
FINE, COARSE = 40, 80
SMALLEST = 64
CHANNELS, DENSE = 128, 256


def places(size: int) -> int:
    """How many places the coarser features of a picture of side `size`, a power of two, have along each axis."""
    return max(size, SMALLEST) // SCALE


class FeatureSimilarityTransformer(nn.Module):
    """Pictures `[N, 3, size, size]` to similarity matrices `[N, 2, 3]`; the identity at the start of training.

    Features of EfficientNet-Lite0 at 1/8 and 1/16 of the size, of unit root mean square over channels at every place; four
    convolutions and two dense layers learn what to make of them. The frozen weights are part of the state dict.
    """

    def __init__(self, size: int, heads: int = 1) -> None:
        super().__init__()
        self.look = EfficientNetPerceptual(STAGES, min_size=SMALLEST, fused=True)
        self.fine = nn.Sequential(
            nn.Conv2d(FINE, CHANNELS // 2, 3, padding=1), nn.ReLU(), nn.Conv2d(CHANNELS // 2, CHANNELS, 4, stride=2, padding=1)
        )
        self.coarse = nn.Conv2d(COARSE, CHANNELS, 3, padding=1)
        self.both = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.dense = nn.Linear(CHANNELS * places(size) ** 2, DENSE)
        self.warp_head = SimilarityHead(DENSE, heads)

    def features(self, x: Tensor) -> Tensor:
        fine, coarse = (normalised(found.float()) for found in self.look.features(x))
        found = torch.relu(self.both(torch.relu(self.fine(fine) + self.coarse(coarse))))
        return torch.relu(self.dense(found.flatten(1)))

    def forward(self, x: Tensor, assignment: Tensor | None = None) -> Tensor:
        return self.warp_head(self.features(x), assignment)
