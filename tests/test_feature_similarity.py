# SPDX-License-Identifier: Apache-2.0
"""Similarities on frozen features: what they start as, what learns, how they are kept and what they learn from a few pictures."""

from __future__ import annotations

import copy
import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from runs import train_config, write_generator, write_pictures
from torch.testing import assert_close

from gangealing_fast import Aligner
from gangealing_fast.alignment.poses import PoseRange, equivariance_error, show
from gangealing_fast.alignment.trainer import run
from gangealing_fast.checkpoints.reading import read
from gangealing_fast.checkpoints.writing import write
from gangealing_fast.geometry.warping import Warping
from gangealing_fast.models import ClusterClassifier, SpatialTransformer
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.storage import checkpoint, exports

TRUNKS = pytest.mark.parametrize("trunk", ["efficientnet", "places"])


def transformer(**changes) -> SpatialTransformer:
    torch.manual_seed(0)
    options = {"transforms": ("similarity",), "flow_size": 32, "trunk": "efficientnet"}
    return SpatialTransformer(**(options | changes))


@TRUNKS
@pytest.mark.parametrize("size", [32, 64, 128])
def test_it_begins_with_the_identity_at_any_size(size, trunk):
    network = transformer(flow_size=size, trunk=trunk)
    matrix = network(torch.rand(2, 3, size, size) * 2 - 1).matrix
    assert_close(matrix, torch.eye(2, 3).expand(2, 2, 3))


@TRUNKS
def test_the_features_are_frozen_and_kept(trunk):
    """No parameter of the features, which are part of the state dict all the same, so that a file is complete."""
    network = transformer(trunk=trunk)
    assert not [name for name, _ in network.named_parameters() if ".look." in name]
    state = network.state_dict()
    assert any(".look." in name for name in state)
    other = transformer(trunk=trunk)
    for name, buffer in other.named_buffers():
        if ".look." in name:
            buffer.zero_()
    for parameter in other.stns[0].warp_head.parameters():
        torch.nn.init.normal_(parameter)
    other.load_state_dict(copy.deepcopy(state))
    images = torch.rand(2, 3, 32, 32)
    assert_close(other(images).matrix, network(images).matrix)


@TRUNKS
def test_it_learns_to_undo_poses(trunk):
    """Of twenty pictures of blobs in random poses; a transformer that does nothing stays where it began."""
    torch.manual_seed(0)
    blobs = torch.nn.functional.interpolate(torch.rand(20, 3, 4, 4), size=(64, 64), mode="bicubic").clamp(0, 1) * 2 - 1
    network, range_ = transformer(flow_size=64, trunk=trunk), PoseRange(30, (0.8, 1.2), 0.1)
    optimizer = torch.optim.Adam(network.parameters(), 2e-3)
    errors = []
    for _ in range(40):
        pose = range_.draw(torch.randn(20, 4))
        grids = network(torch.cat([blobs, show(blobs, pose, "reflection")]), warping=Warping("reflection")).grid.chunk(2)
        error = equivariance_error(*grids, pose).mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        errors.append(float(error.detach()))
    assert sum(errors[-5:]) < 0.4 * sum(errors[:5])


@TRUNKS
@pytest.mark.parametrize("changes", [{"transforms": "similarity"}, {"clusters": 2, "iters": 2}])
def test_a_run_is_exported_and_read_again(tmp_path: Path, changes, trunk):
    """`train`, the exported aligner and the checkpoint agree; the published format has no such transformer, and says so."""
    write_generator(tmp_path / "generator.safetensors")
    write_pictures(tmp_path / "pictures")
    config = train_config(tmp_path, trunk=trunk, steps=3, **changes)
    run(config)
    exported = read(config.out / "aligner.safetensors").transformer
    average = checkpoint.load_latest(config.out, kind="train")["average"]
    for name, value in exported.state_dict().items():
        assert_close(value, average[name], rtol=0, atol=0)
    assert exported.trunk == trunk
    if not changes.get("clusters"):
        images = torch.rand(3, 3, 32, 32) * 2 - 1
        aligner = Aligner.load(config.out)
        assert aligner.warp(images).grid.shape == (3, 32, 32, 2)
        shutil.copy(config.generator, config.out)
        with pytest.raises(UserError, match=f"no transformer with --trunk {trunk}"):
            write(read(config.out), tmp_path / "original.pt", "original")
        assert not (tmp_path / "original.pt").exists()
    else:
        assert ClusterClassifier.like(exported).clusters == 2


@TRUNKS
def test_it_is_exported_as_a_program(tmp_path: Path, trunk):
    network = transformer(trunk=trunk)
    for parameter in network.stns[0].warp_head.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    aligner = Aligner(network.eval().requires_grad_(False))
    images = torch.rand(3, 3, 32, 32) * 2 - 1
    program = torch.export.load(aligner.export(tmp_path / "aligner.pt2")).module()
    assert_close(program(images)[1], aligner.warp(images).grid, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("trunk", "lie"), [("efficientnet", {"flow_size": 4096}), ("efficientnet", {"heads": 3}), ("places", {"heads": 3})]
)
def test_a_header_that_lies_about_its_size_is_refused(tmp_path: Path, trunk, lie):
    write_generator(tmp_path / "generator.safetensors")
    config = train_config(tmp_path, trunk=trunk, transforms="similarity", steps=1)
    run(config)
    tensors, about = exports.load_safetensors(config.out / "aligner.safetensors")
    about["transformer"] |= lie
    broken = tmp_path / "broken.safetensors"
    exports.export_safetensors(broken, tensors, about, half=False)
    with pytest.raises(UserError, match="its header asks for"):
        read(broken)


@TRUNKS
def test_a_flow_alone_has_no_such_trunk(tmp_path: Path, trunk):
    with pytest.raises(ValueError, match="'places' with a similarity"):
        transformer(transforms=("flow",), trunk=trunk)
    write_generator(tmp_path / "generator.safetensors")
    with pytest.raises(UserError, match="'places' with a similarity"):
        run(dataclasses.replace(train_config(tmp_path), transforms="flow", trunk=trunk))
