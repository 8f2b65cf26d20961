# SPDX-License-Identifier: Apache-2.0
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from aligners import aligner, bend

from gangealing_fast import Aligner
from gangealing_fast.applications import aligner as aligner_module
from gangealing_fast.geometry.warping import Warping


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


@pytest.mark.parametrize("transforms", [("similarity",), ("similarity", "flow")])
@pytest.mark.parametrize(("height", "width"), [(32, 48), (50, 34)])
def test_pictures_that_are_not_square(transforms, height, width):
    """Points and maps are those of the pictures as given; the padding is nobody's business."""
    model = aligner(transforms, scale=0.1)
    bend(model)
    images = torch.rand(2, 3, height, width) * 2 - 1
    points = torch.rand(2, 6, 2) * torch.tensor([width - 1.0, height - 1.0]) * 0.4 + torch.tensor([width, height]) * 0.3
    found = model.locate(images, points)
    sure = found.confidence > 0
    assert sure.float().mean() > 0.5
    inner = sure & ((found.points >= 0) & (found.points <= 31)).all(-1)
    torch.testing.assert_close(model.from_template(images, found.points)[inner], points[inner], atol=2e-3, rtol=1e-3)
    assert model.align(images, output_resolution=40).shape == (2, 3, 40, 40)


@pytest.mark.parametrize("mode", ["reflection", "border", "zeros"])
def test_the_square_holds_the_picture_in_its_middle(mode):
    model = aligner()
    model.warping = Warping(mode)
    images = torch.rand(1, 3, 4, 21)
    square = model.square(images)
    assert square.images.shape == (1, 3, 21, 21)
    assert torch.equal(square.images[:, :, square.top : square.top + 4], images)
    if mode == "zeros":
        assert (square.images[:, :, : square.top] == -1).all()
    with pytest.raises(ValueError, match="sides of 2 or more"):
        model.square(torch.zeros(1, 3, 1, 5))


def test_maps_go_to_the_template_and_come_back():
    model = aligner(("similarity", "flow"), scale=0.1)
    bend(model, 0.02)
    images = torch.rand(2, 3, 64, 48) * 2 - 1
    smooth = torch.stack(torch.meshgrid(torch.linspace(0, 1, 32), torch.linspace(0, 1, 32), indexing="ij"))[None]
    drawn, confidence = model.maps_from_template(images, smooth)
    assert drawn.shape == (2, 2, 64, 48) and confidence.shape == (2, 1, 64, 48)
    again = model.maps_to_template(images, drawn)
    grid = model.warp(images).grid  # what lies beyond the picture comes back as its edge
    inside = (grid.abs() < 0.95 * torch.tensor([48 / 64, 1])).all(-1)[:, None]
    known = inside & (model.maps_to_template(images, confidence) > 0.999)
    assert known.float().mean() > 0.2
    difference = (again - smooth).abs() * known
    assert difference[:, :, 2:-2, 2:-2].max() < 0.05
    with pytest.raises(ValueError, match=r"\[1, C, R, R\]"):
        model.maps_from_template(images, smooth[0])
    with pytest.raises(ValueError, match="pictures' size"):
        model.maps_to_template(images, smooth)


def test_points_are_differentiable():
    model = aligner(("similarity", "flow"), scale=0.1)
    bend(model)
    images = torch.rand(1, 3, 32, 32)
    points = torch.tensor([[[14.3, 15.7], [17.2, 13.1]]], requires_grad=True)
    for function in (model.to_template, model.from_template, lambda x, p: model.transfer(x, x.flip(3), p)):
        (gradient,) = torch.autograd.grad(function(images, points).square().sum(), points)
        step = torch.zeros_like(points)
        step[0, 0, 0] = 1e-2
        with torch.no_grad():
            up, down = (function(images, points + sign * step).square().sum() for sign in (1, -1))
        assert abs((up - down).item() / 2e-2 - gradient[0, 0, 0].item()) < 0.05 * abs(gradient[0, 0, 0].item()) + 0.5


def test_alpha_leads_from_the_picture_to_its_alignment():
    model, images = aligner(), torch.rand(2, 3, 32, 32)
    untouched = model.warp(images, alpha=0.0).grid
    half, whole = model.warp(images, alpha=0.5).grid, model.warp(images).grid
    torch.testing.assert_close(half, (untouched + whole) / 2)
    torch.testing.assert_close(model.warp(images, alpha=0.0).image, images, atol=1e-5, rtol=0)


def test_flips_choose_the_smoother_flow():
    model = aligner(("similarity", "flow"), scale=0.05)
    bend(model)
    flipped = Aligner(model.transformer, Warping("border"), flips=True)
    images = torch.rand(4, 3, 32, 32)
    _, mirrored = flipped.assign(images)
    assert torch.equal(flipped.assign(images.flip(3))[1], ~mirrored)
    record = flipped.warp(images)
    torch.testing.assert_close(flipped.warp(images.flip(3)).image, record.image)
    with pytest.raises(ValueError, match="residual flow"):
        Aligner(aligner().transformer, flips=True)


class Calls:
    """Counts how often a function is called that stands in for it."""

    def __init__(self, function):
        self.function, self.count = function, 0

    def __call__(self, *arguments, **keywords):
        self.count += 1
        return self.function(*arguments, **keywords)


@pytest.mark.parametrize("flips", [False, True])
def test_a_picture_is_squared_once_and_goes_through_each_network_once(monkeypatch, flips):
    """However much is asked about it: with flips once as it is and once as its mirror image."""
    model = aligner(("similarity", "flow"))
    model = Aligner(model.transformer, model.warping, flips=flips)
    forward = Calls(model.transformer.forward)
    squared = Calls(aligner_module.to_square)
    monkeypatch.setattr(model.transformer, "forward", forward)
    monkeypatch.setattr(aligner_module, "to_square", squared)
    images, points, edit = torch.rand(2, 3, 32, 20), torch.rand(2, 4, 2) * 19, torch.rand(1, 4, 16, 16)
    asked = [
        lambda: model.look(images),
        lambda: model.warp(images),
        lambda: model.from_template(images, points),
        lambda: model.locate(images, points),
        lambda: model.maps_from_template(images, edit),
        lambda: model.flow_scores(images),
    ]
    for question in asked:
        forward.count = squared.count = 0
        question()
        assert (forward.count, squared.count) == (1 + flips, 1)
    look = model.look(images)
    forward.count = squared.count = 0
    found = model.locate(images, points, look=look)
    model.maps_from_template(images, edit, look=look)
    assert (forward.count, squared.count) == (0, 0)
    assert torch.equal(found.points, model.locate(images, points).points)


def test_a_look_at_another_size_is_no_place_to_look_points_up():
    model = aligner(("similarity", "flow"))
    images = torch.rand(1, 3, 32, 32)
    with pytest.raises(ValueError, match="own size 32 is needed, got one of 16"):
        model.locate(images, torch.zeros(1, 1, 2), look=model.look(images, output_resolution=16))


def test_pickled_and_used_from_several_threads():
    model = pickle.loads(pickle.dumps(aligner(("similarity", "flow"))))
    batches = [torch.rand(2, 3, 32, 32) for _ in range(6)]
    alone = [model.align(images) for images in batches]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(model.align, batches))
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
