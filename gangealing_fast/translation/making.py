# SPDX-License-Identifier: Apache-2.0
"""Domains that anyone can make: edges of pictures, and digits in colours."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gangealing_fast.data.digits import random_similarity, warp_digits
from gangealing_fast.data.pictures import to_float, to_uint8
from gangealing_fast.runtime.randomness import derived_seed

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (1.0, 0.1, 0.1),
    "green": (0.1, 0.9, 0.1),
    "blue": (0.2, 0.3, 1.0),
    "yellow": (1.0, 0.9, 0.1),
    "cyan": (0.1, 0.9, 0.9),
    "magenta": (1.0, 0.2, 0.9),
    "white": (1.0, 1.0, 1.0),
}
"""Of digits, red, green and blue in [0, 1]."""
DIMMEST = 0.6
"""Colours are multiplied by a number between this and 1, a digit's own."""
_INK = 0.5


class Digits(NamedTuple):
    """images: uint8 `[N, 3, 32, 32]`. classes `[N]`. colours `[N]`: numbers of `COLOURS`. matrices: warps A `[N, 2, 3]`."""

    images: Tensor
    classes: Tensor
    colours: Tensor
    matrices: Tensor


def edges(images: Tensor) -> Tensor:
    """White edges on black, `[N, 3, H, W]` in [-1, 1], of pictures in [-1, 1].

    The length of the gradient of the luminance (Sobel's filters, after a binomial blur), over the picture's own 0.98 quantile,
    at most 1. A picture without any gradient is black.
    """
    luminance = (images * images.new_tensor([0.299, 0.587, 0.114]).reshape(1, 3, 1, 1)).sum(1, keepdim=True)
    binomial = images.new_tensor([0.25, 0.5, 0.25])
    smooth = F.conv2d(F.pad(luminance, (2,) * 4, mode="replicate"), torch.outer(binomial, binomial)[None, None])
    difference = torch.outer(images.new_tensor([0.25, 0.5, 0.25]), images.new_tensor([-0.5, 0.0, 0.5]))[None, None]
    across, down = F.conv2d(smooth, difference), F.conv2d(smooth, difference.transpose(2, 3))
    length = (across.square() + down.square()).sqrt()
    largest = length.flatten(1).quantile(0.98, dim=1).clamp_min(0.02).reshape(-1, 1, 1, 1)
    return (length / largest).clamp(0, 1).mul(2).sub(1).expand(-1, 3, -1, -1).contiguous()


def draw_digits(
    images: Tensor, classes: Tensor, count: int, seed: int, *, of: str, warped: float = 0.5, matrices: Tensor | None = None
) -> Digits:
    """`count` pictures of uint8 digits `[M, 28, 28]`, in turn; of: "edges", or "colours", which gives each digit one of `COLOURS`.

    warped: the share under warps of the preset `digits`, the others upright; matrices: those warps themselves `[count, 2, 3]`.
    """
    random = torch.Generator().manual_seed(derived_seed(seed, of))
    if matrices is None:
        matrices = random_similarity(count, generator=random)
        matrices[torch.rand(count, generator=random) >= warped] = torch.tensor([[1.0, 0, 0], [0, 1, 0]])
    colours = torch.randint(len(COLOURS), (count,), generator=random)
    strength = DIMMEST + (1 - DIMMEST) * torch.rand(count, generator=random)
    palette, chosen, made = torch.tensor(list(COLOURS.values())), torch.arange(count) % len(images), []
    for rows in torch.arange(count).split(500):
        ink = warp_digits(images[chosen[rows]], matrices[rows])
        if of == "edges":
            pictures = (edges(ink) + 1) / 2
        else:
            pictures = (ink + 1) / 2 * palette[colours[rows]][:, :, None, None]
        made.append(to_uint8(pictures * strength[rows, None, None, None] * 2 - 1))
    return Digits(torch.cat(made), classes[chosen], colours, matrices)


def colour_of(images: Tensor) -> Tensor:
    """Which of `COLOURS` each digit `[N, 3, H, W]` in [-1, 1] has, `[N]`: the hue nearest to its mean ink's; -1 without ink."""
    light = (images + 1) / 2
    strongest = light.amax(1, keepdim=True)
    weight = (strongest > _INK * strongest.flatten(1).amax(1).reshape(-1, 1, 1, 1)) * strongest
    mean = (light * weight).sum((2, 3))
    palette = F.normalize(torch.tensor(list(COLOURS.values()), device=images.device), dim=1)
    found = (F.normalize(mean, dim=1) @ palette.T).argmax(1)
    return torch.where(strongest.flatten(1).amax(1) < 0.15, -1, found)


def edges_of(images: Tensor) -> Tensor:
    """`edges` of uint8 pictures `[N, 3, H, W]`, in parts, as uint8."""
    return torch.cat([to_uint8(edges(to_float(part))) for part in images.split(max(1, math.ceil(2**22 / images[0].numel())))])
