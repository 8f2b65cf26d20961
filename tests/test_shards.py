# SPDX-License-Identifier: Apache-2.0
"""`align` over collections: read from the originals, filtered, shard by shard, killed and continued, by several processes."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from subprocess import PIPE

import numpy as np
import pytest
import torch
from aligners import bend, composed
from picture_files import noise
from PIL import Image
from runs import call

from gangealing_fast import Aligner, align
from gangealing_fast.applications import engines, shards
from gangealing_fast.applications.filters import best
from gangealing_fast.applications.units import Units
from gangealing_fast.checkpoints.writing import export_aligner
from gangealing_fast.data.config import PrepareConfig
from gangealing_fast.data.decoding import decode
from gangealing_fast.data.preparing import run as prepare
from gangealing_fast.ops import mipmap_warp
from gangealing_fast.storage.files import read_json_lines

COUNT, SHARD = 22, 6


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """pictures/ of several sizes, the same in shards/ (four of them) at 40 pixels, and aligner.safetensors."""
    folder = tmp_path_factory.mktemp("collection")
    model = composed()
    bend(model, 0.1)
    export_aligner(folder / "aligner.safetensors", model.transformer, None, model.warping)
    (folder / "pictures").mkdir()
    for index in range(COUNT):
        side = (40, 90, 140)[index % 3]
        values = noise(6, 7, seed=index)
        Image.fromarray(values).resize((side + 10, side), Image.Resampling.BICUBIC).save(folder / "pictures" / f"{index:03}.png")
    (folder / "pictures" / "009.png").write_bytes(b"no picture")
    prepare(PrepareConfig(folder / "pictures", folder / "shards", size=40, shard=SHARD))
    return folder


def run(monkeypatch, place: Path, out: Path, *options: object, data: str = "shards") -> int | str | None:
    given = ["--checkpoint", place / "aligner.safetensors", "--data", place / data, "--out", out, "--threads", 1]
    return call(monkeypatch, align, *given, *options)


def shown(content) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.open(content))).permute(2, 0, 1)[None].float() / 127.5 - 1


def members(folder: Path) -> dict[str, bytes]:
    """Every file in every tar of a folder, none twice."""
    found: dict[str, bytes] = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as archive:
            for member in archive:
                assert member.name not in found, member.name
                file = archive.extractfile(member)
                assert file is not None
                found[member.name] = file.read()
    return found


def results(folder: Path) -> dict[str, bytes]:
    """All files that a finished run leaves, but for what says how it was run."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "config.json"}


# ---- pixels


def test_aligned_pictures_are_read_from_the_originals(place, tmp_path, monkeypatch):
    assert run(monkeypatch, place, tmp_path / "out", "--resolution", 96, data="pictures") == 0
    model = Aligner.load(place / "aligner.safetensors")
    lines = read_json_lines(tmp_path / "out" / "warps.jsonl")
    assert len(lines) == COUNT - 1
    for line in lines[:3]:
        picture = Image.open(place / "pictures" / line["picture"])
        side = min(picture.size)
        left = (picture.width - side) // 2
        square = picture.crop((left, 0, left + side, side))
        small = shown_of(Image.fromarray(decode((place / "pictures" / line["picture"]).read_bytes(), 32)))
        look = model.look(small, output_resolution=96)
        expected = mipmap_warp(shown_of(square), look.alignment.grid, padding_mode="reflection").clamp(-1, 1)
        torch.testing.assert_close(shown(tmp_path / "out" / line["file"]), expected, atol=0.01, rtol=0)
        matrix = torch.tensor(line["matrix"]).reshape(1, 2, 3)
        torch.testing.assert_close(look.alignment.matrix, matrix, atol=1e-5, rtol=1e-5)
        if side == 140:  # four times as many pixels as the network saw
            assert (look.alignment.image - expected).abs().mean() > 0.01


def shown_of(picture: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 127.5 - 1


def test_a_similarity_alone_and_flows(place, tmp_path, monkeypatch):
    for name, options in (("whole", ["--flows"]), ("alone", ["--flows", "--similarity-only", "--format", "jpg"])):
        assert run(monkeypatch, place, tmp_path / name, *options, data="pictures") == 0
    whole, alone = (read_json_lines(tmp_path / name / "warps.jsonl") for name in ("whole", "alone"))
    assert [line["flow_score"] for line in whole] == [line["flow_score"] for line in alone]
    assert whole[0]["out_of_bounds"] != alone[0]["out_of_bounds"]
    for line in alone:  # of a similarity the pixels shown follow from its matrix
        scale = np.sqrt(np.linalg.det(np.array(line["matrix"]).reshape(2, 3)[:, :2]))
        side = min(Image.open(place / "pictures" / line["picture"]).size)
        assert line["effective_resolution"] == pytest.approx(scale * side, rel=1e-4) and line["file"].endswith(".jpg")
    flow = np.load(tmp_path / "whole" / whole[0]["file"].replace(".png", ".npy"))
    assert flow.shape == (32, 32, 2) and flow.dtype == np.float32
    assert not np.array_equal(shown(tmp_path / "whole" / whole[0]["file"]), shown(tmp_path / "alone" / alone[0]["file"]))


# ---- filters


def test_the_best_of_all_shards_are_kept():
    scores = [[(0, 1.0), (2, 5.0)], [(0, 5.0), (1, float("nan"))], []]
    assert best(scores, 0.5) == [{2}, {0}, set()]
    assert best(scores, 0.25) == [{2}, set(), set()]
    assert best(scores, 1e-9) == [{2}, set(), set()]


def test_filters_leave_out_the_same_of_folders_and_shards(place, tmp_path, monkeypatch, capsys):
    assert run(monkeypatch, place, tmp_path / "all", "--shard", 0) == 0
    lines = {line["picture"]: line for line in read_json_lines(tmp_path / "all" / "warps.jsonl")}
    ordered = sorted(lines.values(), key=lambda line: -line["flow_score"])
    middle = sorted(line["out_of_bounds"] for line in lines.values())[COUNT // 2]
    least = sorted(line["effective_resolution"] for line in lines.values())[4]
    kept = {
        line["picture"]
        for line in ordered[: round(0.7 * len(lines))]
        if line["out_of_bounds"] <= middle and line["effective_resolution"] >= least
    }
    assert 0 < len(kept) < len(lines) - 4
    options = ["--retain", 0.7, "--out-of-bounds", middle, "--effective-resolution", least]
    assert run(monkeypatch, place, tmp_path / "folder", "--shard", 0, *options) == 0
    assert {line["picture"] for line in read_json_lines(tmp_path / "folder" / "warps.jsonl")} == kept
    assert f"{len(lines) - len(kept)} pictures left out" in capsys.readouterr().out
    assert run(monkeypatch, place, tmp_path / "shards", *options) == 0
    found = members(tmp_path / "shards")
    assert {json.loads(value)["picture"] for name, value in found.items() if name.endswith(".json")} == kept
    about = json.loads((tmp_path / "shards" / "summary.json").read_text())
    assert about == {
        "shards": 4,
        "pictures": len(kept),
        "skipped": 0,
        "left_out": len(lines) - len(kept),
        "clusters": {"0": len(kept)},
    }
    record = json.loads((tmp_path / "shards" / "000000.json").read_text())
    assert record["left_out"] and all(entry.keys() == {"name", "reason"} for entry in record["left_out"])
    capsys.readouterr()
    for name, extra in (("none", ["--shard", 0]), ("nothing", [])):
        assert run(monkeypatch, place, tmp_path / name, *extra, "--effective-resolution", 1e6) == 2
        assert "--effective-resolution" in capsys.readouterr().err


# ---- shards


@pytest.fixture(scope="module")
def whole(place, tmp_path_factory) -> Path:
    """The shards aligned in one go."""
    out = tmp_path_factory.mktemp("whole") / "out"
    with pytest.MonkeyPatch.context() as monkeypatch:
        assert run(monkeypatch, place, out, "--flows") == 0
    return out


def test_shards_hold_what_the_folder_holds(place, whole, tmp_path, monkeypatch):
    assert run(monkeypatch, place, tmp_path / "out", "--shard", 0) == 0
    lines = {line["picture"]: line for line in read_json_lines(tmp_path / "out" / "warps.jsonl")}
    found = members(whole)
    assert len(found) == 3 * len(lines) == 3 * (COUNT - 1)
    for name, content in found.items():
        if name.endswith(".json"):
            line = json.loads(content)
            plain = lines[line["picture"]]
            assert line.keys() | {"file"} == plain.keys() and line["matrix"] == pytest.approx(plain["matrix"], abs=1e-5)
            same = shown(io.BytesIO(found[name.replace(".json", ".png")])) - shown(tmp_path / "out" / plain["file"])
            assert same.abs().max() < 0.02
            assert np.load(io.BytesIO(found[name.replace(".json", ".npy")])).shape == (32, 32, 2)
    assert (shown(whole / "template.png") - shown(tmp_path / "out" / "template.png")).abs().max() < 0.02
    assert not list(whole.glob(".*"))
    webdataset = pytest.importorskip("webdataset")
    urls = sorted(str(path) for path in whole.glob("*.tar"))
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8"))
    assert len(samples) == len(lines) and samples[0]["png"].shape == (32, 32, 3) and samples[0]["npy"].shape == (32, 32, 2)


def test_a_folder_of_pictures_in_shards_of_the_wanted_size(place, tmp_path, monkeypatch):
    assert run(monkeypatch, place, tmp_path / "out", "--shard", 8, "--limit", 18, data="pictures") == 0
    names = [name for name in members(tmp_path / "out") if name.endswith(".png")]
    assert names == [f"{index:03}.png" for index in range(18) if index != 9]
    assert len(Units(place / "pictures", 8, None)) == 3 and len(Units(place / "pictures", 11, None)) == 2
    assert json.loads((tmp_path / "out" / "000001.json").read_text())["skipped"][0]["name"] == "009.png"
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["shards"] == 3


def test_a_limit_cuts_the_last_shard(place, tmp_path, monkeypatch):
    assert run(monkeypatch, place, tmp_path / "out", "--limit", 8, "--resolution", 48) == 0
    assert Image.open(tmp_path / "out" / "template.png").size == (48, 48)
    assert len([name for name in members(tmp_path / "out") if name.endswith(".png")]) == 8


def killed(place: Path, out: Path, monkeypatch: pytest.MonkeyPatch, while_encoding: bool) -> None:
    """A life that ends by SIGKILL: in the middle of its second shard, or when its second tar has its name but no record yet."""
    calls = iter(range(99))
    finish, encoded = shards.ShardFolder.finish, shards.Worker._encoded

    def end_at(number: int) -> None:
        if next(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    if while_encoding:
        monkeypatch.setattr(shards.Worker, "_encoded", lambda self, item: (end_at(SHARD + 2), encoded(self, item))[1])
    else:
        monkeypatch.setattr(shards.ShardFolder, "finish", lambda self, *arguments: (end_at(1), finish(self, *arguments))[1])
    run(monkeypatch, place, out, "--flows")


def test_killed_three_times_nothing_is_lost_or_doubled(place, whole, tmp_path, monkeypatch):
    out = tmp_path / "out"
    for life in range(3):
        child = os.fork()
        if child == 0:
            killed(place, out, monkeypatch, life == 1)
            os._exit(0)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
        assert len(list(out.glob("[0-9]*.json"))) == life + 1 and not (out / "summary.json").exists()
    assert run(monkeypatch, place, out, "--flows") == 0
    assert results(out) == results(whole)


def test_a_finished_run_is_left_as_it_is_and_another_one_is_refused(place, whole, monkeypatch, capsys):
    times = {path.name: path.stat().st_mtime_ns for path in whole.glob("*.tar")}
    assert run(monkeypatch, place, whole, "--flows") == 0
    assert "21 aligned pictures in 4 shards" in capsys.readouterr().out
    assert times == {path.name: path.stat().st_mtime_ns for path in whole.glob("*.tar")}
    assert run(monkeypatch, place, whole) == 2
    assert "holds another run (flows: True there, False now)" in capsys.readouterr().err


def test_several_processes_need_shards(place, tmp_path, monkeypatch, capsys):
    assert run(monkeypatch, place, tmp_path / "out", "--engine", "ray", data="pictures") == 2
    assert "several processes share tars: give --shard" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "ray", None)
    assert run(monkeypatch, place, tmp_path / "out", "--engine", "ray") == 2
    assert "pip install gangealing_fast[scale]" in capsys.readouterr().err


def command(place: Path, out: Path, *options: str) -> list[str]:
    given = ["--checkpoint", place / "aligner.safetensors", "--data", place / "shards", "--out", out, "--flows", "--threads", 1]
    return ["-m", "gangealing_fast.align", *map(str, given), *options]


ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.slow
def test_torchrun_gives_the_same_bytes(place, whole, tmp_path):
    words = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    done = subprocess.run([*words, *command(place, tmp_path / "out")], capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "21 aligned pictures in 4 shards" in done.stdout
    assert results(tmp_path / "out") == results(whole)


def actors(mark: str) -> list[int]:
    """Processes of Ray's that hold an aligner, started by a command whose environment has `mark` in it."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it may be gone by now
            name = (entry / "cmdline").read_bytes()
            if name.startswith(b"ray::") and b"_Actor" in name and mark.encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
    return found


@pytest.mark.slow
def test_ray_gives_the_same_bytes_though_an_actor_is_killed(place, whole, tmp_path):
    pytest.importorskip("ray")
    words = command(place, tmp_path / "out", "--engine", "ray", "--workers", "2")
    mark = f"GGF_TEST_MARK={tmp_path}"
    environment = os.environ | dict([mark.split("=", 1)])
    with subprocess.Popen([sys.executable, *words], stdout=PIPE, stderr=PIPE, text=True, cwd=ROOT, env=environment) as process:
        while process.poll() is None and not (killed := actors(mark)):
            time.sleep(0.02)
        os.kill(killed[0], signal.SIGKILL)
        said, complaints = process.communicate(timeout=300)
    assert process.returncode == 0, complaints
    assert "21 aligned pictures in 4 shards" in said
    assert results(tmp_path / "out") == results(whole)


def test_the_mistake_of_an_actor_is_found():
    inner = engines.UserError("the tar is damaged")
    outer = RuntimeError("an actor failed")
    outer.cause = inner
    found = engines._mistake_in(outer)
    assert isinstance(found, engines.UserError) and str(found) == "the tar is damaged"
    assert engines._mistake_in(RuntimeError("another")) is None


def test_processes_wait_for_the_shards_of_others(place, tmp_path, monkeypatch):
    """A shard counts as done once its record is there, whoever writes it."""
    looks = iter([False, False, True])
    began = time.monotonic()
    monkeypatch.setattr(engines, "_POLL", 0.001)
    engines._wait_until(lambda: next(looks))
    assert next(looks, None) is None and time.monotonic() - began < 60
