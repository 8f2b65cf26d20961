# SPDX-License-Identifier: Apache-2.0
"""Pictures of another domain, aligned through a translator: `align`, `propagate` and `evaluate`."""

from __future__ import annotations

import importlib

import numpy
import pytest
import torch
from aligners import aligner, bend
from PIL import Image
from runs import call, write_pictures

from gangealing_fast.applications.aligner import Aligner
from gangealing_fast.applications.looks import joined
from gangealing_fast.applications.through import Through, _majority, _median
from gangealing_fast.checkpoints.writing import export_aligner
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.storage.files import read_json_lines
from gangealing_fast.translation import Translator
from gangealing_fast.translation.networks import TranslationNetworks


def translator(size: int = 32) -> Translator:
    torch.manual_seed(0)
    made = TranslationNetworks(width=4, halvings=1, blocks=1, style=2, hidden=8, style_halvings=1, outer_kernel=3)
    return Translator(made.requires_grad_(False), {"domains": ["first", "second"], "size": size}).eval()


class Plain(Translator):
    """Every style is the picture itself, brighter or darker: what is found must then be what is found without translating."""

    def __init__(self, shifts: tuple[float, ...] = (0.0,)) -> None:
        super().__init__(translator().networks, {"size": 32})
        self.shifts = torch.tensor(shifts).reshape(1, -1, 1, 1, 1)

    def translate(self, images, **options):
        return (images[:, None] + self.shifts).clamp(-1, 1)


def pictures(count: int = 2, height: int = 32, width: int = 32) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(1)) * 1.6 - 0.8


@pytest.mark.parametrize("transforms", [("similarity",), ("similarity", "flow")])
def test_through_a_translator_that_changes_nothing_all_is_as_without(transforms):
    model, images = aligner(transforms, scale=0.1), pictures()
    bend(model)
    through = Aligner.by(Through(model.finder, Plain((0.0, 0.0, 0.0)), torch.zeros(3, 2)))
    expected, found = model.look(images), through.look(images)
    torch.testing.assert_close(found.alignment.grid, expected.alignment.grid)
    torch.testing.assert_close(found.alignment.image, expected.alignment.image)
    torch.testing.assert_close(found.alignment.matrix, expected.alignment.matrix)
    assert found.spread is not None and found.spread.abs().max() < 1e-4
    for one, other in zip(model.stages(images), through.stages(images), strict=True):
        torch.testing.assert_close(one.grid, other.grid)


def test_the_warp_of_a_translation_is_applied_to_the_original():
    model, images = aligner(scale=0.2), pictures()
    through = Aligner.by(Through(model.finder, translator(), translator().random_styles(3)))
    look = through.look(images)
    grid, image = look.alignment.grid, look.alignment.image
    from gangealing_fast.ops import mipmap_warp

    torch.testing.assert_close(image, mipmap_warp(images, grid, padding_mode=model.warping.padding_mode))
    made = through.finder.translated(look.square)
    each = model.look(made).alignment.grid.unflatten(0, (2, 3))
    torch.testing.assert_close(grid, each.median(1).values)
    torch.testing.assert_close(look.spread, (each - grid[:, None]).norm(dim=-1).mean((1, 2, 3)) * model.size / 2)
    assert look.spread.min() > 0


def test_pictures_that_are_not_square_keep_their_points():
    model, images = aligner(scale=0.1), pictures(height=24, width=40)
    through = Aligner.by(Through(model.finder, translator(), translator().random_styles(2)))
    points = torch.tensor([[[18.0, 12.0], [22.0, 10.0]]]).expand(2, -1, -1)
    there = through.to_template(images, points)
    torch.testing.assert_close(through.from_template(images, there), points, atol=1e-2, rtol=1e-3)


@pytest.mark.parametrize(
    ("values", "voting", "expected"),
    [
        ([1.0, 5.0, 2.0], [True, True, True], 2.0),
        ([1.0, 5.0, 2.0], [True, True, False], 3.0),
        ([1.0, 5.0, 2.0], [False, True, False], 5.0),
        ([1.0, 2.0, 4.0, 100.0], [True] * 4, 3.0),
    ],
)
def test_the_median_is_over_those_that_vote(values, voting, expected):
    shaped = torch.tensor(values).reshape(-1, 1, 1).expand(-1, 2, 2)
    assert torch.equal(_median(shaped, torch.tensor([voting])), torch.full((1, 2, 2), expected))


def test_most_styles_decide_on_cluster_and_mirror():
    look = aligner().look(pictures(4))
    cluster, mirrored = torch.tensor([1, 0, 1, 0, 1, 1, 1, 0]), torch.tensor([0, 0, 0, 1, 1, 1, 1, 0]).bool()
    seen = joined([look, look])._replace(cluster=cluster, mirrored=mirrored)
    found, mirror, voting = _majority(seen, 4)
    assert found.tolist() == [1, 1] and mirror.tolist() == [False, True]
    assert voting.tolist() == [[True, False, True, False], [True, True, True, False]]


def test_one_wild_style_does_not_move_the_warp():
    class Wild(Plain):
        def translate(self, images, **options):
            made = super().translate(images, **options).clone()
            made[:, -1] = torch.rand(made[:, -1].shape, generator=torch.Generator().manual_seed(3)) * 2 - 1
            return made

    model, images = aligner(scale=0.2), pictures()
    calm = Through(model.finder, Plain((0.0, 0.0, 0.0)), torch.zeros(3, 2))
    wild = Through(model.finder, Wild((0.0, 0.0, 0.0)), torch.zeros(3, 2))
    square = model.square(images)
    one, other = calm.look(images, square), wild.look(images, square)
    torch.testing.assert_close(one.alignment.grid, other.alignment.grid)
    assert (other.spread > 10 * one.spread + 1e-3).all()


def test_what_a_finder_through_a_translator_cannot_do_is_one_sentence(tmp_path):
    through = Through(aligner().finder, translator())
    with pytest.raises(UserError, match="give the pictures"):
        through.member("a.png", pixels=True)
    with pytest.raises(UserError, match="export the aligner and the translator"):
        Aligner.by(through).export(tmp_path / "a.pt2")
    with pytest.raises(ValueError, match=r"styles must be \[K, 2\]"):
        Through(aligner().finder, translator(), torch.zeros(3, 5))
    with pytest.raises(ValueError, match='"first" or "second"'):
        Through(aligner().finder, translator(), source="third")


# ---- the commands


@pytest.fixture
def place(tmp_path):
    model = aligner(scale=0.1)
    export_aligner(tmp_path / "aligner.safetensors", model.transformer, None, model.warping)
    translator().save(tmp_path / "translator.safetensors")
    write_pictures(tmp_path / "pictures", 3, 32)
    edit = Image.new("RGBA", (32, 32))
    edit.paste((255, 0, 0, 255), (8, 8, 24, 24))
    edit.save(tmp_path / "edit.png")
    numpy.save(tmp_path / "points.npy", numpy.full((3, 2, 2), 9.0))
    return tmp_path


OPTIONS = {
    "align": (),
    "propagate": ("--edit", "edit.png"),
    "evaluate": ("--keypoints", "points.npy", "--features", "none", "--cycle-count", 0, "--bootstrap", 0, "--pictures", 1),
}


def use(place, monkeypatch, command, *options):
    own = [place / option if str(option) in ("edit.png", "points.npy") else option for option in OPTIONS[command]]
    given = ["--checkpoint", place / "aligner.safetensors", "--data", place / "pictures", "--out", place / command, *own]
    return call(monkeypatch, importlib.import_module(f"gangealing_fast.{command}"), *given, *options)


@pytest.mark.parametrize("command", OPTIONS)
def test_commands_work_through_a_translator(place, monkeypatch, capsys, command):
    assert use(place, monkeypatch, command, "--through", place / "translator.safetensors", "--through-styles", 2) == 0
    if command == "evaluate":
        assert (place / "evaluate" / "figures.json").is_file()
        return
    lines = read_json_lines(place / command / ("warps.jsonl" if command == "align" else "edits.jsonl"))
    assert len(lines) == 3 and all(line["spread"] > 0 for line in lines)
    like = ("--through-like", place / "pictures" / "000.png", "--through-direction", "within-second")
    assert use(place, monkeypatch, command, "--through", place / "translator.safetensors", *like) == 0
    one = read_json_lines(place / command / ("warps.jsonl" if command == "align" else "edits.jsonl"))
    assert [line["spread"] for line in one] == [0.0, 0.0, 0.0], "a single style agrees with itself"
    assert use(place, monkeypatch, command) == 0
    plain = read_json_lines(place / command / ("warps.jsonl" if command == "align" else "edits.jsonl"))
    assert not any("spread" in line for line in plain)


@pytest.mark.parametrize("command", OPTIONS)
def test_what_is_no_translator_is_one_sentence(place, monkeypatch, capsys, command):
    assert use(place, monkeypatch, command, "--through", place / "aligner.safetensors") == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("error: ") and "holds no translator" in said and not (place / command).exists()
