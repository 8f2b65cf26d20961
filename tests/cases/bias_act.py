# SPDX-License-Identifier: Apache-2.0
"""Cases of bias_act for whatever implements it: ranks, noise, slopes, odd sizes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """`shape` of x and the operator's keywords.

    bias: whether there is one. noise_batch: samples of the noise, 0 for no noise. small: a shape for finite differences.
    """

    shape: tuple[int, ...]
    keywords: dict[str, Any] = field(default_factory=dict)
    bias: bool = True
    noise_batch: int = 0
    small: tuple[int, ...] | None = None

    def tensors(self, dtype: torch.dtype = torch.float64, *, small: bool = False) -> list[Tensor | None]:
        """[x, b, noise, noise_strength], the same on every call, None for what the case leaves out.

        No argument of the activation comes near zero, where it has a kink and no gradient to check.
        """
        shape = self.small if small and self.small else self.shape
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(shape, dtype=torch.float64, generator=generator)
        x = x + 0.6 * x.sign()
        b = 0.1 * (torch.rand(shape[1], dtype=torch.float64, generator=generator) - 0.5) if self.bias else None
        noise = strength = None
        if self.noise_batch:
            noise = 2 * torch.rand(self.noise_batch, 1, *shape[2:], dtype=torch.float64, generator=generator) - 1
            strength = torch.full((1,), 0.3, dtype=torch.float64)
        return [None if t is None else t.to(dtype) for t in (x, b, noise, strength)]


CASES = {
    "bias": Case((2, 5, 7, 3)),
    "no bias": Case((2, 3, 4, 5), bias=False),
    "channels of 16": Case((2, 32, 5, 3), small=(2, 5, 5, 3)),
    "many channels, many pixels": Case((2, 19, 23, 29), small=(1, 3, 2, 2)),
    "matrix": Case((6, 9), {"gain": 1.0}),
    "sequence": Case((2, 3, 7)),
    "volume": Case((2, 3, 2, 3, 2)),
    "linear": Case((2, 3, 4, 5), {"slope": 1.0, "gain": 1.0}),
    "relu": Case((2, 3, 4, 5), {"slope": 0.0}),
    "noise": Case((3, 4, 5, 4), noise_batch=3, small=(3, 2, 3, 2)),
    "shared noise": Case((3, 4, 5, 4), noise_batch=1, small=(3, 2, 3, 2)),
    "noise alone": Case((2, 3, 5, 7), bias=False, noise_batch=2, small=(2, 2, 2, 3)),
    "noise over many channels": Case((2, 67, 5, 9), noise_batch=1, small=(2, 2, 2, 3)),
}
