# SPDX-License-Identifier: Apache-2.0
"""Random poses of samples: what is drawn, what a transformer is told of them, and what real pictures are judged by."""

from __future__ import annotations

import dataclasses
import importlib
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from runs import train_config, write_generator, write_pictures
from torch.testing import assert_close

from gangealing_fast.alignment.building import build
from gangealing_fast.alignment.evaluation import evaluate_pictures
from gangealing_fast.alignment.poses import PoseRange, equivariance_error, show
from gangealing_fast.alignment.results import new_samples, watch
from gangealing_fast.alignment.trainer import run
from gangealing_fast.data.digits import random_similarity
from gangealing_fast.geometry.warping import Warping
from gangealing_fast.geometry.warps import compose, identity_grid, invert, mirror_matrix, mirror_pictures, transform_points
from gangealing_fast.models.spatial_transformer import SpatialTransformer
from gangealing_fast.runtime.distributed import Group
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.storage.files import read_json_lines

RANGE = PoseRange(45.0, (0.6, 1.1), 0.15)
POSES: dict[str, Any] = {"pose_rotation": 30.0, "pose_scale": (0.8, 1.2), "pose_shift": 0.1}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_generator(tmp_path / "generator.safetensors")
    write_pictures(tmp_path / "pictures")
    return tmp_path


def test_poses_are_the_inverses_of_warps_within_the_range():
    """The same convention and, up to sampling, the same distribution as the warps of the digits."""
    warps = invert(RANGE.draw(torch.randn(20_000, 4, generator=torch.Generator().manual_seed(0))))
    digits = random_similarity(20_000, generator=torch.Generator().manual_seed(1))
    size, angle = warps[:, :, :2].det().sqrt(), torch.atan2(warps[:, 1, 0], warps[:, 0, 0])
    assert 0.6 <= float(size.min()) < 0.605 and 1.095 < float(size.max()) <= 1.1 + 1e-5
    assert math.radians(44.5) < float(angle.abs().max()) <= math.radians(45) + 1e-5
    assert float(warps[:, :, 2].abs().max()) <= 0.3 + 1e-5
    assert_close(warps.mean(0), digits.mean(0), atol=0.01, rtol=0)
    assert_close(warps.flatten(1).T.cov(), digits.flatten(1).T.cov(), atol=0.01, rtol=0)
    assert not PoseRange().wanted and PoseRange(shift=0.1).wanted
    assert_close(PoseRange().draw(torch.randn(3, 4)), torch.eye(2, 3).expand(3, 2, 3))


def test_the_error_is_nothing_where_the_pose_is_undone_and_grows_with_the_rest():
    pose, base = RANGE.draw(torch.randn(6, 4)), identity_grid(8, 8)[None]
    own = random_similarity(6)
    rest = random_similarity(6)  # what is left on top of undoing the pose
    posed = compose(invert(pose), compose(own, rest))
    grid, posed_grid = transform_points(own, base), transform_points(posed, base)
    assert float(equivariance_error(grid, transform_points(compose(invert(pose), own), base), pose).max()) < 1e-8
    size, angle = rest[:, :, :2].det().sqrt(), torch.atan2(rest[:, 1, 0], rest[:, 0, 0])
    shift = (compose(own, rest) - own)[:, :, 2]
    expected = shift.square().sum(1) + 2 * (size.log().cosh() - angle.cos())
    assert_close(equivariance_error(grid, posed_grid, pose), expected, rtol=1e-4, atol=1e-6)


def test_neither_zooming_in_nor_out_lessens_the_error():
    """A transformer that does the same to all pictures cannot gain by its size."""
    size = torch.tensor(1.0, requires_grad=True)
    base, pose = identity_grid(8, 8)[None], RANGE.draw(torch.randn(64, 4))
    warp = (size * base).expand(64, -1, -1, -1)
    error = equivariance_error(warp, warp, pose).mean()
    error.backward()
    assert float(error.detach()) > 0.05
    assert abs(float(size.grad)) < 1e-6


def test_a_mirrored_picture_has_the_mirrored_pose():
    images, pose = torch.rand(4, 3, 16, 16), RANGE.draw(torch.randn(4, 4))
    mirrored = torch.tensor([True, False, True, False])
    expected = mirror_pictures(show(images, pose, "reflection"), mirrored)
    turned = mirror_pictures(images, mirrored)
    assert_close(show(turned, mirror_matrix(pose, mirrored), "reflection"), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("changes", [{}, {"clusters": 2, "flips": True}, {"transforms": "similarity", "iters": 2}])
def test_training_learns_to_undo_poses(folder, changes):
    """The error falls on the samples it is trained on, with whatever else a run does."""
    options = {"steps": 30, "batch": 8, "anneal_psi": 30, "period": 0, "equivariance_weight": 50.0, "learning_rate": 0.005}
    config = train_config(folder, **POSES, **options, **changes)
    trainer = build(config, Group(torch.device("cpu")))
    trainer.draw = lambda stream, rows, draw=trainer.draw: draw(0, rows)  # the same samples every step
    errors = [trainer.step(index)["equivariance"] for index in range(config.steps)]
    assert errors[-1] < 0.5 * errors[0]
    samples = watch(trainer, config.steps)
    assert samples.equivariance is None


def test_without_poses_a_run_is_what_it_was(folder):
    """No further random numbers, no further term."""
    trainer = build(train_config(folder), Group(torch.device("cpu")))
    posed = build(train_config(folder, **POSES), Group(torch.device("cpu")))
    plain, more = (of.draw(0, range(3)) for of in (trainer, posed))
    assert more.shape[1] == plain.shape[1] + 4
    width = plain.shape[1] - plain.shape[1] % 16 - 16  # a row ends in another way where it is longer
    assert_close(more[:, :width], plain[:, :width], atol=0, rtol=0)
    assert "equivariance" not in trainer.step(0)


def test_new_samples_are_judged_as_they_were_made(folder):
    trainer = build(train_config(folder, **POSES), Group(torch.device("cpu")))
    numbers = trainer.draw("judged", range(3))
    plain = build(train_config(folder), Group(torch.device("cpu")))
    with torch.no_grad():
        assert_close(new_samples(trainer, "judged", 3), plain.samples(numbers[:, :-4], 0.0).unaligned.float())


def test_real_pictures_are_judged_in_known_poses(folder):
    run(train_config(folder, data=folder / "pictures", **POSES))
    out = folder / "run"
    assert "equivariance" in read_json_lines(out / "log.jsonl")[-1]
    assert (out / "average-posed.png").exists()
    page = (out / "report.html").read_text()
    assert "Pair error" in page and "random poses" in page


def test_an_aligner_that_undoes_every_pose_has_no_pair_error():
    """The figure against a transformer that is told the answer, and against one that does nothing."""
    images = torch.rand(6, 3, 32, 32)

    class Told(SpatialTransformer):
        def forward(self, images, *arguments, **options):
            alignment = super().forward(images, *arguments, **options)
            if self.answers:
                return alignment._replace(matrix=self.answers.pop(0))
            return alignment

    transformer = Told(("similarity",), 32, channel_base=64, max_channels=8).eval()
    numbers = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        transformer.answers = []
        nothing = evaluate_pictures(transformer, images, _squared, warping=Warping(), poses=RANGE)
        transformer.answers = [torch.eye(2, 3).repeat(6, 1, 1), *(invert(RANGE.draw(half)) for half in numbers)]
        told = evaluate_pictures(transformer, images, _squared, warping=Warping(), poses=RANGE)
    assert nothing.figures["Pair error"]["ratio"] == pytest.approx(1)
    assert told.figures["Pair error"]["ratio"] < 1e-5
    assert told.figures["Set spread"]["ratio"] < 1e-5


def _squared(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a - b).square().mean((1, 2, 3))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pose_scale": (1.2, 0.8)}, "--pose-scale takes two factors, the smaller first"),
        ({"pose_scale": (0.0, 1.0)}, "--pose-scale must be above 0"),
        ({"pose_shift": -0.1}, "--pose-shift must be at least 0"),
    ],
)
def test_ranges_that_cannot_be_are_refused(folder, changes, words):
    with pytest.raises(UserError, match=words):
        run(dataclasses.replace(train_config(folder), **changes))


def test_one_picture_is_shown_in_poses(folder, monkeypatch):
    """A file's picture large enough to see; a sample at its own size."""
    run(train_config(folder, transforms="similarity", steps=2))
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "tools"))
    show_poses = importlib.import_module("show_poses")
    picture = next((folder / "pictures").iterdir())
    sources = (
        (["--picture", picture, "--crop", 0, 0, 8], 128),
        (["--sample", 2, "--generator", folder / "generator.safetensors"], 32),
    )
    for source, side in sources:
        out = folder / f"poses-{side}.png"
        arguments = ["--checkpoint", folder / "run", *source, "--out", out, "--columns", 3]
        monkeypatch.setattr(sys, "argv", ["show_poses", *map(str, arguments)])
        show_poses.main()
        with Image.open(out) as shown:
            assert 3 * side < shown.width < 3 * side + 20 and 2 * side < shown.height < 2 * side + 20
