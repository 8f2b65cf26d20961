# SPDX-License-Identifier: Apache-2.0
"""An aligner of a set: its pictures by name and by their pixels, in their own pixels, against the definition of the records."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from aligners import aligner, bend
from sets import FLOW, SIDE, congealed, picture, write_set
from torch import Tensor

from gangealing_fast import Aligner
from gangealing_fast.applications import members
from gangealing_fast.applications.placed import placed_look, starting_matrix
from gangealing_fast.applications.squares import to_square
from gangealing_fast.congealing.placing import own_resolution, resized, scaling
from gangealing_fast.congealing.records import Registered
from gangealing_fast.data.pictures import to_float
from gangealing_fast.geometry.warps import identity_grid, mirror_grid, transform_points
from gangealing_fast.ops import mipmap_warp
from gangealing_fast.runtime.errors import UserError

NAMES = ["0.png", "1.png", "2.png"]


def registered(count: int = 1) -> Registered:
    """What a new picture is said to be."""
    return Registered(
        torch.eye(3, dtype=torch.float64).repeat(count, 1, 1),
        torch.zeros(count, 2, 2, 2),
        torch.zeros(count, dtype=torch.bool),
        torch.ones(count, dtype=torch.int64),
        torch.full((count,), 0.5),
    )


@pytest.fixture
def asked(monkeypatch):
    """How often a picture was registered; nothing is, as the sets are made by hand."""
    calls = []

    def register(image, *, start=None):
        calls.append(tuple(image.shape))
        return registered()

    monkeypatch.setattr(members, "register_of", lambda saved, path, features: register)
    return calls


def shown_at(number: int, points: np.ndarray, model: str = "similarity") -> np.ndarray:
    """Template points of a member to its pixels: inv(matrix) @ (p + flow(p)), written anew."""
    found = congealed(model)
    flow, inverse = found.flow[number].double().numpy(), np.linalg.inv(found.matrix[number].numpy())
    result = []
    for x, y in points:
        column, row = ((value + 0.5) * FLOW / SIDE - 0.5 for value in (x, y))
        moved = np.array([x, y]) + bilinear(flow, row, column)
        there = inverse @ [*moved, 1.0]
        result.append(there[:2] / there[2])
    return np.array(result)


def bilinear(values: np.ndarray, row: float, column: float) -> np.ndarray:
    row, column = np.clip(row, 0, len(values) - 1), np.clip(column, 0, len(values) - 1)
    i, j = min(int(row), len(values) - 2), min(int(column), len(values) - 2)
    u, v = row - i, column - j
    top = values[i, j] * (1 - v) + values[i, j + 1] * v
    return top * (1 - u) + (values[i + 1, j] * (1 - v) + values[i + 1, j + 1] * v) * u


def whole_places(count: int) -> Tensor:
    """Pixels of the template, `[count, 9, 2]`: at its pixels the grid of a look is exact."""
    at = torch.tensor([4.0, 15.0, 27.0])
    return torch.stack(torch.meshgrid(at, at, indexing="xy"), -1).reshape(1, 9, 2).repeat(count, 1, 1)


@pytest.mark.parametrize("model", ["similarity", "homography"])
def test_points_lie_where_the_records_say(tmp_path, asked, model):
    aligned = Aligner.load(write_set(tmp_path, model))
    assert (aligned.names, aligned.size, aligned.clusters, aligned.reads) == (tuple(NAMES), SIDE, 2, None)
    points = whole_places(3)
    found = aligned.from_template(NAMES, points)
    for number in range(3):
        expected = torch.from_numpy(shown_at(number, points[number].numpy(), model)).float()
        torch.testing.assert_close(found[number], expected, atol=2e-3, rtol=0)
    inner = found + 0.3
    located = aligned.locate(NAMES, inner)
    sure = located.confidence > 0.99
    assert sure.float().mean() > 0.5
    torch.testing.assert_close(aligned.from_template(NAMES, located.points)[sure], inner[sure], atol=2e-3, rtol=0)
    assert not asked, "points of the set need no pixels"


def test_a_transfer_goes_between_pictures_of_two_sizes(tmp_path, asked):
    aligned = Aligner.load(write_set(tmp_path))
    template = torch.tensor([[[12.0, 14.0], [20.0, 18.0]]])
    start = aligned.from_template(["0.png"], template)
    torch.testing.assert_close(
        aligned.transfer(["0.png"], ["1.png"], start), aligned.from_template(["1.png"], template), atol=5e-3, rtol=0
    )
    torch.testing.assert_close(aligned.to_template(["0.png"], start), template, atol=5e-3, rtol=0)


def test_names_and_pixels_give_the_same(tmp_path, asked):
    aligned = Aligner.load(write_set(tmp_path))
    points = whole_places(1) * 0.5 + 8
    for number, name in enumerate(NAMES):
        images = to_float(picture(number))[None]
        look = aligned.look(images)
        assert torch.equal(aligned.look([name]).alignment.grid, look.alignment.grid)
        assert torch.equal(aligned.align([name]), aligned.align(images))
        assert torch.equal(aligned.from_template([name], points), aligned.from_template(images, points))
        assert all(torch.equal(a, b) for a, b in zip(aligned.locate([name], points), aligned.locate(images, points), strict=True))
        assert torch.equal(aligned.flow_scores([name]), aligned.flow_scores(images))
        assert torch.equal(aligned.out_of_bounds([name]), aligned.out_of_bounds(images))
        assert [tensor.tolist() for tensor in aligned.assign([name])] == [tensor.tolist() for tensor in aligned.assign(images)]
        maps = images[:, :2]
        assert torch.equal(aligned.maps_to_template([name], maps), aligned.maps_to_template(images, maps))
        drawn = torch.rand(1, 4, 16, 16, generator=torch.Generator().manual_seed(number))
        for a, b in zip(aligned.maps_from_template([name], drawn), aligned.maps_from_template(images, drawn), strict=True):
            assert torch.equal(a, b) and a.shape[2:] == images.shape[2:]
    assert not asked
    assert aligned.align(NAMES).shape == (3, 3, SIDE, SIDE) and aligned.align(NAMES[:2], output_resolution=20).shape == (
        2,
        3,
        20,
        20,
    )
    assert aligned.decides and aligned.flips and aligned.assign(NAMES)[0].tolist() == [0, 0, 1]


def test_other_pictures_are_registered(tmp_path, asked):
    aligned = Aligner.load(write_set(tmp_path))
    other = to_float(picture(0))[None].flip(2)
    look = aligned.look(torch.cat([other, to_float(picture(0))[None]]))
    assert asked == [(3, 30, 40)] and look.cluster.tolist() == [1, 0]
    # The identity of a picture that was said above: pixel p of the template shows pixel p.
    torch.testing.assert_close(aligned.from_template(other, whole_places(1)), whole_places(1), atol=1e-4, rtol=0)
    assert aligned.align(torch.zeros(0, 3, 9, 9)).shape == (0, 3, SIDE, SIDE)


def test_alpha_stages_and_gradients(tmp_path, asked):
    aligned = Aligner.load(write_set(tmp_path))
    images = to_float(picture(2))[None]
    torch.testing.assert_close(aligned.warp(images, alpha=0.0).grid[0], identity_grid(SIDE, SIDE))
    flat, whole = aligned.stages(images)
    assert not flat.residual_flow.any() and torch.equal(whole.grid, aligned.warp(images).grid)
    assert not torch.equal(flat.grid, whole.grid)
    leaf = images.clone().requires_grad_()
    aligned.align(leaf).sum().backward()
    assert leaf.grad is not None and leaf.grad.any()
    again = pickle.loads(pickle.dumps(Aligner.by(aligner().finder)))
    assert again.size == 32


def test_mistakes_are_sentences(tmp_path, asked):
    folder = write_set(tmp_path)
    aligned = Aligner.load(folder)
    with pytest.raises(UserError, match=r"has no picture none.png: give a name as the set has it \(0.png"):
        aligned.align(["none.png"])
    with pytest.raises(TypeError, match="names of pictures are a list"):
        aligned.align("0.png")
    with pytest.raises(ValueError, match="one size at a time"):
        aligned.look(NAMES)
    with pytest.raises(ValueError, match="several sizes"):
        aligned.maps_from_template(NAMES, torch.zeros(1, 1, 8, 8))
    with pytest.raises(ValueError, match="maps must be"):
        aligned.maps_to_template(NAMES, torch.zeros(3, 1, 8, 8))
    with pytest.raises(ValueError, match="takes neither assignment nor base_warp"):
        aligned.look(to_float(picture(0))[None], base_warp=torch.eye(2, 3)[None])
    with pytest.raises(UserError, match="no network to export"):
        aligned.export(tmp_path / "a.onnx")
    with pytest.raises(UserError, match="but no network"):
        _ = aligned.transformer
    for option in ({"flips": True}, {"cluster": 1}, {"iters": 2}):
        with pytest.raises(ValueError, match="finds mirrors and clusters by itself"):
            Aligner.load(folder, **option)
    with pytest.raises(UserError, match="knows no pictures by name"):
        aligner().align(["a.png"])
    changed = picture(0)
    changed[0, 0, 0] ^= 255
    from gangealing_fast.storage.files import save_picture

    save_picture(tmp_path / "pictures" / "0.png", changed)
    aligned.from_template(["0.png"], whole_places(1))  # needs no pixels
    with pytest.raises(UserError, match="0.png in .* is another picture than when .* was made"):
        aligned.align(["0.png"])
    (tmp_path / "pictures" / "1.png").unlink()
    with pytest.raises(UserError, match="1.png in .* cannot be read"):
        aligned.align(["1.png"])


@pytest.mark.parametrize("model", ["similarity", "homography"])
@pytest.mark.parametrize("number", [0, 1])
def test_matrix_and_flow_of_a_look_are_those_of_a_trained_one(number, model):
    """The grid is matrix · (identity + flow) of the picture, or of its mirror image; the picture is read by it."""
    found, row = congealed(model), slice(number, number + 1)
    square = to_square(to_float(picture(number))[None], "border")
    one = Registered(found.matrix[row], found.flow[row], found.mirrored[row], found.cluster[row], found.confidence[row])
    record = placed_look(one, square, SIDE, padding_mode="border").alignment
    moved = identity_grid(SIDE, SIDE)[None] + record.residual_flow
    moved = moved if record.matrix is None else transform_points(record.matrix, moved)
    torch.testing.assert_close(mirror_grid(moved, one.mirrored), record.grid, atol=1e-4, rtol=1e-4)
    assert torch.equal(mipmap_warp(square.images, record.grid, padding_mode="border"), record.image)
    assert (record.matrix is None) == (model == "homography")


@pytest.mark.parametrize("size", [(32, 32), (20, 44), (50, 31)])
def test_the_start_of_a_refinement_is_what_the_network_found(size):
    model = aligner(("similarity", "flow"), scale=0.1)
    bend(model, 0.0)
    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    look = model.look(images)._replace(mirrored=torch.tensor([False, False]))
    points = whole_places(2)
    expected = model.from_template(images, points).double()
    matrix = starting_matrix(look, SIDE)
    ones = torch.ones(2, 9, 1, dtype=torch.float64)
    found = torch.cat([expected, ones], 2) @ matrix.mT
    torch.testing.assert_close(found[..., :2], points.double(), atol=2e-2, rtol=0)


def test_frames_of_other_sizes():
    matrix = torch.tensor([[0.5, 0.0, 3.0], [0.0, 0.5, -1.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    small = resized(matrix, (100, 60), (50, 30))
    large = torch.tensor([41.0, 17.0, 1.0], dtype=torch.float64)
    there = torch.tensor([(41.5 / 2) - 0.5, (17.5 / 2) - 0.5, 1.0], dtype=torch.float64)
    torch.testing.assert_close(small @ there, matrix @ large)
    torch.testing.assert_close(
        scaling(32, 64) @ torch.tensor([-0.5, 31.5, 1.0], dtype=torch.float64), torch.tensor([-0.5, 63.5, 1.0], dtype=torch.float64)
    )
    assert own_resolution(matrix, 32) == 64 and own_resolution(torch.eye(3), 32) == 32
