# SPDX-License-Identifier: Apache-2.0
"""Point maps between pictures and template: whole pixels and sub-pixels, there and back."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from aligners import aligner as similarity_aligner
from aligners import composed
from cases.nearest_grid_point import Case
from support import assert_close, assert_golden, golden, golden_state

from gangealing_fast import Aligner
from gangealing_fast.applications import squares
from gangealing_fast.geometry.points import from_template, mirror_points, to_template, transfer
from gangealing_fast.geometry.warping import Warping
from gangealing_fast.geometry.warps import identity_grid, mirror_pictures, read_grid
from gangealing_fast.models import SpatialTransformer


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


# ---- the published rule


def published(flow, matrix, points, side):
    """The published map of one picture's points, in plain numbers: (nearest pixels of the template, as (x, y))."""
    size = flow.shape[0]
    normal = (points / (side - 1) - 0.5) * 2 * (side - 1) / side
    inverse = np.linalg.inv(np.vstack([matrix, [0, 0, 1]]))
    wanted = normal @ inverse[:2, :2].T + inverse[:2, 2]
    centres = (2 * np.arange(size) + 1) / size - 1
    grid = np.stack(np.meshgrid(centres, centres), -1) + flow
    nearest = ((grid[None] - wanted[:, None, None]) ** 2).sum(-1).reshape(len(points), -1).argmin(1)
    return np.stack([nearest % size, nearest // size], -1)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("size", [(32, 32), (64, 64), (90, 90), (64, 40)])
def test_the_published_rule_of_an_aligner(size, mirrored):
    """Nearest pixel on the flow's own grid; template points normalised by the picture's size."""
    model = composed()
    rule = Aligner(model.transformer, model.warping, points="published")
    images = torch.rand(2, 3, *size) * 2 - 1
    points = torch.rand(2, 7, 2) * (torch.tensor([size[1], size[0]]) - 1.0)
    look = rule.look(images, assignment=(torch.zeros(2, dtype=torch.long), torch.full((2,), mirrored)))
    side = max(size)
    found = rule.locate(images, points, look=look)
    shift = np.array([(side - size[1]) // 2, (side - size[0]) // 2])
    for n in range(2):
        seen = points[n].double().numpy() + shift
        seen[:, 0] = side - 1 - seen[:, 0] if mirrored else seen[:, 0]
        flow, matrix = (record[n].double().numpy() for record in (look.alignment.residual_flow, look.alignment.matrix))
        assert found.points[n].tolist() == published(flow, matrix, seen, side).tolist()
    assert (found.confidence == 1).all()
    if not mirrored:
        back = rule.from_template(images, found.points)
        place = (found.points / 31 - 0.5) * 2 * (side - 1) / side
        read = read_grid(look.alignment.grid, place.clamp(1 / 32 - 1, 1 - 1 / 32))
        assert_close(back + torch.from_numpy(shift), ((read * side / (side - 1) / 2) + 0.5) * (side - 1), 1e-4)
        assert_close(rule.transfer(images, images, points), back, 1e-6)
        # At the template's own size both rules read the same.
        assert (side == 32) == torch.allclose(back, model.from_template(images, found.points), atol=1e-3)


def test_golden_published_points(monkeypatch):
    """As the original's own point maps carried them. Its pictures are normal numbers, beyond [-1, 1]."""
    monkeypatch.setattr(squares, "LARGEST_VALUE", math.inf)
    _, arrays = golden("stn_composed")
    transformer = SpatialTransformer(flow_size=64, channel_multiplier=0.5)
    transformer.load_state_dict(golden_state({key: list(value.shape) for key, value in transformer.state_dict().items()}))
    rule = Aligner(transformer, Warping("border"), points="published")
    found = rule.to_template(arrays["img"], arrays["points"])
    assert torch.equal(found, arrays["congealed_points"].to(found.dtype))
    assert_golden(
        rule.transfer(arrays["img"], arrays["img"].flip(0), arrays["points"]), arrays["transferred_points"], what="transferred"
    )
    place = torch.tensor([30.0, 40.0]).expand(2, 5, 2)
    assert_golden(rule.from_template(arrays["img"], place), arrays["uncongealed_30_40"], what="from the template")


def test_a_similarity_alone_is_exact_by_the_published_rule():
    """Both ways by its matrix, beyond the template's edge too."""
    model = similarity_aligner(scale=0.1)
    rule = Aligner(model.transformer, points="published")
    images, points = torch.rand(2, 3, 48, 48), torch.rand(2, 5, 2) * 47
    assert torch.equal(rule.to_template(images, points), model.to_template(images, points))
    assert_close(rule.from_template(images, rule.to_template(images, points)), points, 1e-4)


def test_maps_are_exact_whatever_the_rule_for_points():
    model = composed()
    rule = Aligner(model.transformer, model.warping, points="published")
    images, maps = torch.rand(1, 3, 40, 40), torch.rand(1, 2, 32, 32)
    assert torch.equal(rule.maps_from_template(images, maps)[0], model.maps_from_template(images, maps)[0])
    with pytest.raises(ValueError, match="one of exact, published"):
        Aligner(model.transformer, points="nearest")
