# SPDX-License-Identifier: Apache-2.0
"""Aligners saved and loaded by folder, by torch.hub, and by a hub that stands in for Hugging Face's."""

from __future__ import annotations

import json
import runpy
import shutil
import sys
import types
from pathlib import Path

import pytest
import torch
from aligners import clustered, composed

from gangealing_fast import Aligner
from gangealing_fast.runtime.errors import UserError

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A package huggingface_hub whose models are folders; `calls` holds what it was asked."""
    module = types.ModuleType("huggingface_hub")
    module.calls, module.root = [], tmp_path / "server"

    def create_repo(name, **options):
        module.calls.append(("create", name, options))

    def upload_folder(*, repo_id, folder_path, **options):
        module.calls.append(("upload", repo_id, options))
        shutil.copytree(folder_path, module.root / repo_id)
        return f"https://hub.invalid/{repo_id}"

    def snapshot_download(name, **options):
        module.calls.append(("download", name, options))
        if not (module.root / name).is_dir():
            raise FileNotFoundError(f"404: {name}\nis not there")
        return str(module.root / name)

    module.create_repo, module.upload_folder, module.snapshot_download = create_repo, upload_folder, snapshot_download
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    return module


@pytest.mark.parametrize("make", [clustered, composed])
def test_a_saved_aligner_aligns_as_before(tmp_path, make):
    model = make()
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    folder = model.save_pretrained(tmp_path / "saved")
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "aligner.safetensors", "config.json"]
    again = Aligner.from_pretrained(str(folder))
    assert torch.equal(again.align(images), model.align(images))
    assert again.warping == model.warping
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: gangealing_fast\n") and "Aligner.from_pretrained(" in card


def test_how_it_is_used_is_saved_and_may_be_changed(tmp_path):
    model = composed()
    model = Aligner(model.transformer, model.warping, flips=True, points="published")
    folder = model.save_pretrained(tmp_path)
    again = Aligner.from_pretrained(folder)
    assert again.flips and again.points == "published"
    assert not Aligner.from_pretrained(folder, flips=False).flips
    assert not Aligner.from_pretrained(folder / "aligner.safetensors").flips, "the file alone says nothing about its use"


def test_pushed_and_pulled(server):
    model = clustered()
    address = model.push_to_hub("somebody/cats", private=True, token="secret", message="First")
    assert address == "https://hub.invalid/somebody/cats"
    again = Aligner.from_pretrained("somebody/cats", revision="main")
    images = torch.zeros(2, 3, 16, 16)
    assert torch.equal(again.align(images), model.align(images))
    created, uploaded, downloaded = server.calls
    assert created[2] == {"private": True, "token": "secret", "exist_ok": True}
    assert uploaded[2] == {"token": "secret", "commit_message": "First"}
    assert downloaded[2]["revision"] == "main" and "aligner.safetensors" in downloaded[2]["allow_patterns"]


def test_a_model_that_is_not_there_is_a_sentence(server):
    with pytest.raises(UserError, match=r"nobody/nothing is no folder here and cannot be had .*404: nobody/nothing is not there"):
        Aligner.from_pretrained("nobody/nothing")


def test_a_hub_that_refuses_is_a_sentence(server):
    server.create_repo = None
    with pytest.raises(UserError, match="somebody/cats cannot be written to the Hugging Face hub"):
        clustered().push_to_hub("somebody/cats")


def test_without_the_package_folders_work_and_names_are_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    model = clustered()
    Aligner.from_pretrained(model.save_pretrained(tmp_path))
    for action in (lambda: Aligner.from_pretrained("somebody/cats"), lambda: model.push_to_hub("somebody/cats")):
        with pytest.raises(UserError, match="needs the package huggingface_hub: pip install 'gangealing_fast.hub.'"):
            action()


@pytest.mark.parametrize("name", ["runs/aligner/x", "missing", "../up", "a b/c"])
def test_what_is_neither_here_nor_a_name_is_a_sentence(name):
    with pytest.raises(UserError, match="is neither a folder nor a file nor the NAME/MODEL"):
        Aligner.from_pretrained(name)
    with pytest.raises(UserError, match="is no name of a model on the hub"):
        clustered().push_to_hub(name)


@pytest.mark.parametrize("change", [{"format": 2}, {"use": None}, {"use": {"flips": True}}])
def test_a_configuration_that_makes_no_sense_is_a_sentence(tmp_path, change):
    path = clustered().save_pretrained(tmp_path) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match="config.json is damaged or was written by a newer"):
        Aligner.from_pretrained(tmp_path)


def test_torch_hub_loads_from_a_clone(tmp_path):
    folder = clustered().save_pretrained(tmp_path)
    entries = runpy.run_path(str(ROOT / "hubconf.py"))
    assert [name for name, entry in entries.items() if callable(entry) and name[0] != "_"] == ["aligner", "generator"]
    loaded = torch.hub.load(str(ROOT), "aligner", str(folder), source="local")
    assert torch.equal(loaded.align(torch.zeros(1, 3, 16, 16)), clustered().align(torch.zeros(1, 3, 16, 16)))
    assert torch.hub.load(str(ROOT), "generator", "digits", source="local").size == 32
