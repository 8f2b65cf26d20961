# SPDX-License-Identifier: Apache-2.0
"""The flow that is spread from what places say, and the transformer that ends with it."""

from __future__ import annotations

import copy
import dataclasses
import math
from pathlib import Path

import pytest
import torch
from runs import train_config, write_generator, write_pictures
from torch.testing import assert_close

from gangealing_fast import Aligner
from gangealing_fast.alignment.trainer import run
from gangealing_fast.checkpoints.reading import read
from gangealing_fast.geometry.warping import Warping
from gangealing_fast.geometry.warps import compose_flows, identity_grid, similarity_matrix, transform_points
from gangealing_fast.models import SpatialTransformer
from gangealing_fast.models.place_flow import CELLS, DOUBT, PlaceFlow, spread
from gangealing_fast.models.place_similarity import PlaceHead, positions
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.storage import exports


def transformer(**changes) -> SpatialTransformer:
    torch.manual_seed(0)
    options = {"transforms": ("similarity", "flow"), "flow_size": 32, "trunk": "places", "flow_trunk": "places"}
    return SpatialTransformer(**(options | changes))


def taught(**changes) -> SpatialTransformer:
    """One that says something at places."""
    network = transformer(**changes)
    for parameter in network.similarity.warp_head.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return network.eval().requires_grad_(False)


def bent(at: torch.Tensor) -> torch.Tensor:
    """A smooth residual of points."""
    return 0.06 * torch.stack([(2 * at[..., 1]).sin(), (2 * at[..., 0]).cos()], -1)


def test_residuals_are_spread_to_where_they_belong():
    """A smooth field that is known at places comes out again, but for what the Gaussian takes and ε holds back."""
    said = positions(24).flatten(0, 1)[None]
    weight = torch.full((1, 24**2), 1 / 24**2)
    flow = spread(said, bent(said), weight)[0]
    inside = identity_grid(CELLS, CELLS).abs().amax(2) < 0.8
    assert_close(flow[inside], bent(identity_grid(CELLS, CELLS))[inside] / (1 + DOUBT), atol=4e-3, rtol=0)


def test_nothing_is_known_far_from_places_that_count():
    said = positions(24).flatten(0, 1)[None]
    weight = torch.softmax(torch.where(said[..., 0] < 0, 0.0, -40.0), 1)
    flow = spread(said, torch.full_like(said, 0.1), weight)[0]
    assert (flow[4:-4, 4 : CELLS // 2 - 4] > 0.06).all() and (flow[:, CELLS // 2 + 10 :].abs() < 1e-3).all()


class Says(PlaceHead):
    """Says of every place q of a picture that it belongs at `q - bent(q)`, in the frame that it does not know of."""

    def places(self, x, assignment=None):
        at = positions(x.shape[2])
        frame = self.frame(len(x), assignment)
        return super().places(x, assignment)._replace(template=transform_points(frame, (at - bent(at))[None]))


@pytest.mark.parametrize("angle", [0.0, 0.4])
def test_a_frame_that_matrices_end_with_is_taken_away(angle):
    head = Says(6, 1)
    with torch.no_grad():
        head.frame_bias.copy_(torch.tensor([math.atanh(angle / math.pi), 0.2 * angle, 0.1 * angle, 0.0]))
    assert_close(head.frame(1, None), similarity_matrix(*torch.tensor([[angle], [0.2 * angle], [0.1 * angle], [0.0]])))
    flow = PlaceFlow(CELLS)(head, torch.zeros(2, 6, 24, 24), None)
    at = identity_grid(CELLS, CELLS)
    inside = at.abs().amax(2) < 0.7
    assert_close((flow * (1 + DOUBT))[0][inside], bent(at)[inside], atol=1.5e-2, rtol=0)


def test_flows_are_composed_as_warps_are():
    base = identity_grid(32, 32)[None]
    first, second = bent(base), 0.05 * bent(base.flip(1))
    expected = second + bent(base + second)
    inside = (base[0].abs() < 0.9).all(2)
    assert_close(compose_flows(first, second)[0][inside], expected[0][inside], atol=2e-4, rtol=0)


@pytest.mark.parametrize("size", [32, 128])
def test_it_begins_with_the_identity(size):
    network = transformer(flow_size=size)
    found = network(torch.rand(2, 3, size, size) * 2 - 1)
    assert_close(found.residual_flow, torch.zeros(2, size, size, 2), atol=1e-5, rtol=0)
    assert not any(name.startswith("stns.1.") for name in network.state_dict())


def test_looks_and_heads():
    """Two looks for the flow, the last of which `forward` returns; all heads at once are the heads one by one."""
    network, images = taught(heads=2), torch.rand(2, 3, 32, 32) * 2 - 1
    warping = Warping("border", 2)
    stages = network.stages(images, warping=warping)
    assert [stage.residual_flow is None for stage in stages] == [True, True, False, False]
    found = network(images, warping=warping)
    assert torch.equal(found.grid, stages[-1].grid) and not torch.equal(found.grid, stages[-2].grid)
    one = network(images, warping=warping, assignment=torch.tensor([1, 1]))
    assert_close(found.grid[1::2], one.grid, atol=1e-4, rtol=0)
    copied = copy.deepcopy(network)
    copied.copy_first_head()
    both = copied(images, warping=warping).grid
    assert_close(both[::2], both[1::2], atol=1e-4, rtol=0)


def test_gradients_reach_what_reads():
    network = transformer(flow_size=32)
    torch.nn.init.normal_(network.similarity.warp_head.read.weight, std=0.02)
    network(torch.rand(2, 3, 32, 32) * 2 - 1).residual_flow.square().sum().backward()
    gradient = network.similarity.warp_head.read.weight.grad
    assert gradient is not None and gradient.isfinite().all() and gradient.abs().sum() > 0


@pytest.mark.parametrize("changes", [{}, {"clusters": 2}])
def test_a_run_is_exported_and_read_again(tmp_path: Path, changes):
    write_generator(tmp_path / "generator.safetensors")
    write_pictures(tmp_path / "pictures")
    config = train_config(tmp_path, trunk="places", flow_trunk="places", steps=2, **changes)
    run(config)
    exported = read(config.out / "aligner.safetensors").transformer
    assert exported.flow_trunk == "places" and isinstance(exported.flow, PlaceFlow)


def test_an_aligner_is_exported_as_a_program(tmp_path: Path):
    aligner = Aligner(taught())
    images = torch.nn.functional.interpolate(torch.rand(3, 3, 4, 4), size=(32, 32), mode="bicubic").clamp(0, 1) * 2 - 1
    program = torch.export.load(aligner.export(tmp_path / "aligner.pt2")).module()
    # Three looks, each of them at what the one before it rounded.
    assert_close(program(images)[1], aligner.warp(images).grid, atol=1e-3, rtol=0)
    assert aligner.transformer(images).residual_flow.abs().amax() > 0.02


def test_a_file_that_says_nothing_of_it_has_a_learned_flow(tmp_path: Path):
    write_generator(tmp_path / "generator.safetensors")
    config = train_config(tmp_path, trunk="places", steps=1)
    run(config)
    tensors, about = exports.load_safetensors(config.out / "aligner.safetensors")
    del about["transformer"]["flow_trunk"]
    older = tmp_path / "older.safetensors"
    exports.export_safetensors(older, tensors, about, half=False)
    assert read(older).transformer.flow_trunk == "learned"


def test_it_needs_a_similarity_of_places(tmp_path: Path):
    for changes in ({"trunk": "learned"}, {"trunk": "efficientnet"}, {"flow_trunk": "nonsense"}):
        with pytest.raises(ValueError, match="flow_trunk must be 'learned', or 'places' if the trunk is"):
            transformer(**changes)
    write_generator(tmp_path / "generator.safetensors")
    with pytest.raises(UserError, match="flow_trunk must be 'learned'"):
        run(dataclasses.replace(train_config(tmp_path), flow_trunk="places"))
