# SPDX-License-Identifier: Apache-2.0
"""--refine of every command that uses an aligner: which pictures make the template, and that what was refined is in use."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest
import torch
from aligners import aligner
from PIL import Image
from videos import pictures, write_video

from gangealing_fast import Aligner
from gangealing_fast.applications import aligning, evaluating, propagating, visualizing
from gangealing_fast.applications.config import AlignConfig, EvaluateConfig, PropagateConfig, VisualizeConfig
from gangealing_fast.runtime.errors import UserError

COUNT = 7


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Pictures of one grey each, with key points; an edit; an aligner."""
    (tmp_path / "pictures").mkdir()
    for number in range(COUNT):
        Image.new("RGB", (40, 32), (number * 20,) * 3).save(tmp_path / "pictures" / f"{number}.png")
    numpy.save(tmp_path / "pictures" / "keypoints.npy", numpy.full((COUNT, 2, 2), 12.0) + numpy.arange(2)[None, :, None])
    Image.new("RGBA", (32, 32), (255, 0, 0, 128)).save(tmp_path / "edit.png")
    aligner().save_pretrained(tmp_path / "aligner")
    return tmp_path


def commands(place: Path, data: Path, refine: bool = True) -> dict:
    about = {"checkpoint": place / "aligner", "data": data, "refine": refine, "refine_pictures": 3, "threads": 1}
    edit = (str(place / "edit.png"),)
    return {
        "align": lambda out: aligning.run(AlignConfig(out=out, **about)),
        "propagate": lambda out: propagating.run(PropagateConfig(out=out, edit=edit, **about)),
        "visualize": lambda out: visualizing.run(VisualizeConfig(out=out, show=("average",), **about)),
        "evaluate": lambda out: evaluating.run(EvaluateConfig(out=out, features="none", cycle_count=0, bootstrap=0, **about)),
    }


class Refining:
    """Stands for `Aligner.refine`: notes the examples, and gives an aligner that says when it looks."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.examples: list[torch.Tensor] = []
        self.looks = 0
        patch.setattr(Aligner, "refine", self._refine)

    def _refine(self, images: list[torch.Tensor]) -> Aligner:
        self.examples = images
        made = aligner(scale=0.1)
        inner = made.finder.look

        def look(*arguments, **options):
            self.looks += 1
            return inner(*arguments, **options)

        made.finder.look = look
        return made


@pytest.mark.parametrize("command", ["align", "propagate", "visualize", "evaluate"])
def test_every_command_refines_on_pictures_that_are_evenly_spread(place, monkeypatch, command):
    refining = Refining(monkeypatch)
    commands(place, place / "pictures")[command](place / "out")
    greys = [round((float(example.mean()) + 1) * 127.5) for example in refining.examples]
    assert greys == [0, 40, 80]  # every second of seven
    assert refining.looks > 0


@pytest.mark.parametrize("command", ["align", "propagate", "visualize", "evaluate"])
def test_no_command_refines_unasked(place, monkeypatch, command):
    refining = Refining(monkeypatch)
    commands(place, place / "pictures", refine=False)[command](place / "out")
    assert not refining.examples and not refining.looks


def test_frames_of_a_video_are_evenly_spread(place, monkeypatch):
    refining = Refining(monkeypatch)
    shown = pictures(9)
    commands(place, write_video(place / "video.mp4", shown))["propagate"](place / "out")
    assert len(refining.examples) == 3 and refining.looks > 0
    frames = torch.stack([torch.from_numpy(frame).permute(2, 0, 1) / 127.5 - 1 for frame in shown])
    nearest = [int((frames - example).abs().mean((1, 2, 3)).argmin()) for example in refining.examples]
    assert nearest == [0, 3, 6]


@pytest.mark.parametrize("command", ["align", "propagate", "visualize", "evaluate"])
def test_a_set_is_refined_already(place, monkeypatch, command):
    monkeypatch.setattr(Aligner, "names", property(lambda self: ("0.png",)))  # what an aligner of a set has
    with pytest.raises(UserError, match="registers to the pixel already; leave out --refine"):
        commands(place, place / "pictures")[command](place / "out")


def test_tars_are_not_refined(place):
    with pytest.raises(UserError, match="--refine makes its template of single pictures"):
        aligning.run(
            AlignConfig(checkpoint=place / "aligner", data=place / "pictures", out=place / "out", shard=3, refine=True, threads=1)
        )
