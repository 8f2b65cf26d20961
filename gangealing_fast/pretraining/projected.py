# SPDX-License-Identifier: Apache-2.0
"""Projected discriminator (Sauer et al. 2021, arXiv 2111.01007): the critic sees frozen features of a pretrained network.

The four taps of the backbone are mixed across channels (random 1x1 convolutions) and across scales (random 3x3 convolutions on
the upsampled coarser map, top down); neither is ever trained. A small spectrally normalised critic looks at each scale.
The paper reports far fewer pictures until samples are recognisable; that is not reproduced here yet (docs/results.md).
Written from the paper; the critics here have no batch normalisation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

Features = Callable[[Tensor], Sequence[Tensor]]


class _ScaleCritic(nn.Module):
    """Strided convolutions down to 4x4, then one logit."""

    def __init__(self, channels: int, resolution: int, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        while resolution > 4:
            layers += [spectral_norm(nn.Conv2d(channels, width, 4, stride=2, padding=1)), nn.LeakyReLU(0.2)]
            channels, width, resolution = width, min(2 * width, 256), resolution // 2
        layers += [spectral_norm(nn.Conv2d(channels, channels, 3, padding=1)), nn.LeakyReLU(0.2)]
        layers.append(spectral_norm(nn.Conv2d(channels, 1, resolution)))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).flatten(1).squeeze(1)


class ProjectedDiscriminator(nn.Module):
    """Pictures `[N, 3, H, W]` in [-1, 1] → logits `[4 N]`, one per sample and scale.

    features: maps pictures to feature maps, finest first, each half the size of the one before or equal to it.
    size: picture side. width: channels of the mixed maps.
    """

    def __init__(self, features: Features, size: int, width: int = 64) -> None:
        super().__init__()
        # A frozen backbone belongs neither to the optimiser nor to the checkpoint.
        self._features = [features]
        with torch.no_grad():
            taps = features(torch.zeros(1, 3, size, size))
        self.mix_channels = nn.ModuleList(nn.Conv2d(tap.shape[1], width, 1) for tap in taps)
        self.mix_scales = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in taps[1:])
        for module in (*self.mix_channels, *self.mix_scales):
            nn.init.kaiming_normal_(module.weight)
            nn.init.zeros_(module.bias)
            module.requires_grad_(False)
        self.critics = nn.ModuleList(_ScaleCritic(width, tap.shape[2], 2 * width) for tap in taps)

    def forward(self, images: Tensor) -> Tensor:
        taps = self._features[0](images)
        mixed = [mix(tap) for mix, tap in zip(self.mix_channels, taps, strict=True)]
        for k in range(len(mixed) - 2, -1, -1):
            coarse = F.interpolate(mixed[k + 1], size=mixed[k].shape[2:], mode="bilinear", align_corners=False)
            mixed[k] = (mixed[k] + self.mix_scales[k](coarse)) * 0.5**0.5
        return torch.cat([critic(x).float() for critic, x in zip(self.critics, mixed, strict=True)])
