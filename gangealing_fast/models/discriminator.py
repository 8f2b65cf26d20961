# SPDX-License-Identifier: Apache-2.0
"""StyleGAN2 discriminator: residual blocks, standard deviation over the minibatch (arXiv 1912.04958; 1710.10196, section 3)."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from gangealing_fast.models.dcgan import Described
from gangealing_fast.models.generator import Widths
from gangealing_fast.models.layers import ConvLayer, EqualLinear, ResBlock, activation_format


def minibatch_deviation(x: Tensor, group: int = 4) -> Tensor:
    """Append one map with the mean standard deviation over groups of `group` samples: `[N, C, H, W]` → `[N, C + 1, H, W]`."""
    n, c, h, w = x.shape
    group = math.gcd(n, group)
    y = x.float().reshape(group, n // group, c, h, w)
    deviation = (y.var(0, unbiased=False) + 1e-8).sqrt().mean((1, 2, 3), keepdim=True)
    return torch.cat([x, deviation.repeat(group, 1, h, w).to(x.dtype)], 1)


class Discriminator(nn.Module):
    """Pictures `[N, 3, size, size]` in [-1, 1] → logits `[N]`, or `[N, outputs]` where outputs is more than 1.

    group: over how many samples the standard deviation goes; 1 judges each sample for itself. features: return `Described`, the
    logits with the last layer's input. Other arguments as `Generator`.
    """

    def __init__(
        self,
        size: int,
        channel_multiplier: float = 2.0,
        *,
        max_channels: int = 512,
        channel_base: int | None = None,
        outputs: int = 1,
        group: int = 4,
        features: bool = False,
    ) -> None:
        super().__init__()
        self.widths = widths = Widths(channel_multiplier, max_channels, channel_base)
        blocks: list[nn.Module] = [ConvLayer(3, widths.at(size), 1)]
        resolution = size
        while resolution > 4:
            blocks.append(ResBlock(widths.at(resolution), widths.at(resolution // 2)))
            resolution //= 2
        top = widths.at(4)
        self.size, self.outputs, self.group, self.features = size, outputs, group, features
        self.convs = nn.Sequential(*blocks)
        self.final_conv = ConvLayer(top + 1, top, 3)
        self.final_linear = nn.Sequential(EqualLinear(top * 16, top, activation=True), EqualLinear(top, outputs))

    def config(self) -> dict[str, Any]:
        """The constructor's arguments: `Discriminator(**config)` rebuilds the network."""
        widths = asdict(self.widths)
        shape = {"channel_multiplier": widths["multiplier"], "max_channels": widths["maximum"], "channel_base": widths["base"]}
        return shape | {name: getattr(self, name) for name in ("size", "outputs", "group", "features")}

    def forward(self, images: Tensor) -> Tensor | Described:
        if images.dim() != 4 or images.shape[1:] != (3, self.size, self.size):
            raise ValueError(f"Discriminator: images must be [N, 3, {self.size}, {self.size}], got {list(images.shape)}")
        x = self.convs(images.contiguous(memory_format=activation_format()))
        # What tells samples of one batch apart may be small beside the features: float32 keeps it.
        with torch.autocast(x.device.type, enabled=False):
            x = self.final_conv(minibatch_deviation(x.to(self.final_conv.convolution.weight.dtype), self.group))
            x = self.final_linear[0](x.flatten(1))
            logits = self.final_linear[1](x)
            logits = logits.squeeze(1) if self.outputs == 1 else logits
            return Described(logits, x) if self.features else logits
