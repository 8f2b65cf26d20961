# SPDX-License-Identifier: Apache-2.0
"""A similarity transformer that looks at pictures with frozen EfficientNet features instead of layers learned from scratch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gangealing_fast.models.efficientnet import EfficientNetPerceptual
from gangealing_fast.models.spatial_transformer import SimilarityHead

STAGE, SCALE, FEATURES = 3, 16, 80  # the last stage that tells where things are: 4x4 places of a picture of 64x64
SMALLEST = 64
CHANNELS, DENSE = 64, 128


def places(size: int) -> int:
    """How many of the network's features a picture of side `size`, a power of two, has along each axis."""
    return max(size, SMALLEST) // SCALE


class FeatureSimilarityTransformer(nn.Module):
    """Pictures `[N, 3, size, size]` to similarity matrices `[N, 2, 3]`; the identity at the start of training.

    Features of EfficientNet-Lite0 at 1/16 of the size, of unit root mean square over channels at every place; two convolutions and
    two dense layers learn what to make of them. The frozen weights are part of the state dict.
    """

    def __init__(self, size: int, heads: int = 1) -> None:
        super().__init__()
        self.look = EfficientNetPerceptual((STAGE,), min_size=SMALLEST)
        self.convs = nn.Sequential(
            nn.Conv2d(FEATURES, CHANNELS, 3, padding=1), nn.ReLU(), nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), nn.ReLU()
        )
        self.dense = nn.Linear(CHANNELS * places(size) ** 2, DENSE)
        self.warp_head = SimilarityHead(DENSE, heads)

    def features(self, x: Tensor) -> Tensor:
        found = self.look.features(x)[0].float()
        found = found * torch.rsqrt(found.square().mean(1, keepdim=True) + 1e-6)
        return torch.relu(self.dense(self.convs(found).flatten(1)))

    def forward(self, x: Tensor, assignment: Tensor | None = None) -> Tensor:
        return self.warp_head(self.features(x), assignment)
