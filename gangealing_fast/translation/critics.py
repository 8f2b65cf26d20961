# SPDX-License-Identifier: Apache-2.0
"""The multi-scale critic of MUNIT (arXiv 1804.04732, section 5.1, after Wang et al. 2018): a picture, judged patch by patch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gangealing_fast.models.layers import activation_format
from gangealing_fast.ops import bilinear_downsample
from gangealing_fast.translation.networks import Activated, Convolution


class MultiScaleCritic(nn.Module):
    """Pictures `[N, 3, S, S]` to a list of scores `[N, 1, h, w]`, one for each scale, the finest first.

    width: channels after the first halving, doubled by each of the following. layers: halvings of one scale. scales: how many there
    are; each sees half the size of the one before, by an anti-aliased filter. A scale too small for all its halvings has fewer.
    """

    def __init__(self, side: int, *, width: int = 64, layers: int = 4, scales: int = 3) -> None:
        super().__init__()
        self.scales = nn.ModuleList(_scale(side >> k, width, layers) for k in range(scales))
        self.to(memory_format=activation_format())

    def forward(self, images: Tensor) -> list[Tensor]:
        x, scores = images.contiguous(memory_format=activation_format()), []
        for number, scale in enumerate(self.scales):
            x = x if number == 0 else bilinear_downsample(x, 2)
            scores.append(scale(x).float())
        return scores


class _Score(nn.Module):
    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.convolution, self.bias = Convolution(inputs, 1, 1), nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        score: Tensor = self.convolution(x) + self.bias.reshape(1, 1, 1, 1)
        return score


def _scale(side: int, width: int, layers: int) -> nn.Sequential:
    made: list[nn.Module] = []
    inputs, outputs = 3, width
    for _ in range(min(layers, max(1, side.bit_length() - 2))):
        made.append(Activated(inputs, outputs, 4, 2, 0.2))
        inputs, outputs = outputs, 2 * outputs
    return nn.Sequential(*made, _Score(inputs))
