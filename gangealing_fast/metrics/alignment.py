# SPDX-License-Identifier: Apache-2.0
"""How well a set is aligned: stack entropy, kept ink, and distances between warps whose truth is known.

Warps are as in `geometry/warps.py`. A warp `W` says for every template (output) position where the picture is read; it is a
matrix [N, 2, 3] or a grid [N, H, W, 2]. The known warp `A` [N, 2, 3] carries the upright object's frame to the warped picture.
`A⁻¹ W` therefore carries the template to the object's own frame, where a perfect alignment is one and the same map for every
picture.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gangealing_fast.geometry.warps import identity_matrix, invert, read_grid, transform_points

Size = int | tuple[int, int]


def stack_entropy(images: Tensor, threshold: float = 0.0) -> Tensor:
    """Mean over pixels of the binary entropy, in bits, of the foreground frequency across a stack.

    images: [N, C, H, W] or [N, H, W] in [-1, 1]; channels are averaged, a pixel is foreground above `threshold`.
    Returns a float64 scalar in [0, 1]: 0 if all pictures agree everywhere. The stack's pixelwise entropy is the
    objective of Learned-Miller, "Data Driven Image Models through Continuous Joint Alignment", PAMI 2006.
    """
    if images.dim() not in (3, 4) or images.shape[0] == 0:
        raise ValueError(f"images must be a non-empty [N, C, H, W] or [N, H, W], got {tuple(images.shape)}")
    grey = images.mean(1) if images.dim() == 4 else images
    frequency = (grey > threshold).to(torch.float64).mean(0)
    return binary_entropy(frequency).mean()


def binary_entropy(probability: Tensor) -> Tensor:
    """Elementwise entropy in bits of a coin that falls heads with `probability`; 0 at 0 and at 1."""
    inverse = 1 - probability
    return -(torch.xlogy(probability, probability) + torch.xlogy(inverse, inverse)) / math.log(2)


def ink_kept(before: Tensor, after: Tensor) -> Tensor:
    """Mean ink per picture after warping over that before; ink is (x + 1) / 2, mean over channels, summed over pixels.

    before, after: [N, C, H, W] in [-1, 1]; the two may differ in N and C. Returns a float64 scalar; 1 means that the
    alignment neither zooms in nor shrinks the pictures away. Raises ValueError if `before` holds no ink.
    """
    ink_before, ink_after = _mean_ink(before, "before"), _mean_ink(after, "after")
    if not ink_before > 0:
        raise ValueError("before holds no ink (all pixels are -1), so there is nothing to compare with")
    return ink_after / ink_before


def _mean_ink(images: Tensor, name: str) -> Tensor:
    if images.dim() != 4 or images.shape[0] == 0:
        raise ValueError(f"{name} must be a non-empty [N, C, H, W], got {tuple(images.shape)}")
    return ((images.to(torch.float64) + 1) / 2).mean(1).sum((1, 2)).mean()


def object_frame_points(known: Tensor, warp: Tensor, corners: Tensor, size: Size) -> Tensor:
    """`A⁻¹ W` at the corners, in pixels of the object's frame: [N, P, 2] float64.

    known: A [N, 2, 3]; warp: W [N, 2, 3] or [N, H, W, 2]; corners: [P, 2] or [N, P, 2] normalised; size: pixels of the
    square picture's side, or (height, width). Raises ValueError for other shapes and if a known warp has no inverse.
    """
    if known.shape[0] != warp.shape[0]:
        raise ValueError(f"{known.shape[0]} known warps do not match {warp.shape[0]} warps")
    height, width = (size, size) if isinstance(size, int) else size
    corners = (corners if corners.dim() == 3 else corners[None]).to(torch.float64)
    carry = read_grid if warp.dim() == 4 else transform_points
    points = transform_points(invert(known.to(torch.float64)), carry(warp.to(torch.float64), corners))
    return points * points.new_tensor([width / 2, height / 2])


def pair_error(known_a: Tensor, warp_a: Tensor, known_b: Tensor, warp_b: Tensor, corners: Tensor, size: Size) -> Tensor:
    """Mean distance in pixels, at the corners, between `A₁⁻¹ W₁` and `A₂⁻¹ W₂` for two known warps of the same picture.

    known_*: [N, 2, 3]; warp_*: [N, 2, 3] or grids [N, H, W, 2]; corners: [P, 2] or [N, P, 2], the object's box in
    template coordinates; size: side in pixels or (height, width). Row i of both halves belongs to the same picture.
    0 if both warped versions land on the template in the same way. Returns a float64 scalar.
    """
    first = object_frame_points(known_a, warp_a, corners, size)
    second = object_frame_points(known_b, warp_b, corners, size)
    if first.shape != second.shape:
        raise ValueError(f"the two halves differ in shape: {tuple(first.shape)} and {tuple(second.shape)}")
    return torch.linalg.vector_norm(first - second, dim=-1).mean()


def set_spread(known: Tensor, warp: Tensor, corners: Tensor, size: Size) -> Tensor:
    """Root mean square distance in pixels of `A_i⁻¹ W_i` to its mean over different pictures i, over all corners.

    Arguments as in `pair_error`, except that all pictures are measured at the same corners: of boxes [N, P, 2] the mean
    is taken. Contains whatever the objects themselves differ by (for digits the writers' slant), so it does not fall to
    0. Returns a float64 scalar.
    """
    corners = corners.mean(0) if corners.dim() == 3 else corners
    points = object_frame_points(known, warp, corners, size)
    return (points - points.mean(0, keepdim=True)).square().sum(-1).mean().sqrt()


def pair_error_ratio(
    known_a: Tensor, warp_a: Tensor, known_b: Tensor, warp_b: Tensor, corners: Tensor, size: Size
) -> dict[str, float]:
    """`pair_error` with the given warps ("after"), with identity warps ("before"), and "ratio" = after / before."""
    identity = identity_matrix(known_a.shape[0], dtype=torch.float64, device=known_a.device)
    before = pair_error(known_a, identity, known_b, identity, corners, size)
    return before_after(before, pair_error(known_a, warp_a, known_b, warp_b, corners, size))


def set_spread_ratio(known: Tensor, warp: Tensor, corners: Tensor, size: Size) -> dict[str, float]:
    """`set_spread` with the given warps ("after"), with identity warps ("before"), and "ratio" = after / before."""
    identity = identity_matrix(known.shape[0], dtype=torch.float64, device=known.device)
    return before_after(set_spread(known, identity, corners, size), set_spread(known, warp, corners, size))


def before_after(before: Tensor | float, after: Tensor | float) -> dict[str, float]:
    """{"before", "after", "ratio"} as plain numbers; the ratio is NaN if `before` is 0."""
    before, after = float(before), float(after)
    return {"before": before, "after": after, "ratio": after / before if before else float("nan")}
