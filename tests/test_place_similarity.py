# SPDX-License-Identifier: Apache-2.0
"""What is read at places, and the similarity that is fitted to it."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from gangealing_fast.alignment.frame import keep_area
from gangealing_fast.alignment.teaching import unlikelihood
from gangealing_fast.geometry.warping import Warping
from gangealing_fast.geometry.warps import invert, similarity_matrix, transform_points
from gangealing_fast.models import SpatialTransformer
from gangealing_fast.models.place_similarity import STRIDE, PlaceHead, Places, PlaceSimilarityTransformer, fitted, positions


def some(count: int = 5) -> torch.Tensor:
    """Similarities of any angle, some far from the identity."""
    generator = torch.Generator().manual_seed(3)
    angle, scale, x, y = torch.randn(4, count, generator=generator)
    return similarity_matrix(angle * 2, scale * 0.7, x, y)


def said(matrix: torch.Tensor, side: int = 9) -> Places:
    """What pictures say whose templates `matrix` carries to them, all equally reliable."""
    at = positions(side)
    template = transform_points(invert(matrix), at.expand(len(matrix), -1, -1, -1))
    return Places(at, template, torch.zeros(len(matrix), side, side))


def test_a_similarity_is_found_exactly():
    assert_close(fitted(said(some())), some(), atol=2e-4, rtol=2e-4)


def test_places_that_cannot_be_relied_on_do_not_count():
    places = said(some())
    places.template[:, :4] = 7.0
    places.reliance[:, :4] = -40.0
    assert_close(fitted(places), some(), atol=5e-4, rtol=5e-4)


def test_noise_neither_shrinks_nor_enlarges():
    """Beyond its own share of the spread: which side the noise is on makes no difference, and back and forth is the identity."""
    torch.manual_seed(0)
    places = said(torch.eye(2, 3).expand(200, -1, -1), side=16)
    noisy = places._replace(template=places.template + 0.4 * torch.randn_like(places.template))
    size = torch.linalg.det(fitted(noisy)[:, :, :2]).log().mean() / 2
    expected = -0.5 * math.log(1 + 0.4**2 / places.template[0].flatten(0, 1).var(0, unbiased=False).mean())
    assert abs(float(size) - expected) < 0.01
    turned = Places(noisy.template[0], places.at.expand(200, -1, -1, -1), places.reliance)
    back = fitted(turned)[0]
    assert_close(torch.linalg.det(fitted(noisy)[0, :, :2]) * torch.linalg.det(back[:, :2]), torch.tensor(1.0), atol=1e-3, rtol=0)


def test_places_that_all_say_the_same_make_a_finite_matrix_with_a_gradient():
    places = said(some())
    template = torch.zeros_like(places.template).requires_grad_()
    fitted(places._replace(template=template)).sum().backward()
    assert template.grad is not None and template.grad.isfinite().all()


def test_positions_are_the_middles_of_what_features_see():
    """The middle of all pixels that have any influence on a feature, of which none lies beyond the edges."""
    torch.manual_seed(0)
    look = PlaceSimilarityTransformer().look
    x = torch.randn(1, 3, 256, 256, requires_grad=True)
    fine = look.features(x)[0]
    expected = positions(256 // STRIDE)
    for row, column in ((12, 17), (16, 16), (19, 13)):
        (grad,) = torch.autograd.grad(fine[0, :, row, column].square().sum(), x, retain_graph=True)
        seen = grad[0].abs().sum(0) > 0
        rows, columns = seen.any(1).nonzero(), seen.any(0).nonzero()
        assert rows[0] > 0 and columns[0] > 0 and rows[-1] < 255 and columns[-1] < 255
        middle = torch.stack([columns[0] + columns[-1], rows[0] + rows[-1]]).float().flatten() / 2
        assert_close((2 * middle + 1) / 256 - 1, expected[row, column])


@pytest.mark.parametrize("heads", [1, 3])
def test_heads_differ_and_end_with_their_frames(heads):
    torch.manual_seed(0)
    head = PlaceHead(6, heads)
    x, assignment = torch.randn(4, 6, 5, 5), torch.tensor([0, heads - 1, heads // 2, 0])
    torch.nn.init.normal_(head.read.weight, std=0.1)
    plain = head(x, assignment)
    if heads > 1:
        assert not torch.allclose(plain, head(x, None), atol=1e-3)
    with torch.no_grad():
        head.frame_bias.unflatten(0, (4, heads))[1, heads - 1] = math.log(2)
    factor = torch.where(assignment == heads - 1, 2.0, 1.0)
    assert_close(head(x, assignment)[:, :, :2], plain[:, :, :2] * factor[:, None, None])


def test_the_frame_keeps_the_area():
    torch.manual_seed(0)
    network = SpatialTransformer(("similarity",), 32, trunk="places").eval()
    torch.nn.init.normal_(network.similarity.warp_head.read.weight, std=0.02)
    with torch.no_grad():
        network.similarity.warp_head.frame_bias[1] = 0.4
    images = torch.rand(6, 3, 32, 32) * 2 - 1
    keep_area(network, images, warping=Warping("border"))
    matrix = network(images, warping=Warping("border")).matrix
    assert abs(float(torch.linalg.det(matrix[:, :, :2]).mean()) - 1) < 1e-3


ALIKE = torch.ones(8, 8)


def test_what_was_read_rightly_is_likely():
    """And least unlikely at the width that the errors have."""
    matrix = torch.eye(2, 3).expand(1, -1, -1) * 0.6
    places = said(matrix, side=12)
    base = positions(8) - (STRIDE - 1) / (STRIDE * 8)  # the middles of cells, as places of a template are
    where = transform_points(matrix, base[None])
    right = unlikelihood(places, where, ALIKE)
    wrong = unlikelihood(places._replace(template=places.template + 0.3), where, ALIKE)
    assert float(right) < float(wrong)
    values = [
        float(unlikelihood(places._replace(template=places.template + 0.3, reliance=torch.full((1, 12, 12), value)), where, ALIKE))
        for value in (-8.0, -2 * math.log(0.3 * math.sqrt(2) / 2 / 0.1), 3.0)
    ]
    assert values[1] == min(values)
    places.template[:, :6] += 0.3
    upper = torch.zeros(8, 8)
    upper[:4] = 1
    assert float(unlikelihood(places, where, upper)) > float(unlikelihood(places, where, 1 - upper))


def test_places_beyond_the_picture_do_not_count():
    places = said(torch.eye(2, 3)[None], side=12)
    where = torch.full((1, 4, 4, 2), 3.0)
    assert float(unlikelihood(places, where, torch.ones(4, 4))) == 0
