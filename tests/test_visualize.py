# SPDX-License-Identifier: Apache-2.0
"""`visualize`: films whose pictures glide into the template and back, flows, averages, sheets of clusters."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from aligners import clustered, composed
from PIL import Image, ImageSequence
from runs import call, write_pictures
from videos import read_video

from gangealing_fast import visualize
from gangealing_fast.applications.movies import congealing_movie, glides
from gangealing_fast.checkpoints.writing import export_aligner
from gangealing_fast.data.pictures import open_pictures, to_float
from gangealing_fast.geometry.warps import identity_grid
from gangealing_fast.report.pictures import flow_pictures, to_pixels


def saved(path, model):
    export_aligner(path, model.transformer, None, model.warping, classifier=model.classifier)
    return path


def run(monkeypatch, tmp_path, model, *options, count=10):
    data = write_pictures(tmp_path / "pictures", count)
    arguments = ["--checkpoint", saved(tmp_path / "a.safetensors", model), "--data", data, "--out", tmp_path / "out"]
    return call(monkeypatch, visualize, *arguments, "--size", 32, *options)


def test_strengths_go_from_nothing_to_all_and_back():
    strengths = glides(20)
    assert strengths[0] == 0 and strengths[10] == 1
    assert strengths[1:10] == pytest.approx(strengths[:10:-1]) and sorted(strengths[:11]) == strengths[:11]
    with pytest.raises(ValueError, match="count"):
        glides(1)


@pytest.mark.parametrize("count", [2, 7, 8])
def test_a_movie_begins_with_the_pictures_and_shows_them_aligned_in_the_middle(count):
    model = composed()
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    sheets = [np.asarray(sheet) for sheet in congealing_movie(model, images, count, 32)]
    assert len(sheets) == count and len({sheet.shape for sheet in sheets}) == 1
    assert np.abs(sheets[0][:32, :32].astype(int) - to_pixels(images)[0].numpy().astype(int)).max() <= 1
    if count % 2 == 0:
        np.testing.assert_array_equal(sheets[count // 2][:32, :32], to_pixels(model.align(images))[0].numpy())
    if count > 2:
        np.testing.assert_array_equal(sheets[1], sheets[-1])


@pytest.mark.parametrize("film", ["mp4", "gif"])
def test_all_of_it(tmp_path, monkeypatch, film):
    options = ["--film", film, "--seconds", 0.5, "--rate", 20, "--pictures", 4, "--batch", 3]
    assert run(monkeypatch, tmp_path, composed(), *options) == 0
    out = tmp_path / "out"
    names = {path.name for path in out.iterdir() if not path.name.startswith(("flow-", "."))}
    assert names == {"config.json", f"movie.{film}", "flow.png", "average.png", "template.png", "cluster-0.png"}
    if film == "mp4":
        assert len(read_video(out / "movie.mp4").pictures) == 10 and read_video(out / "movie.mp4").rate == 20
    else:
        shown = Image.open(out / "movie.gif")
        assert sum(frame.info["duration"] for frame in ImageSequence.Iterator(shown)) == 500
    model, images = composed(), to_float(open_pictures(tmp_path / "pictures", size=32).batch(range(10)))
    grid = model.warp(images[:4]).grid
    flows = flow_pictures(grid - identity_grid(32, 32))
    files = sorted(out.glob("flow-*.png"))
    assert len(files) == 4
    for file, flow in zip(files, flows, strict=True):
        assert np.abs(np.asarray(Image.open(file)).astype(int) - to_pixels(flow[None])[0].numpy().astype(int)).max() <= 1
    average = to_pixels(model.align(images).mean(0, keepdim=True))[0].numpy()
    assert np.abs(np.asarray(Image.open(out / "template.png")).astype(int) - average.astype(int)).max() <= 1


def test_each_cluster_has_a_sheet_and_other_things_are_not_made(tmp_path, monkeypatch):
    assert run(monkeypatch, tmp_path, clustered(), "--show", "clusters", "--pictures", 2) == 0
    assert {path.name for path in (tmp_path / "out").glob("*.*")} >= {"cluster-0.png", "cluster-1.png"}
    assert not list((tmp_path / "out").glob("movie*")) and not list((tmp_path / "out").glob("flow*"))


def test_mistakes_are_sentences(tmp_path, monkeypatch, capsys):
    assert run(monkeypatch, tmp_path, composed(), "--show", "movie", "--seconds", 0.1, "--rate", 5) == 2
    assert "less than two frames" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "av", None)
    assert run(monkeypatch, tmp_path, composed(), "--show", "movie") == 2
    assert "gangealing_fast[video]" in capsys.readouterr().err and not (tmp_path / "out").exists()
    assert run(monkeypatch, tmp_path, composed(), "--show", "movie", "--film", "gif", "--seconds", 0.2) == 0
