# SPDX-License-Identifier: Apache-2.0
"""What lies along a picture's edge says nothing of where the edge is, and the fine steps look at what pictures have in common."""

from __future__ import annotations

import pytest
import torch
from scenes import COUNT, colours, posed, scene

from gangealing_fast.congealing import FeatureNetwork, efficientnet_features, load_features, self_supervised_features
from gangealing_fast.congealing.features import Bases, Tap
from gangealing_fast.congealing.pictures import Squares
from gangealing_fast.congealing.template import Level
from gangealing_fast.congealing.views import Views
from gangealing_fast.congealing.window import SMALLEST, WHOLE, Window, window_of
from gangealing_fast.models.efficientnet import EfficientNetPerceptual
from gangealing_fast.models.self_supervised import SelfSupervisedPerceptual

GRID = 32


def level(saliency: torch.Tensor) -> Level:
    mean = torch.stack([saliency.flatten(), torch.zeros(GRID * GRID)], 1)
    return Level(mean, torch.ones(GRID * GRID, dtype=torch.bool), Bases([torch.zeros(2)], [torch.eye(2)]))


def own_networks(folder):
    SelfSupervisedPerceptual((8, 8, 8, 8)).export(folder / "perceptual.safetensors", {})
    return [efficientnet_features(), self_supervised_features(folder)]


def test_a_picture_of_one_colour_looks_alike_everywhere(tmp_path):
    """Convolutions that are padded with zeros tell the edge of such a picture from its middle."""
    plain = torch.full((1, 3, 64, 64), 0.3)
    for network in own_networks(tmp_path):
        assert network.rim == 0
        for tap in network.features(plain):
            middle = tap.maps[..., tap.maps.shape[2] // 2, tap.maps.shape[3] // 2]
            torch.testing.assert_close(tap.maps, middle[..., None, None].expand_as(tap.maps), rtol=1e-4, atol=1e-4)
    padded = EfficientNetPerceptual((2, 4)).features(plain)[0]
    assert (padded - padded[..., 4:5, 4:5]).abs().max() > 0.1, "the test would not see the edge"


def test_repeated_edges_leave_what_is_far_from_them_as_it_was():
    torch.manual_seed(0)
    picture = torch.rand(1, 3, 256, 256) * 2 - 1
    zeros = EfficientNetPerceptual((1,)).features(picture)[0]
    repeated = EfficientNetPerceptual((1,), padding="replicate").features(picture)[0]
    torch.testing.assert_close(repeated[..., 16:-16, 16:-16], zeros[..., 16:-16, 16:-16], rtol=1e-4, atol=1e-4)
    assert (repeated[..., 0, :] - zeros[..., 0, :]).abs().max() > 0.1


class Unknown(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d(x, 8)


def test_the_rim_of_a_network_of_the_users_own_is_left_out(tmp_path):
    """Nothing is known of how such a network pads."""
    torch.jit.script(Unknown()).save(str(tmp_path / "own.pt"))
    network = load_features(tmp_path / "own.pt", stride=8)
    pictures = torch.rand(2, 3, 256, 256) * 2 - 1
    views = Views(Squares(pictures, None, 256), network)
    unmoved, none = torch.eye(3).repeat(2, 1, 1), torch.zeros(2, dtype=torch.bool)
    found = views.describe(torch.arange(2), unmoved, none, (256, GRID), torch.Generator().manual_seed(0))
    inside = found.inside.view(2, GRID, GRID)
    assert inside[:, 1:-1, 1:-1].all() and inside.sum() == 2 * (GRID - 2) ** 2


def test_the_window_holds_what_is_salient():
    saliency = torch.full((GRID, GRID), 0.2)
    saliency[:12, 10:20] = 0.8
    window = window_of(level(saliency))
    assert SMALLEST <= window.half < 0.6
    assert window.y == window.half - 1, "moved into the frame"
    assert abs(window.x - (15 * 2 / GRID - 1)) < 1e-5
    block = torch.tensor([[10, 0], [20, 12]]) * 2 / GRID - 1
    corners = window.framed(torch.tensor([[-1.0, -1.0], [1.0, 1.0]]))
    assert (corners[0] <= block[0]).all() and (corners[1] >= block[1]).all()


@pytest.mark.parametrize("saliency", [torch.zeros(GRID, GRID), torch.full((GRID, GRID), 0.5)], ids=["none", "even"])
def test_without_salience_the_window_is_the_frame(saliency):
    assert window_of(level(saliency)) == WHOLE
    assert window_of(level(saliency)._replace(known=torch.zeros(GRID * GRID, dtype=torch.bool))) == WHOLE


def test_views_of_a_window_are_parts_of_those_of_the_frame():
    network = FeatureNetwork("pictures", lambda x: [Tap(x, 1.0, 0.0, x.shape[-1])], coarse=(64, 64), fine=(64, 64), rim=0.0)
    views = Views(Squares(posed(scene())[0], None, 96), network)
    rows, none = torch.arange(COUNT), torch.zeros(COUNT, dtype=torch.bool)
    matrix = torch.eye(3).repeat(COUNT, 1, 1)
    flow = 0.05 * torch.randn(COUNT, 4, 4, 2, generator=torch.Generator().manual_seed(0))
    whole, _ = views.pictures(rows, matrix, none, 128, flow)
    part, masks = views.pictures(rows, matrix, none, 64, flow, Window(0.25, -0.5, 0.5))
    torch.testing.assert_close(part, whole[..., :64, 48:112], atol=1e-5, rtol=1e-5)
    assert masks.shape == (COUNT, 1, 64, 64)
    assert colours().rim > 0, "a network that says nothing of its padding"
