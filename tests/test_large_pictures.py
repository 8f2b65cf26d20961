# SPDX-License-Identifier: Apache-2.0
"""Panoramas and large pictures: memory in proportion to the picture, and the same places as without a bound."""

from __future__ import annotations

import math

import pytest
import torch
from aligners import aligner, bend, composed

from gangealing_fast.applications import propagating, squares
from gangealing_fast.applications.propagating import edit_picture, look_at
from gangealing_fast.applications.squares import to_square
from gangealing_fast.data.pictures import to_float


@pytest.mark.parametrize(("height", "width"), [(300, 16_000), (16_000, 300), (2, 100_000), (64, 8_000)])
@pytest.mark.parametrize("padding_mode", ["reflection", "border", "zeros"])
def test_a_square_is_no_larger_than_its_bound(height, width, padding_mode):
    square = to_square(torch.zeros(1, 1, 1, 1).expand(1, 1, height, width), padding_mode)
    pixels = square.images.shape[2] * square.images.shape[3]
    assert square.images.shape[2] == square.images.shape[3] and pixels <= max(squares.LARGEST, 4 * height * width)
    points = torch.tensor([[0.0, 0.0], [width - 1.0, height - 1.0], [width / 3, height / 2]], dtype=torch.float64)
    torch.testing.assert_close(square.leave(square.enter(points)), points)
    inside = square.enter(points)
    assert (inside > -1).all() and (inside < square.images.shape[3]).all()


@pytest.mark.parametrize("shape", [(4000, 6000), (3000, 4000), (1000, 3900), (600, 600), (1, 1)])
def test_ordinary_photographs_are_not_made_smaller(shape):
    side = max(shape)
    assert side * side <= max(squares.LARGEST, 4 * math.prod(shape)) or shape == (1000, 3900)
    small = torch.zeros(1, 1, 1, 1).expand(1, 1, *(max(2, length) for length in shape))
    assert side > 4000 or to_square(small, "border").scale == (1.0, 1.0)


def test_points_of_a_reduced_panorama_lie_where_they_lie_without_the_bound(monkeypatch):
    model = aligner(scale=0.1)
    generator = torch.Generator().manual_seed(0)
    rough = torch.rand(1, 3, 6, 60, generator=generator) * 2 - 1
    images = torch.nn.functional.interpolate(rough, (48, 480), mode="bicubic").clamp(-1, 1)
    points = torch.tensor([[[10.0, 5.0], [400.0, 40.0], [240.0, 24.0]]])
    template = torch.tensor([[[10.0, 12.0], [20.0, 20.0], [15.5, 16.0]]])
    whole = model.locate(images, points).points, model.from_template(images, template)
    monkeypatch.setattr(squares, "LARGEST", 1)
    reduced = model.locate(images, points).points, model.from_template(images, template)
    assert model.square(images).images.shape[3] == math.isqrt(4 * 48 * 480)
    assert (whole[0] - reduced[0]).abs().max() < 0.2 and (whole[1] - reduced[1]).abs().max() < 3  # of 32 and of 480 pixels
    assert not torch.equal(whole[0], reduced[0])


@pytest.mark.parametrize("make", [aligner, composed])
@pytest.mark.parametrize("rows", [1, 7, 32])
def test_edits_in_bands_are_edits_of_the_whole(monkeypatch, make, rows):
    model = make()
    bend(model, 0.1)
    batch = torch.randint(0, 256, (1, 3, 50, 70), dtype=torch.uint8)
    edit = torch.rand(1, 4, 128, 128) * torch.rand(1, 1, 128, 128)
    look = model.look(to_float(batch))
    whole, covered = edit_picture(model, batch, edit, look)
    monkeypatch.setattr(propagating, "BAND", rows * 70)
    parts, share = edit_picture(model, batch, edit, look.without_pictures())
    assert torch.equal(whole, parts) and share == pytest.approx(covered, abs=1e-6) and not torch.equal(whole, batch[0])


@pytest.mark.parametrize("side", [32, 33, 64, 96, 128, 160])
def test_pictures_of_any_multiple_of_the_flows_size(side):
    """The tent filter has even strides alone."""
    images = torch.rand(1, 3, side, side) * 2 - 1
    assert aligner().align(images).isfinite().all()


@pytest.mark.parametrize("shape", [(96, 96), (60, 128), (128, 60)])
def test_what_the_network_is_shown_smaller_is_edited_in_the_same_place(monkeypatch, shape):
    model = aligner(scale=0.1)
    rough = torch.randint(0, 256, (1, 3, 6, 6), dtype=torch.uint8)
    batch = torch.nn.functional.interpolate(rough, shape, mode="bilinear")
    edit = torch.zeros(1, 4, 64, 64)
    edit[:, :, 20:44, 20:44] = 1
    whole, covered = edit_picture(model, batch, edit, look_at(model, batch))
    monkeypatch.setattr(propagating, "SEEN", 64 * 64)
    parts, share = edit_picture(model, batch, edit, look_at(model, batch))
    assert parts.shape == whole.shape and 0.02 < covered < 0.9 and abs(share - covered) < 0.1 * covered
    assert ((whole.int() - parts.int()).abs().amax(0) > 40).float().mean() < 0.1 * covered + 0.02
