# SPDX-License-Identifier: Apache-2.0
"""Cases of modulated_conv2d for whatever implements it: kernel sizes, resampling, activation, noise, odd and large sizes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

NAMES = ("x", "weight", "style", "bias", "noise", "noise_strength")


@dataclass(frozen=True)
class Case:
    """`shape` of x, output channels, kernel size and the operator's keywords.

    bias: whether the activation is fused. noise_batch: samples of the noise, 0 for no noise. filter_size: taps of an asymmetric
    low-pass filter, 0 for the default. quick: small enough for finite differences.
    """

    shape: tuple[int, int, int, int]
    out_channels: int
    kernel_size: int = 3
    keywords: dict[str, Any] = field(default_factory=dict)
    bias: bool = False
    noise_batch: int = 0
    filter_size: int = 0
    quick: bool = False

    def tensors(self, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
        """Those of `NAMES` that the case has, in that order, the same on every call.

        The bias is large for some channels and negative for others, so that both sides of the activation occur away from its kink.
        """
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, dtype=torch.float64, generator=generator)

        n, channels, height, width = self.shape
        fan_in = channels * self.kernel_size**2
        made = {
            "x": normal(*self.shape),
            "weight": normal(self.out_channels, channels, self.kernel_size, self.kernel_size) / fan_in**0.5,
            "style": 1 + 0.5 * normal(n, channels),
        }
        if self.bias:
            made["bias"] = 0.3 * normal(self.out_channels)
        if self.noise_batch:
            size = [2 * s if self.keywords.get("up") else s // 2 if self.keywords.get("down") else s for s in (height, width)]
            made["noise"] = normal(self.noise_batch, 1, *size)
            made["noise_strength"] = torch.full((1,), 0.3, dtype=torch.float64)
        return {name: tensor.to(dtype) for name, tensor in made.items()}

    def filter(self, dtype: torch.dtype = torch.float64) -> Tensor | None:
        """The low-pass filter to pass as `f`, or None."""
        if not self.filter_size:
            return None
        taps = torch.arange(1, self.filter_size + 1, dtype=torch.float64)
        taps = torch.outer(taps, taps.flip(0) + 1)
        return (taps / taps.sum()).to(dtype)


CASES = {
    "plain": Case((2, 2, 2, 3), 2, quick=True),
    "odd sizes": Case((2, 3, 5, 8), 4),
    "one pixel": Case((2, 3, 1, 1), 2, quick=True),
    "up": Case((2, 2, 2, 3), 2, keywords={"up": True}, quick=True),
    "down": Case((2, 2, 4, 2), 2, keywords={"down": True}, quick=True),
    "down, odd size": Case((1, 2, 7, 5), 3, keywords={"down": True}),
    "not demodulated": Case((2, 2, 3, 2), 2, keywords={"demodulate": False}, quick=True),
    "to colour": Case((3, 20, 6, 5), 3, 1, keywords={"demodulate": False}),
    "1x1": Case((2, 5, 4, 3), 4, 1, bias=True, noise_batch=2),
    "1x1, up": Case((2, 3, 4, 3), 4, 1, keywords={"up": True}),
    "5x5": Case((2, 3, 6, 5), 4, 5),
    "5x5, up": Case((1, 3, 4, 5), 2, 5, keywords={"up": True}, filter_size=6),
    "activation": Case((2, 3, 4, 5), 4, bias=True),
    "activation and noise": Case((2, 2, 2, 3), 2, bias=True, noise_batch=2, quick=True),
    "shared noise, other slope": Case((3, 4, 5, 3), 5, keywords={"slope": 0.1, "gain": 1.5}, bias=True, noise_batch=1),
    "relu": Case((2, 3, 4, 5), 4, keywords={"slope": 0.0}, bias=True),
    "up, activation and noise": Case((2, 2, 2, 1), 2, keywords={"up": True}, bias=True, noise_batch=2, quick=True),
    "down, activation and noise": Case((2, 3, 4, 6), 4, keywords={"down": True}, bias=True, noise_batch=1),
    "other filter, up": Case((2, 3, 4, 5), 3, keywords={"up": True}, filter_size=3),
    "other filter, down": Case((2, 3, 6, 5), 3, keywords={"down": True}, filter_size=5),
    "channels of 32": Case((2, 32, 9, 11), 32, bias=True, noise_batch=2),
    "channels of 32, up": Case((2, 32, 7, 6), 32, keywords={"up": True}, bias=True, noise_batch=2),
    "channels of 32, down": Case((2, 32, 8, 10), 32, keywords={"down": True}),
    "odd channels": Case((2, 37, 13, 6), 35, bias=True),
    "odd channels, up": Case((2, 21, 5, 9), 19, keywords={"up": True}, bias=True),
    "more channels in than out": Case((1, 70, 16, 17), 18),
}
