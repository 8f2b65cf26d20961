# SPDX-License-Identifier: Apache-2.0
"""Edits of a template in every picture, and the score that says how well a picture suits its template."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from aligners import bend, clustered, composed
from picture_files import noise
from PIL import Image
from runs import call

from gangealing_fast import Aligner, align, propagate
from gangealing_fast.applications.propagating import lay_over, read_edit
from gangealing_fast.checkpoints.writing import export_aligner
from gangealing_fast.models import SpatialTransformer
from gangealing_fast.ops import flow_regularizer
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.storage.files import read_json_lines


def saved(path, model: Aligner):
    export_aligner(path, model.transformer, None, model.warping, classifier=model.classifier)
    return path


def disc(path, side=64, centre=(20, 40), radius=6):
    """A red disc on nothing."""
    rows, columns = np.mgrid[:side, :side]
    values = np.zeros((side, side, 4), np.uint8)
    values[(columns - centre[0]) ** 2 + (rows - centre[1]) ** 2 <= radius**2] = (255, 0, 0, 255)
    Image.fromarray(values).save(path)
    return path


def test_what_is_transparent_leaves_the_picture_and_what_is_opaque_replaces_it(tmp_path):
    edit = read_edit(disc(tmp_path / "edit.png"))
    images = torch.rand(1, 3, 64, 64) * 2 - 1
    result = lay_over(images, edit)
    opaque = edit[:, 3:] == 1
    torch.testing.assert_close(result[:, :1][opaque], torch.ones(int(opaque.sum())))
    assert torch.equal(result * ~opaque, images * ~opaque)
    torch.testing.assert_close(lay_over(images, edit * 0.5)[:, :1][opaque], (images[:, :1][opaque] + 1) / 2)


@pytest.mark.parametrize("size", [(32, 32), (90, 60)])
def test_the_edit_lies_where_the_template_lies_in_the_picture(tmp_path, monkeypatch, size, capsys):
    torch.manual_seed(0)
    transformer = SpatialTransformer(("similarity",), 32, channel_base=64, max_channels=8)
    with torch.no_grad():
        transformer.similarity.warp_head.linear.bias.copy_(torch.tensor([0.1, -0.3, 0.1, -0.05]))
    model = Aligner(transformer)
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    Image.new("RGB", size).save(pictures / "black.png")
    (pictures / "broken.png").write_bytes(b"x")
    arguments = ["--checkpoint", saved(tmp_path / "aligner.safetensors", model), "--data", pictures, "--out", tmp_path / "out"]
    assert call(monkeypatch, propagate, *arguments, "--edit", disc(tmp_path / "edit.png")) == 0
    said = capsys.readouterr().out
    assert "edited 1 of 2 pictures" in said and "broken.png" in said
    (line,) = read_json_lines(tmp_path / "out" / "edits.jsonl")
    values = np.asarray(Image.open(tmp_path / "out" / line["file"]), np.float64)
    assert values.shape == (size[1], size[0], 3) and not values[..., 1:].any()
    rows, columns = np.mgrid[: size[1], : size[0]]
    centre = [(values[..., 0] * where).sum() / values[..., 0].sum() for where in (columns, rows)]
    # The disc's centre on the template of 64 is (20, 40); on that of 32 pixels (20.5 / 2 - 0.5, 40.5 / 2 - 0.5).
    expected = model.from_template(torch.full((1, 3, size[1], size[0]), -1.0), torch.tensor([[[9.75, 19.75]]]))[0, 0]
    np.testing.assert_allclose(centre, expected.numpy(), atol=0.15)
    assert line["covered"] == pytest.approx((values[..., 0] / 255).mean(), abs=2e-3)


def test_each_cluster_has_its_own_edit(tmp_path, monkeypatch):
    model = clustered()
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for index in range(12):
        Image.fromarray(noise(20, 24, seed=index)).save(pictures / f"{index:02}.png")
    arguments = ["--checkpoint", saved(tmp_path / "aligner.safetensors", model), "--data", pictures, "--out", tmp_path / "out"]
    assert call(monkeypatch, propagate, *arguments, "--edit", "none", disc(tmp_path / "edit.png", radius=20)) == 0
    lines = read_json_lines(tmp_path / "out" / "edits.jsonl")
    assert {line["cluster"] for line in lines} == {0, 1}
    for line in lines:
        same = np.array_equal(Image.open(pictures / line["picture"]), Image.open(tmp_path / "out" / line["file"]))
        assert same == (line["cluster"] == 0 or line["covered"] == 0)
    assert any(line["covered"] > 0 for line in lines)


def test_a_flow_carries_it_too(tmp_path):
    model = composed()
    edit = torch.zeros(1, 4, 128, 128)
    edit[:, :, 40:80, 40:80] = 1
    drawn, confidence = model.maps_from_template(torch.rand(1, 3, 40, 56) * 2 - 1, edit)
    assert drawn.shape == (1, 4, 40, 56) and drawn.isfinite().all() and 0 < drawn[:, 3].mean() < 1
    assert not drawn[(confidence == 0).expand_as(drawn)].any()


def test_a_small_picture_shows_a_large_edit_without_aliasing():
    """Stripes finer than the picture's pixels become their mean."""
    model = Aligner(SpatialTransformer(("similarity",), 32, channel_base=64, max_channels=8))
    stripes = (torch.arange(256) % 2).float().expand(1, 1, 256, 256)
    drawn, _ = model.maps_from_template(torch.zeros(1, 3, 32, 32), stripes)
    torch.testing.assert_close(drawn[..., 4:-4, 4:-4], torch.full((1, 1, 24, 24), 0.5), atol=0.05, rtol=0)


def test_flow_scores_are_minus_the_total_variation(tmp_path, monkeypatch):
    model = composed()
    bend(model, 0.1)
    images = torch.rand(3, 3, 32, 32) * 2 - 1
    expected = -flow_regularizer(model.warp(images).residual_flow)[0]
    assert torch.equal(model.flow_scores(images), expected) and (expected < 0).all()
    with pytest.raises(ValueError, match="flow"):
        clustered().flow_scores(images)
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    Image.fromarray(noise(32, 32)).save(pictures / "a.png")
    arguments = ["--checkpoint", saved(tmp_path / "aligner.safetensors", model), "--data", pictures, "--out", tmp_path / "out"]
    assert call(monkeypatch, align, *arguments, "--resolution", "48") == 0
    assert read_json_lines(tmp_path / "out" / "warps.jsonl")[0]["flow_score"] < 0
    assert Image.open(tmp_path / "out" / "template.png").size == (48, 48)


def test_edits_that_are_none(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "opaque.png")
    Image.new("RGBA", (8, 9), (1, 2, 3, 4)).save(tmp_path / "wide.png")
    Image.new("RGBA", (8, 8)).save(tmp_path / "empty.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n")
    for name, words in (("opaque", "alpha"), ("wide", "square"), ("empty", "draw something"), ("broken", "save it as PNG")):
        with pytest.raises(UserError, match=words) as caught:
            read_edit(tmp_path / f"{name}.png")
        assert name in str(caught.value)
    with pytest.raises(UserError, match="no such file"):
        read_edit(tmp_path / "missing.png")


@pytest.mark.parametrize(
    ("make", "options", "words"),
    [
        (clustered, ["--edit", "none"], "each of the 2 templates"),
        (clustered, ["--edit", "none", "none", "--opacity", "2"], "opacity"),
        (lambda: Aligner(clustered().transformer), ["--edit", "none", "none"], "classify"),
        (clustered, ["--edit", "none", "none", "--flips"], "flips"),
    ],
)
def test_a_mistake_is_one_sentence(tmp_path, monkeypatch, capsys, make, options, words):
    path = saved(tmp_path / "aligner.safetensors", make())
    arguments = ["--checkpoint", path, "--data", tmp_path, "--out", tmp_path / "out"]
    assert call(monkeypatch, propagate, *arguments, *options) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1 and not (tmp_path / "out").exists()
