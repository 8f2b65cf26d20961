# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: what goes in comes out; damage, disk-full and kills cost at most the newest one."""

from __future__ import annotations

import collections
import io
import multiprocessing
import os
import pickle
import random
import resource
import subprocess
import time
import zipfile

import numpy as np
import pytest
import torch

from gangealing_fast.runtime.errors import UserError
from gangealing_fast.storage import checkpoint, exports, files


def state(step: int, size: int = 64) -> dict:
    return {"step": step, "weights": torch.full((size, size), float(step)), "seed": [1, 2.5, "x", None, (True, b"y")]}


def test_round_trip(tmp_path):
    model = torch.nn.Linear(3, 2)
    optimiser = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimiser.step()
    before = {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "random": torch.get_rng_state()}
    checkpoint.save(tmp_path / "a.pt", before, kind="train")
    after = checkpoint.load(tmp_path / "a.pt", kind="train")
    assert torch.equal(after["model"]["weight"], model.weight)
    optimiser.load_state_dict(after["optimiser"])
    assert torch.equal(after["random"], before["random"])
    assert isinstance(after["model"], collections.OrderedDict)
    assert checkpoint.kind_of(tmp_path / "a.pt") == "train"


@pytest.mark.parametrize("value", [np.float64(1), np.zeros(3), {1, 2}, object(), torch.nn.Linear(1, 1), {"a": [{"b": print}]}])
def test_refuses_what_could_not_be_loaded(tmp_path, value):
    with pytest.raises(TypeError, match=r"cannot hold state\['x'\]"):
        checkpoint.save(tmp_path / "a.pt", {"x": value}, kind="train")
    assert not os.listdir(tmp_path)


def test_wrong_kind_and_version(tmp_path):
    checkpoint.save(tmp_path / "a.pt", state(1), kind="pretrain")
    with pytest.raises(UserError, match="of kind 'pretrain', but one of kind 'train' is needed"):
        checkpoint.load(tmp_path / "a.pt", kind="train")
    torch.save({"format": "gangealing_fast", "version": 99, "kind": "train", "state": {}}, tmp_path / "b.pt")
    with pytest.raises(UserError, match="version 99"):
        checkpoint.load(tmp_path / "b.pt")


class Evil:
    def __reduce__(self):
        return os.system, ("echo executed > executed.txt",)


def test_runs_no_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"format": "gangealing_fast", "version": 1, "kind": "train", "state": {"x": Evil()}}, "evil.pt")
    with pytest.raises(UserError, match="run code"):
        checkpoint.load("evil.pt")
    assert not os.path.exists("executed.txt")


def _foreign_zip(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "hello")


@pytest.mark.parametrize(
    "make",
    [
        lambda path: path.write_bytes(b"just text, no checkpoint"),
        lambda path: path.write_bytes(pickle.dumps({"a": 1})),
        lambda path: torch.save({"g_ema": {}}, path),
        lambda path: torch.save([1, 2], path),
        lambda path: torch.save({"a": 1}, path, _use_new_zipfile_serialization=False),
        _foreign_zip,
    ],
)
def test_foreign_files(tmp_path, make):
    make(tmp_path / "a.pt")
    with pytest.raises(UserError, match="not a checkpoint of gangealing_fast"):
        checkpoint.load(tmp_path / "a.pt")


def test_missing_empty_and_folder(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        checkpoint.load(tmp_path / "a.pt")
    (tmp_path / "a.pt").write_bytes(b"")
    with pytest.raises(UserError, match="truncated or corrupt"):
        checkpoint.load(tmp_path / "a.pt")
    with pytest.raises(UserError, match="is a folder"):
        checkpoint.load(tmp_path)


def test_every_truncation_is_noticed(tmp_path):
    path = tmp_path / "a.pt"
    checkpoint.save(path, state(1, 16), kind="train")
    whole = path.read_bytes()
    for length in [*range(1, len(whole), 97), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match="truncated or corrupt|not a checkpoint"):
            checkpoint.load(path)


def test_flipped_bits_are_noticed_or_harmless(tmp_path):
    """Torch's loader accepts changed tensor bytes; the checksums in the file tell."""
    path = tmp_path / "a.pt"
    checkpoint.save(path, state(3), kind="train")
    whole = path.read_bytes()
    generator = random.Random(0)
    noticed = 0
    for _ in range(150):
        damaged = bytearray(whole)
        damaged[generator.randrange(len(whole))] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        try:
            loaded = checkpoint.load(path)
        except UserError:
            noticed += 1
        else:  # padding and unused header fields
            assert torch.equal(loaded["weights"], state(3)["weights"]) and loaded["step"] == 3
    assert noticed > 100
    middle = bytearray(whole)
    middle[len(whole) // 2] ^= 1
    path.write_bytes(middle)
    with pytest.raises(UserError, match="truncated or corrupt"):
        checkpoint.load(path)


def test_latest_falls_back_to_the_previous(tmp_path):
    folder, said = tmp_path, []
    with pytest.raises(UserError, match="there is no checkpoint.pt"):
        checkpoint.load_latest(folder)
    assert not checkpoint.has_checkpoint(folder)
    for step in (1, 2, 3):
        checkpoint.save_latest(folder, state(step), kind="train")
    assert checkpoint.load_latest(folder, kind="train", say=said.append)["step"] == 3 and not said
    assert sorted(os.listdir(folder)) == ["checkpoint.previous.pt", "checkpoint.pt"]
    newest = folder / "checkpoint.pt"
    newest.write_bytes(newest.read_bytes()[:-100])
    assert checkpoint.load_latest(folder, kind="train", say=said.append)["step"] == 2
    assert len(said) == 1 and "going on from checkpoint.previous.pt" in said[0]
    newest.unlink()
    assert checkpoint.load_latest(folder, kind="train", say=said.append)["step"] == 2
    assert "missing" in said[1]
    newest.write_bytes(b"")
    (folder / "checkpoint.previous.pt").write_bytes(b"")
    with pytest.raises(UserError, match="checkpoint.pt is truncated or corrupt"):
        checkpoint.load_latest(folder)


def test_without_hard_links(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(95, "not supported")

    monkeypatch.setattr(os, "link", refuse)
    for step in (1, 2):
        checkpoint.save_latest(tmp_path, state(step), kind="train")
    assert checkpoint.load(tmp_path / "checkpoint.pt")["step"] == 2
    assert checkpoint.load(tmp_path / "checkpoint.previous.pt")["step"] == 1


def _survives_full_disk(folder):
    with pytest.raises(UserError, match="checkpoint.pt: the disk is full; free some space"):
        checkpoint.save_latest(folder, state(3, 1500), kind="train")
    assert sorted(os.listdir(folder)) == ["checkpoint.previous.pt", "checkpoint.pt"]
    assert checkpoint.load(folder / "checkpoint.pt")["step"] == 2
    assert checkpoint.load(folder / "checkpoint.previous.pt")["step"] == 1


def test_disk_full_keeps_the_previous_checkpoint(tmp_path):
    """The kernel refuses to let any file grow beyond a megabyte."""
    for step in (1, 2):
        checkpoint.save_latest(tmp_path, state(step), kind="train")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        _survives_full_disk(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_real_full_disk_keeps_the_previous_checkpoint(tmp_path):
    """The same on a real file system of two megabytes, where the machine lets us mount one."""
    try:
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", tmp_path], capture_output=True)
    except OSError:
        mounted = None
    if mounted is None or mounted.returncode:
        pytest.skip("cannot mount a small file system here")
    try:
        for step in (1, 2):
            checkpoint.save_latest(tmp_path, state(step), kind="train")
        _survives_full_disk(tmp_path)
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_write_error_at_any_moment(tmp_path, monkeypatch):
    """Whichever system call of a save fails, both old checkpoints or their successors are complete."""
    for step in (1, 2):
        checkpoint.save_latest(tmp_path, state(step), kind="train")
    for name in ("fsync", "replace", "link"):
        for at in range(3):
            outcomes = iter([None] * at + [OSError(28, "No space left on device")])

            def fail(*arguments, _real=os.__dict__[name], _outcomes=outcomes):
                if error := next(_outcomes, None):
                    raise error
                return _real(*arguments)

            with monkeypatch.context() as patch:
                patch.setattr(os, name, fail)
                try:
                    checkpoint.save_latest(tmp_path, state(7), kind="train")
                except UserError as error:
                    assert "disk is full" in str(error)
            assert checkpoint.load_latest(tmp_path, say=lambda _: None)["step"] in (1, 2, 7)
            for path in tmp_path.glob("*.pt"):
                checkpoint.load(path)


def _save_for_ever(folder, first):
    step = first
    while True:
        step += 1
        checkpoint.save_latest(folder, state(step, 200), kind="train")
        with open(folder / "said", "w") as file:
            file.write(str(step))


def test_killed_at_random_moments(tmp_path):
    generator = random.Random(1)
    step = 0
    context = multiprocessing.get_context("fork")
    for _ in range(12):
        process = context.Process(target=_save_for_ever, args=(tmp_path, step))
        process.start()
        until = time.monotonic() + 60
        while not (tmp_path / "said").exists():  # on a busy machine the first one may take long
            assert process.is_alive() and time.monotonic() < until
            time.sleep(0.001)
        time.sleep(0.05 * generator.random())
        process.kill()
        process.join()
        (tmp_path / "said").unlink()
        loaded = checkpoint.load(tmp_path / "checkpoint.pt", kind="train")
        assert loaded["step"] > step and torch.equal(loaded["weights"], state(loaded["step"], 200)["weights"])
        step = loaded["step"]
    assert sum(path.name.endswith(".tmp") for path in tmp_path.iterdir()) <= 2


@pytest.mark.parametrize("half", [False, True])
def test_safetensors_round_trip(tmp_path, half):
    tensors = {"a": torch.randn(4, 3), "n": torch.arange(5)}
    tensors["b"] = tensors["a"].t()
    path = tmp_path / "g.safetensors"
    exports.export_safetensors(path, tensors, {"size": 64, "layers": [1, 2]}, half=half)
    loaded, config = exports.load_safetensors(path)
    assert config == {"size": 64, "layers": [1, 2]}
    for name, tensor in tensors.items():
        expected = tensor.half().float() if half and tensor.is_floating_point() else tensor
        assert torch.equal(loaded[name], expected) and loaded[name].dtype == tensor.dtype
    raw, _ = exports.load_safetensors(path, dtype=None)
    assert raw["a"].dtype == (torch.float16 if half else torch.float32)


def test_safetensors_errors(tmp_path):
    path = tmp_path / "g.safetensors"
    with pytest.raises(ValueError, match="does not fit into half precision"):
        exports.export_safetensors(path, {"a": torch.tensor([1e6])}, {}, half=True)
    with pytest.raises(UserError, match="no such file"):
        exports.load_safetensors(path)
    exports.export_safetensors(path, {"a": torch.ones(100)}, {})
    whole = path.read_bytes()
    for content in (b"", whole[:5], whole[:50], whole[:-10], b"PK" + whole):
        path.write_bytes(content)
        with pytest.raises(UserError, match="not a safetensors file"):
            exports.load_safetensors(path)


def test_torch_reads_our_files(tmp_path):
    """The format stays readable without this package."""
    checkpoint.save(tmp_path / "a.pt", state(5), kind="train")
    content = torch.load(io.BytesIO(files.read_bytes(tmp_path / "a.pt")), weights_only=True)
    assert content["format"] == "gangealing_fast" and content["version"] == 1 and content["state"]["step"] == 5
