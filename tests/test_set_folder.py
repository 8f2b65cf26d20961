# SPDX-License-Identifier: Apache-2.0
"""A set on disk: what is written is read, and a damaged file is named."""

from __future__ import annotations

import dataclasses
from dataclasses import fields

import pytest
import torch
from sets import saved_set, write_set

from gangealing_fast.congealing.folder import FILE, _checked, is_set, load_set, save_set
from gangealing_fast.congealing.records import Congealed
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.storage.exports import export_safetensors, load_safetensors


def test_what_is_written_is_read(tmp_path):
    saved = saved_set(tmp_path)
    save_set(tmp_path / FILE, saved)
    read = load_set(tmp_path / FILE)
    for field in fields(Congealed):
        expected = getattr(saved.found, field.name)
        tolerance = 1e-3 if field.name == "flow" else 0
        torch.testing.assert_close(getattr(read.found, field.name), expected, atol=tolerance, rtol=0)
    assert (read.names, read.fingerprints, read.source) == (saved.names, saved.fingerprints, saved.source)
    assert torch.equal(read.sizes, saved.sizes) and torch.equal(read.state["numbers"], saved.state["numbers"])
    assert (read.method, dict(read.settings), read.side) == ("features", dict(saved.settings), 32)
    first = (tmp_path / FILE).read_bytes()
    save_set(tmp_path / FILE, read)
    assert (tmp_path / FILE).read_bytes() == first


def test_a_folder_is_told_from_others(tmp_path):
    folder = write_set(tmp_path)
    assert is_set(folder) and is_set(folder / FILE) and not is_set(tmp_path)
    assert load_set(folder).names == load_set(folder / FILE).names


@pytest.mark.parametrize("at", [0.001, 0.1, 0.3, 0.5, 0.7, 0.9, 0.999])
def test_a_changed_byte_is_noticed(tmp_path, at):
    path = write_set(tmp_path) / FILE
    content = bytearray(path.read_bytes())
    content[int(at * len(content))] ^= 0x10
    path.write_bytes(content)
    with pytest.raises(UserError, match=FILE):
        load_set(path)


def test_a_cut_file_another_file_and_another_version_are_named(tmp_path):
    path = write_set(tmp_path) / FILE
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="truncated"):
        load_set(path)
    export_safetensors(path, {"a": torch.zeros(1)}, {"kind": "aligner"})
    with pytest.raises(UserError, match="holds no set"):
        load_set(path)
    export_safetensors(path, {"a": torch.zeros(1)}, {"kind": "set", "version": 99})
    with pytest.raises(UserError, match="version 99"):
        load_set(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"cluster": torch.tensor([0, 0, 2])}, "a cluster that there is not"),
        ({"matrix": torch.zeros(3, 3, 3, dtype=torch.float64)}, "a matrix is singular"),
        ({"size": torch.tensor([[0, 3], [3, 3], [3, 3]])}, "size is none"),
        ({"flow": torch.zeros(3, 4, 5, 2).half()}, "its flow is"),
        ({"template": torch.zeros(0, 3, 8, 8).half()}, "its template is"),
        ({"mirrored": torch.zeros(2, dtype=torch.bool)}, "mirrored is"),
        ({"confidence": torch.zeros(3, dtype=torch.float64)}, "confidence is"),
        ({"outlier": None}, "outlier is missing"),
    ],
    ids=lambda value: None if isinstance(value, dict) else value,
)
def test_content_that_does_not_fit_is_named(tmp_path, change, words):
    path = write_set(tmp_path) / FILE
    tensors, about = load_safetensors(path, dtype=None)
    tensors = {name: tensor for name, tensor in {**tensors, **change}.items() if tensor is not None}
    export_safetensors(path, tensors, about)
    with pytest.raises(UserError, match=words):
        load_set(path)


@pytest.mark.parametrize(
    "change", [{"names": "abc"}, {"names": ["a"]}, {"method": "magic"}, {"settings": []}, {"source": 3}], ids=str
)
def test_settings_that_do_not_fit_are_refused(tmp_path, change):
    tensors, about = load_safetensors(write_set(tmp_path) / FILE, dtype=None)
    with pytest.raises((ValueError, KeyError, TypeError)):
        _checked(tensors, {**about, **change})


def test_a_set_with_numbers_that_are_not_finite_is_not_written(tmp_path):
    saved = saved_set(tmp_path)
    broken = dataclasses.replace(saved.found, confidence=torch.tensor([1.0, torch.nan, 0.0]))
    with pytest.raises(UserError, match="not finite"):
        save_set(tmp_path / FILE, dataclasses.replace(saved, found=broken))
    assert not (tmp_path / FILE).exists()
