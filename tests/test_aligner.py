# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from gangealing_fast import Aligner
from gangealing_fast.models import SpatialTransformer


def aligner(transforms=("similarity",), scale=0.3, iters=1):
    torch.manual_seed(0)
    transformer = SpatialTransformer(transforms, 32, channel_base=64, max_channels=8)
    for module in transformer.modules():
        if hasattr(module, "warp_head") and hasattr(module.warp_head, "linear"):
            torch.nn.init.normal_(module.warp_head.linear.weight, std=scale)
            torch.nn.init.normal_(module.warp_head.linear.bias, std=scale)
    return Aligner(transformer, "border", iters)


@pytest.mark.parametrize("side", [32, 64])
def test_points_go_to_the_template_and_back(side):
    model = aligner()
    images = torch.rand(3, 3, side, side) * 2 - 1
    points = torch.rand(3, 5, 2) * side * 0.3 + side * 0.35
    there = model.to_template(images, points)
    # Sampling a grid that is linear inside the template is exact; beyond its outermost pixels it is held.
    inside = ((there >= 0) & (there <= 31)).all(-1)
    assert inside.any()
    torch.testing.assert_close(model.from_template(images, there)[inside], points[inside], atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(model.transfer(images, images, points)[inside], points[inside], atol=1e-3, rtol=1e-4)


def test_the_aligned_picture_shows_at_a_template_point_what_the_picture_shows_there():
    model = aligner(scale=0.15)
    images = torch.zeros(1, 3, 32, 32)
    ramp = torch.linspace(-1, 1, 32)
    images[0, 0], images[0, 1] = ramp, ramp[:, None]
    aligned = model.align(images)
    point = torch.tensor([[[16.0, 15.0]]])
    x, y = model.from_template(images, point)[0, 0].tolist()
    shown = aligned[0, :2, 15, 16]
    expected = torch.tensor([x, y]) / 31 * 2 - 1
    torch.testing.assert_close(shown, expected, atol=0.02, rtol=0)


def test_any_resolution_and_iterations():
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    assert aligner().align(images, output_resolution=80).shape == (2, 3, 80, 80)
    assert not torch.equal(aligner(iters=2).warp(images).matrix, aligner().warp(images).matrix)


def test_pictures_that_are_not_square_are_refused_for_points():
    with pytest.raises(ValueError, match="square"):
        aligner().to_template(torch.zeros(1, 3, 32, 40), torch.zeros(1, 1, 2))
