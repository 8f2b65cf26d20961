# SPDX-License-Identifier: Apache-2.0
"""How an edit is laid over a picture: by its opacity alone, or in the bands of a Laplacian pyramid.

The pyramid is that of Burt and Adelson, "A multiresolution spline with application to image mosaics" (ACM Transactions on Graphics
2, 1983). `reduce` filters and halves, `expand` doubles and filters, both by the kernel of the paper with a = 0.4. A picture is the
sum of its bands L_k = G_k - expand(G_(k+1)). Two pictures A and B are joined band by band, weighted by the reduced mask: fine bands
change within a pixel, coarse ones over many, so that no seam is seen:

    L_k = G_k(mask) L_k(A) + (1 - G_k(mask)) L_k(B)
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Blend = Literal["alpha", "laplacian", "laplacian-light"]

_A = 0.4
_KERNEL = (0.25 - _A / 2, 0.25, _A, 0.25, 0.25 - _A / 2)
_SMALLEST = 4  # no band is coarser than pictures of this side
_LIGHT = 3
_SEEN = 1 / 512  # half a step of eight bits: below it an edit's colour is not known


def lay_over(images: Tensor, edit: Tensor) -> Tensor:
    """Pictures `[N, 3, H, W]` in [-1, 1] under `edit` `[N, 4, H, W]`, as `read_edit` returns it."""
    return images * (1 - edit[:, 3:]) + 2 * edit[:, :3] - edit[:, 3:]


def reduce(images: Tensor) -> Tensor:
    """`[N, C, H, W]` filtered and halved: `[N, C, ceil(H / 2), ceil(W / 2)]`. Edges are repeated."""
    channels, kernel = images.shape[1], images.new_tensor(_KERNEL)
    padded = F.pad(images, (2, 2, 2, 2), mode="replicate")
    across = F.conv2d(padded, kernel.expand(channels, 1, 1, 5), stride=(1, 2), groups=channels)
    return F.conv2d(across, kernel[:, None].expand(channels, 1, 5, 1), stride=(2, 1), groups=channels)


def expand(images: Tensor, height: int, width: int) -> Tensor:
    """`[N, C, h, w]` doubled and filtered, as many rows and columns of it as are asked for: at most twice as many."""
    channels, kernel = images.shape[1], 2 * images.new_tensor(_KERNEL)
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
    # A pixel of the padded picture lands at twice its place plus the kernel's half: row 0 of the result is row 4 of this one.
    down = F.conv_transpose2d(padded, kernel[:, None].expand(channels, 1, 5, 1), stride=(2, 1), groups=channels)
    both = F.conv_transpose2d(down, kernel.expand(channels, 1, 1, 5), stride=(1, 2), groups=channels)
    return both[:, :, 4 : 4 + height, 4 : 4 + width]


def gaussian_pyramid(images: Tensor, levels: int) -> list[Tensor]:
    """`levels` pictures of which each is the one before, reduced; the first is `images`."""
    pyramid = [images]
    while len(pyramid) < levels:
        pyramid.append(reduce(pyramid[-1]))
    return pyramid


def laplacian_pyramid(images: Tensor, levels: int) -> list[Tensor]:
    """The bands of `images`, finest first; the last is what is left of the picture. `collapse` is the inverse."""
    pyramid = gaussian_pyramid(images, levels)
    bands = [fine - expand(coarse, *fine.shape[2:]) for fine, coarse in zip(pyramid, pyramid[1:], strict=False)]
    return [*bands, pyramid[-1]]


def collapse(bands: list[Tensor]) -> Tensor:
    """The picture of which `laplacian_pyramid` made these bands."""
    picture = bands[-1]
    for band in reversed(bands[:-1]):
        picture = band + expand(picture, *band.shape[2:])
    return picture


def most_levels(height: int, width: int) -> int:
    """How many levels a pyramid has whose coarsest picture is not smaller than 4 pixels."""
    return 1 + max(0, int(math.log2(max(min(height, width), 1) / _SMALLEST)))


def multiresolution_spline(first: Tensor, second: Tensor, mask: Tensor, levels: int) -> Tensor:
    """`first` where `mask` `[N, 1, H, W]` is 1, `second` where it is 0, joined band by band. Pictures are `[N, C, H, W]`."""
    bands = zip(laplacian_pyramid(first, levels), laplacian_pyramid(second, levels), gaussian_pyramid(mask, levels), strict=True)
    return collapse([weight * one + (1 - weight) * other for one, other, weight in bands])


def extend_colours(edit: Tensor) -> Tensor:
    """The colours `[N, 3, H, W]` in [0, 1] of an edit `[N, 4, H, W]` (see `read_edit`), continued to where it is transparent.

    What is transparent has no colour, yet the coarse bands of its neighbours reach it. It takes the colour of the finest reduced
    picture in which it is not transparent ("pull-push", Gortler et al., "The lumigraph", 1996).
    """
    pyramid = gaussian_pyramid(edit, most_levels(*edit.shape[2:]))
    visible = edit[:, 3:].sum((2, 3), keepdim=True).clamp(min=1e-6)
    colours = (edit[:, :3].sum((2, 3), keepdim=True) / visible).expand(-1, -1, *pyramid[-1].shape[2:])
    for level in reversed(pyramid):
        coarse = expand(colours, *level.shape[2:]) if level.shape[2:] != colours.shape[2:] else colours
        colours = torch.where(level[:, 3:] > _SEEN, level[:, :3] / level[:, 3:].clamp(min=_SEEN), coarse)
    return colours


def blend(images: Tensor, edit: Tensor, how: Blend = "alpha") -> Tensor:
    """Pictures `[N, 3, H, W]` in [-1, 1] under `edit` `[N, 4, H, W]`, as `read_edit` returns it: `[N, 3, H, W]`.

    "alpha": `lay_over`. "laplacian": all bands of edit and picture are joined, with the edit's opacity for a mask; the edit takes
    on the light of its surroundings. "laplacian-light": the three finest levels alone, so that the seam is softened over a few
    pixels and colours further away stay. A picture without any of the edit stays as it is.
    """
    if how == "alpha":
        return lay_over(images, edit)
    levels = most_levels(*images.shape[2:])
    levels = min(levels, _LIGHT) if how == "laplacian-light" else levels
    joined = multiresolution_spline(2 * extend_colours(edit) - 1, images, edit[:, 3:], levels)
    touched = edit[:, 3:].flatten(1).any(1)[:, None, None, None]
    return torch.where(touched, joined, images)
