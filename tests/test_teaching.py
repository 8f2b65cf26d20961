# SPDX-License-Identifier: Apache-2.0
"""A transformer that learns from a set what was found there."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from runs import assert_identical
from sets import SIZES, picture, saved_set, write_set

from gangealing_fast.alignment.config import PRESETS, TrainConfig
from gangealing_fast.alignment.poses import PoseRange
from gangealing_fast.alignment.teaching import PLACES, TOLD, Lessons, read_taught
from gangealing_fast.alignment.trainer import run
from gangealing_fast.applications.placed import placed_look
from gangealing_fast.applications.squares import to_square
from gangealing_fast.congealing.features import Bases
from gangealing_fast.congealing.folder import FILE, save_set
from gangealing_fast.congealing.records import Registered
from gangealing_fast.congealing.template import SALIENCY_POWER, Level
from gangealing_fast.congealing.templates import Template, Templates
from gangealing_fast.congealing.window import WHOLE
from gangealing_fast.data.pictures import to_float
from gangealing_fast.geometry.warps import mirror_grid
from gangealing_fast.models import SpatialTransformer
from gangealing_fast.runtime.errors import UserError


def test_the_grids_that_are_taught_are_those_of_the_set(tmp_path):
    saved = saved_set(tmp_path)
    taught, found = read_taught(dataclasses.replace(saved, method="entropy"), 64), saved.found
    assert taught.pictures.shape == (3, 3, 64, 64)
    for k in range(len(SIZES)):
        row = slice(k, k + 1)
        one = Registered(found.matrix[row], found.flow[row], found.mirrored[row], found.cluster[row], found.confidence[row])
        square = to_square(to_float(picture(k))[None], "border")
        still = dataclasses.replace(one, flow=torch.zeros_like(one.flow))
        for grids, registered, places in ((taught.grids, still, PLACES), (taught.flows, one, TOLD)):
            look = placed_look(registered, square, saved.side, padding_mode="border", output_resolution=places)
            expected = mirror_grid(look.alignment.grid, one.mirrored)[0]
            torch.testing.assert_close(grids[k], expected, atol=1e-5, rtol=1e-5)


def test_places_count_as_in_the_set(tmp_path):
    """The saliency of the template, to the power that congealing takes; a template that cannot be read is a sentence."""
    saved = saved_set(tmp_path)
    mean = torch.zeros(32 * 32, 2)
    mean[:512] = torch.tensor([0.6, 0.0])
    mean[512:] = torch.tensor([0.0, 0.3])
    level = Level(mean, torch.ones(32 * 32, dtype=torch.bool), Bases([torch.zeros(2)], [torch.eye(2)]))
    template = Template(level, level, level, WHOLE, torch.zeros(4, 4, 2), 0.5, 0.5, torch.zeros(3, 32, 32))
    state = Templates((template,), "efficientnet", "affine", 32, False).state()
    counts = read_taught(dataclasses.replace(saved, state=state), 64).saliency
    assert counts.shape == (TOLD, TOLD)
    torch.testing.assert_close(counts.mean(), torch.tensor(1.0))
    torch.testing.assert_close(counts[0, 0] / counts[-1, 0], torch.tensor(2.0**SALIENCY_POWER))
    assert (read_taught(dataclasses.replace(saved, method="entropy"), 64).saliency == 1).all()
    with pytest.raises(UserError, match="the set's template cannot be read"):
        read_taught(saved, 64)


def one_template(saved):
    found = dataclasses.replace(saved.found, cluster=torch.zeros(3, dtype=torch.int64), template=saved.found.template[:1])
    return dataclasses.replace(saved, found=found, method="entropy")


def tiny(tmp_path, **changes) -> TrainConfig:
    (tmp_path / "set").mkdir(exist_ok=True)
    save_set(tmp_path / "set" / FILE, one_template(saved_set(tmp_path)))
    small = dict(flow_size=32, steps=4, batch=4, snapshot=2, threads=1)
    places = {"teach_from": tmp_path / "set", "out": tmp_path / "run"}
    return dataclasses.replace(PRESETS["set"], **{**places, **small, **changes})


@pytest.mark.parametrize("trunk", ["learned", "places"])
def test_learning_lessens_the_error(tmp_path, trunk):
    torch.manual_seed(0)
    taught = read_taught(one_template(saved_set(tmp_path)), 32)
    transformer = SpatialTransformer(("similarity",), 32, channel_base=64, max_channels=16, trunk=trunk)
    lessons = Lessons(transformer, taught, PoseRange(15.0, (0.9, 1.1), 0.05), batch=16, padding_mode="border")
    optimizer = torch.optim.Adam(transformer.parameters(), 3e-3)
    losses = []
    for _ in range(50):
        loss, near = lessons.lesson()
        assert 0 <= near <= 1
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])


@pytest.mark.parametrize("trunk", ["learned", "places"])
def test_a_run_exports_an_aligner_and_resumes_to_the_same_numbers(tmp_path, trunk):
    from gangealing_fast import Aligner

    learned = dict(transforms="similarity", trunk="learned", channel_base=64, max_channels=8) if trunk == "learned" else {}
    whole, halves = (tiny(tmp_path, out=tmp_path / name, **learned) for name in ("whole", "halves"))
    assert run(whole) is None
    assert "--refine --data YOUR_PICTURES" in (tmp_path / "whole" / "report.html").read_text()
    assert (tmp_path / "whole" / "report.html").exists() and (tmp_path / "whole" / "average.png").exists()
    assert Aligner.load(tmp_path / "whole").align(torch.zeros(1, 3, 32, 32)).shape == (1, 3, 32, 32)
    from gangealing_fast.alignment import teaching

    class Killed(Exception):
        pass

    lesson, count = Lessons.lesson, 0

    def killed(self):
        nonlocal count
        count += 1
        if count == 4:
            raise Killed
        return lesson(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(teaching.Lessons, "lesson", killed)
        with pytest.raises(Killed):
            run(halves)
    run(halves)
    first, second = (torch.load(tmp_path / name / "checkpoint.pt", weights_only=True)["state"] for name in ("whole", "halves"))
    assert_identical(first["transformer"], second["transformer"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"transforms": "similarity,flow", "flow_trunk": "learned"}, "teaches a similarity"),
        ({"flips": True}, "neither --start-from nor --clusters nor --flips"),
    ],
)
def test_options_that_do_not_fit_are_sentences(tmp_path, changes, words):
    with pytest.raises(UserError, match=words):
        run(tiny(tmp_path, **changes))


def test_sets_that_do_not_fit_are_sentences(tmp_path):
    config = tiny(tmp_path)
    (tmp_path / "pictures" / "0.png").unlink()
    with pytest.raises(UserError, match="0.png in .* any more"):
        run(config)
    (tmp_path / "two").mkdir()
    with pytest.raises(UserError, match="has 2 templates"):
        run(dataclasses.replace(config, teach_from=write_set(tmp_path / "two")))
    with pytest.raises(UserError, match="name what is learned from"):
        run(dataclasses.replace(config, teach_from=None))
