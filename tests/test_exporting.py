# SPDX-License-Identifier: Apache-2.0
"""An aligner as a program: the same pictures and grids from torch.export and onnxruntime, for any number of pictures."""

from __future__ import annotations

import sys

import pytest
import torch
from aligners import aligner, clustered, composed

from gangealing_fast import Aligner, convert
from gangealing_fast.checkpoints.writing import export_aligner
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.storage import programs


@pytest.mark.slow
def test_a_program_of_torch_export_does_what_warp_does(tmp_path):
    model = clustered()
    path = model.export(tmp_path / "aligner.pt2", output_resolution=24)
    run = torch.export.load(path).module()
    for n in (1, 9):
        images = torch.rand(n, 3, 16, 16) * 2 - 1
        expected = model.warp(images, output_resolution=24)
        aligned, grid = run(images)
        torch.testing.assert_close(grid, expected.grid, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(aligned, expected.image, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("make", [clustered, composed])
def test_onnxruntime_does_what_warp_does(tmp_path, monkeypatch, capsys, make):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    model = make()
    weights, path = tmp_path / "aligner.safetensors", tmp_path / "aligner.onnx"
    export_aligner(weights, model.transformer, None, model.warping, classifier=model.classifier)
    monkeypatch.setattr(sys, "argv", ["convert", "--source", str(weights), "--out", str(path), "--to", "onnx"])
    convert.main()
    assert "wrote" in capsys.readouterr().out
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for n in (1, 9):
        images = torch.rand(n, 3, model.transformer.flow_size, model.transformer.flow_size) * 2 - 1
        expected = model.warp(images)
        aligned, grid = map(torch.from_numpy, session.run(None, {"images": images.numpy()}))
        torch.testing.assert_close(grid, expected.grid, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(aligned, expected.image, atol=1e-3, rtol=1e-3)


def test_what_cannot_be_exported_is_one_sentence(tmp_path, monkeypatch):
    model = clustered()
    with pytest.raises(UserError, match="end in .onnx or .pt2"):
        model.export(tmp_path / "aligner.pb")
    model = Aligner(model.transformer, model.warping)
    with pytest.raises(UserError, match="2 clusters but no classifier"):
        model.export(tmp_path / "aligner.pt2")
    flipped = Aligner(aligner(("similarity", "flow")).transformer, flips=True)
    with pytest.raises(UserError, match="compares flows"):
        flipped.export(tmp_path / "aligner.pt2")
    monkeypatch.setattr(programs.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install gangealing_fast\[onnx\]"):
        aligner().export(tmp_path / "aligner.onnx")
    assert not list(tmp_path.iterdir())
