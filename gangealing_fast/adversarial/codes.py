# SPDX-License-Identifier: Apache-2.0
"""Codes that a generator is told to show (arXiv 1606.03657, section 3; 1610.09585, section 3): the first entries of its latent."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Codes:
    """A category out of `categories` equally likely ones, and `continuous` numbers in (-1, 1).

    Codes are rows `[N, categories + continuous]`: the category one-hot, then the numbers.
    """

    categories: int
    continuous: int = 0

    @property
    def length(self) -> int:
        """Entries of a row of codes."""
        return self.categories + self.continuous

    def draw(self, n: int, device: torch.device | None = None) -> Tensor:
        """n random rows of codes."""
        category = torch.randint(self.categories, (n,), device=device)
        return self.of(category, torch.rand(n, self.continuous, device=device) * 2 - 1)

    def of(self, category: Tensor, numbers: Tensor) -> Tensor:
        """Codes of chosen categories `[N]` and numbers `[N, continuous]`."""
        return torch.cat([F.one_hot(category, self.categories).to(numbers.dtype), numbers], 1)

    def split(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Categories `[N]` and numbers `[N, continuous]` of codes. Raises ValueError for codes of another length."""
        if codes.dim() != 2 or codes.shape[1] != self.length:
            raise ValueError(f"codes must be [N, {self.length}], got {list(codes.shape)}")
        return codes[:, : self.categories].argmax(1), codes[:, self.categories :]

    def into(self, z: Tensor, codes: Tensor) -> Tensor:
        """Latents `[N, D]` whose first entries are the codes, scaled to a mean square of 1: StyleGAN2 normalises z."""
        scales = [math.sqrt(self.categories)] * self.categories + [math.sqrt(3.0)] * self.continuous
        return torch.cat([codes.to(z) * torch.tensor(scales).to(z), z[:, self.length :]], 1)
