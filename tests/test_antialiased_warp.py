# SPDX-License-Identifier: Apache-2.0
"""Warping by matrices of pixels: places, aliasing, homographies, gradients, refusals."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gangealing_fast import ops
from gangealing_fast.geometry.warps import identity_grid


def smaller(factor: float) -> Tensor:
    """The matrix `[1, 2, 3]` that makes pictures `factor` times smaller, edges onto edges."""
    shift = (1 / factor - 1) / 2
    return torch.tensor([[[1 / factor, 0.0, shift], [0.0, 1 / factor, shift]]])


def stripes(side: int, cycles: float) -> Tensor:
    """`[1, 1, side, side]`: a cosine of `cycles` periods across the picture, in [-1, 1]."""
    x = (torch.arange(side) + 0.5) / side
    return torch.cos(2 * math.pi * cycles * x).expand(1, 1, side, side)


def test_a_shift_by_whole_pixels_is_exact_and_zeros_lie_beyond():
    image = torch.rand(2, 3, 9, 12, generator=torch.Generator().manual_seed(0))
    shift = torch.tensor([[[1.0, 0.0, 2.0], [0.0, 1.0, -1.0]]])
    warped = ops.antialiased_warp(image, shift, (9, 12))
    torch.testing.assert_close(warped[:, :, :-1, 2:], image[:, :, 1:, :-2], atol=1e-5, rtol=0)
    assert warped[:, :, -1].abs().max() < 1e-5 and warped[:, :, :, :2].abs().max() < 1e-5


def test_enlarging_is_plain_bilinear_sampling():
    image = torch.rand(1, 2, 8, 8, generator=torch.Generator().manual_seed(1))
    expected = F.interpolate(image, scale_factor=3, mode="bilinear", align_corners=False)
    warped = ops.antialiased_warp(image, smaller(1 / 3), (24, 24), padding_mode="border")
    torch.testing.assert_close(warped, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_what_the_output_cannot_show_is_averaged_away(factor):
    """Stripes finer than the output's pixels alias to wide ones with plain sampling; here next to nothing of them is left."""
    side = 128
    fine, coarse = stripes(side, 0.8 * side / 2), stripes(side, 2.0)
    size = (side // factor, side // factor)
    matrix = smaller(factor)
    plain = ops.antialiased_warp(fine, matrix, size, padding_mode="border", max_levels=1)
    ours = ops.antialiased_warp(fine, matrix, size, padding_mode="border")
    assert ours.square().mean().sqrt() < plain.square().mean().sqrt() / 6
    kept = ops.antialiased_warp(coarse, matrix, size, padding_mode="border")
    assert (kept - stripes(size[0], 2.0)).abs().max() < 0.15


def test_a_homography_and_its_negative_are_the_same_and_nothing_is_seen_behind_the_horizon():
    image = torch.ones(1, 1, 16, 16)
    matrix = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.1, 1.0]]])
    warped = ops.antialiased_warp(image, matrix, (24, 24))
    assert torch.equal(warped, ops.antialiased_warp(image, -matrix, (24, 24)))
    # y / (0.1 y + 1) stays below 10, so that rows from 10 on show no place of the picture's plane in front of the viewer.
    assert warped[0, 0, 1:5, 1:5].min() > 0.9 and warped[0, 0, 10:].abs().max() == 0


def test_two_rows_and_three_rows_and_grids_agree():
    image = torch.rand(2, 3, 10, 14, generator=torch.Generator().manual_seed(2))
    two = torch.tensor([[[0.7, 0.2, 1.0], [-0.1, 0.6, 2.0]], [[0.4, 0.0, 3.0], [0.1, 0.5, 0.0]]])
    three = torch.cat([two, torch.tensor([0.0, 0.0, 1.0]).expand(2, 1, 3)], 1)
    assert torch.equal(ops.antialiased_warp(image, two, (7, 9)), ops.antialiased_warp(image, three, (7, 9)))
    grid = identity_grid(10, 14).expand(2, -1, -1, -1)
    assert torch.equal(ops.antialiased_warp(image, grid), ops.mipmap_warp(image, grid, padding_mode="zeros", max_levels=16.0))


def test_gradients_reach_picture_and_matrix():
    image = torch.rand(1, 1, 6, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).requires_grad_()
    matrix = torch.tensor([[[0.55, 0.07, 0.3], [-0.06, 0.6, 0.4], [0.01, 0.02, 1.0]]], dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda i, m: ops.antialiased_warp(i, m, (3, 4), padding_mode="border"), (image, matrix))


def test_a_matrix_without_an_inverse_gives_nan_for_its_picture_alone():
    image = torch.rand(2, 1, 4, 4)
    matrices = torch.stack([torch.zeros(3, 3), torch.eye(3)])
    warped = ops.antialiased_warp(image, matrices, (4, 4))
    assert warped[0].isnan().all() and warped[1].isfinite().all()


@pytest.mark.parametrize(
    ("transform", "size", "sentence"),
    [
        (torch.eye(3)[None], None, "size must be"),
        (torch.eye(3)[None], (0, 4), "size must be"),
        (torch.eye(4)[None], (4, 4), "transform must be"),
        (torch.eye(3).expand(3, 3, 3), (4, 4), "3 matrices for 2 pictures"),
        (torch.zeros(2, 4, 5, 2), (4, 4), "the grid is of"),
        (torch.zeros(2, 3), (4, 4), "transform"),
    ],
)
def test_what_does_not_fit_is_a_sentence(transform, size, sentence):
    with pytest.raises((ValueError, TypeError), match=sentence):
        ops.antialiased_warp(torch.zeros(2, 1, 4, 4), transform, size)
