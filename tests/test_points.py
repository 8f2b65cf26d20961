# SPDX-License-Identifier: Apache-2.0
"""Point maps between pictures and template: whole pixels and sub-pixels, there and back."""

from __future__ import annotations

import pytest
import torch
from cases.nearest_grid_point import Case
from support import assert_close

from gangealing_fast.geometry.points import from_template, mirror_points, to_template, transfer
from gangealing_fast.geometry.warps import identity_grid, mirror_pictures


@pytest.fixture
def grid():
    return Case("points", 2, 32, 32, 0, strength=1.0).tensors(torch.float32)[0]


@pytest.fixture
def points(grid):
    """Pixels of a picture of side 64, at places between the template's pixels."""
    place = torch.rand(2, 20, 2) * 31
    return from_template(grid, place, 64), place


def test_subpixel_is_the_inverse_of_from_template(grid, points):
    found = to_template(grid, points[0], 64, method="subpixel")
    assert_close(found, points[1], 1e-4)
    assert_close(from_template(grid, found, 64), points[0], 1e-5)


def test_nearest_rounds_it(grid, points):
    found = to_template(grid, points[0], 64)
    assert found.dtype == torch.int64
    assert (found - points[1]).abs().max() < 1.5
    assert (found - points[1]).square().sum(-1).mean() < 0.3


def test_transfer_to_itself(grid, points):
    assert_close(transfer(grid, grid, points[0], 64, 64, method="subpixel"), points[0], 1e-5)
    assert 0.1 < (transfer(grid, grid, points[0], 64, 64) - points[0]).norm(dim=-1).mean() < 2


def test_subpixel_passes_gradients_to_grid_and_points(grid, points):
    grid, wanted = grid.requires_grad_(), points[0].detach().requires_grad_()
    found = to_template(grid, wanted, 64, method="subpixel")
    grads = torch.autograd.grad(from_template(grid, found, 64).sum(), (grid, wanted))
    # There and back is the identity, whatever the grid.
    assert grads[0].abs().max() < 1e-2
    assert_close(grads[1], torch.ones_like(wanted), 1e-4)


def test_a_point_out_of_reach_gets_the_nearest_pixel(grid):
    far = torch.full((2, 1, 2), 500.0)
    assert torch.equal(to_template(grid, far, 64, method="subpixel"), to_template(grid, far, 64).float())


def test_pixels_of_an_identity_grid():
    grid = identity_grid(8, 8)[None]
    places = torch.tensor([[[0.0, 0.0], [7.0, 7.0], [3.0, 5.0], [3.25, 4.625]]])
    # A picture of side 8 beside a template of side 8: the same pixels.
    assert to_template(grid, places, 8).tolist() == [[[0, 0], [7, 7], [3, 5], [3, 5]]]
    assert_close(to_template(grid, places, 8, method="subpixel"), places, 1e-5)


def test_another_method_is_refused(grid):
    with pytest.raises(ValueError, match="one of nearest, subpixel, not 'cubic'"):
        to_template(grid, torch.zeros(2, 1, 2), 64, method="cubic")


def test_mirrored_points_show_what_they_showed():
    pictures = torch.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5)
    mirrored, points = torch.tensor([True, False]), torch.tensor([[[0, 1], [3, 2]], [[0, 1], [3, 2]]])
    there, flipped = mirror_points(points, mirrored, 5), mirror_pictures(pictures, mirrored)
    assert there.tolist() == [[[4, 1], [1, 2]], [[0, 1], [3, 2]]]
    for n in range(2):
        for (x, y), (u, v) in zip(points[n].tolist(), there[n].tolist(), strict=True):
            assert torch.equal(pictures[n, :, y, x], flipped[n, :, v, u])
