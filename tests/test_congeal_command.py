# SPDX-License-Identifier: Apache-2.0
"""`congeal` as a user types it, on pictures of one thing in known poses; what is used of its folder afterwards."""

from __future__ import annotations

import math
import re
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from picture_files import noise
from PIL import Image
from runs import call
from torch import Tensor

from gangealing_fast import Aligner, align, congeal, propagate
from gangealing_fast.applications import congealing as command
from gangealing_fast.congealing.folder import load_set
from gangealing_fast.congealing.stages import FOLDER, Stages
from gangealing_fast.data.pictures import to_float
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.storage.files import read_json_lines, save_picture

COUNT, SIDE = 5, 96
OF_ORIGINALS = command._of_originals


def thing() -> Tensor:
    """A texture with corners at every scale, `[1, 3, 160, 160]` in [-1, 1]."""
    generator = torch.Generator().manual_seed(3)
    total = torch.zeros(1, 3, 160, 160)
    for cells in (5, 10, 20, 40):
        coarse = torch.rand(1, 3, cells, cells, generator=generator) * 2 - 1
        total += torch.nn.functional.interpolate(coarse, (160, 160), mode="nearest") / math.sqrt(cells / 5)
    return (total / total.abs().max()).clamp(-1, 1)


def pose(number: int) -> Tensor:
    """`[3, 3]`: normalised places of picture `number` to those of the thing."""
    angle, size = math.radians(6.0 * (number - 2)), 1.0 + 0.04 * (number % 3 - 1)
    a, b = size * math.cos(angle), size * math.sin(angle)
    shift = (0.05 * (number % 2), -0.04 * (number % 3))
    return torch.tensor([[a, -b, shift[0]], [b, a, shift[1]], [0.0, 0.0, 1.0]], dtype=torch.float64) * torch.tensor(
        [[0.6], [0.6], [1.0]]
    )


def shown(number: int, width: int = SIDE, height: int = SIDE) -> Tensor:
    """The thing in the pose of that number, `[3, height, width]`."""
    x = ((torch.arange(width) + 0.5) * 2 - width) / SIDE
    y = ((torch.arange(height) + 0.5) * 2 - height) / SIDE
    places = torch.stack([x.expand(height, -1), y[:, None].expand(-1, width)], -1).double()
    matrix = pose(number)
    grid = (places @ matrix[:2, :2].T + matrix[:2, 2]).float()[None]
    return torch.nn.functional.grid_sample(thing(), grid, padding_mode="reflection", align_corners=False)[0]


SIZES = {0: (SIDE, SIDE), 1: (SIDE, 80), 2: (SIDE, SIDE), 3: (88, SIDE), 4: (SIDE, SIDE)}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Pictures, the set that the command makes of them, and what it said."""
    folder = tmp_path_factory.mktemp("congeal")
    (folder / "pictures").mkdir()
    for number, (width, height) in SIZES.items():
        save_picture(folder / "pictures" / f"{number}.png", shown(number, width, height))
    (folder / "pictures" / "broken.png").write_bytes(b"\x89PNG nothing")
    (folder / "pictures" / "notes.txt").write_text("notes")
    with pytest.MonkeyPatch.context() as patch:
        assert run(patch, folder, "set") == 0
    return folder


def run(monkeypatch, folder: Path, out: str, *options: object) -> int | str | None:
    return call(monkeypatch, congeal, "--data", folder / "pictures", "--out", folder / out, "--side", 64, "--threads", 1, *options)


def thing_to_picture(number: int, points: Tensor) -> Tensor:
    """Normalised places of the thing, `[P, 2]`, to pixels of the picture of that number."""
    inverse = torch.linalg.inv(pose(number))
    places = points @ inverse[:2, :2].T + inverse[:2, 2]
    width, height = SIZES[number]
    return (places * SIDE + torch.tensor([width, height])) / 2 - 0.5


def test_points_go_from_picture_to_picture(place):
    """The truth is known: within two pixels of 96, mostly within one."""
    aligner = Aligner.load(place / "set")
    points = torch.tensor([[-0.2, -0.15], [0.15, -0.2], [0.0, 0.1], [0.2, 0.2]], dtype=torch.float64)
    errors = []
    for first in range(COUNT):
        for second in range(COUNT):
            start = thing_to_picture(first, points)[None].float()
            found = aligner.transfer([f"{first}.png"], [f"{second}.png"], start)[0]
            errors.append((found - thing_to_picture(second, points)).norm(dim=1))
    errors = torch.cat(errors)
    assert errors.median() < 1 and errors.quantile(0.9) < 2, errors


def test_the_folder_has_everything(place):
    out = place / "set"
    lines = read_json_lines(out / "warps.jsonl")
    assert [line["picture"] for line in lines] == [f"{k}.png" for k in range(COUNT)]
    assert not any(line["outlier"] or line["mirrored"] for line in lines) and len(lines[0]["matrix"]) == 9
    saved = load_set(out)
    assert saved.names == tuple(line["picture"] for line in lines) and saved.side == 64
    torch.testing.assert_close(torch.tensor(lines[1]["matrix"]).reshape(3, 3), saved.found.matrix[1].float())
    for line in lines:
        # The thing is shown about as large as in the picture, or a little larger.
        assert 48 <= Image.open(out / line["file"]).width <= 160
    assert Image.open(out / "template.png").size == (64, 64) and Image.open(out / "average.png").height == 64
    before, after = np.split(np.asarray(Image.open(out / "average.png").convert("L")).astype(float)[:, :130], [65], axis=1)
    assert np.var(np.diff(after[:, 2:], axis=1)) > np.var(np.diff(before[:, :-2], axis=1))
    page = (out / "report.html").read_text()
    headings = ("Average picture", "Before and after", "Matches", "Confidence", "Left out", "What to do next", "Commands")
    assert all(f">{heading}</h2>" in page for heading in headings)
    assert not (out / FOLDER).exists(), "what is kept for resuming goes at the end"


class Killed(BaseException):
    pass


@pytest.mark.parametrize("stage", ["graph", "template-0", None])
def test_a_killed_run_goes_on_to_the_same_numbers(place, monkeypatch, capsys, stage):
    """Killed after a stage was kept, or while pictures are written."""
    save, line = Stages.save, command._line
    with monkeypatch.context() as patch:

        def kept(self, name, tensors):
            save(self, name, tensors)
            if name == stage:
                raise Killed

        def written(found, number, *rest):
            if stage is None and number == 3:
                raise Killed
            return line(found, number, *rest)

        patch.setattr(Stages, "save", kept)
        patch.setattr(command, "_line", written)
        with pytest.raises(Killed):
            run(patch, place, f"again-{stage}")
    assert not (place / f"again-{stage}" / "set.safetensors").exists()
    capsys.readouterr()
    assert run(monkeypatch, place, f"again-{stage}") == 0
    assert "going on after" in capsys.readouterr().out
    for path in (place / "set").iterdir():
        if path.suffix in (".png", ".safetensors", ".jsonl"):
            assert (place / f"again-{stage}" / path.name).read_bytes() == path.read_bytes(), path.name


def test_pictures_written_side_by_side_are_the_same(place, monkeypatch):
    """By two threads, two pictures at a time, in another order of ending: every line and picture as by one thread."""
    save, threads = command.save_picture, torch.get_num_threads()
    waiting = threading.Event()

    def slow_first(path, values):
        if "000000" in str(path):
            assert waiting.wait(timeout=30), "the second picture is not written before the first has ended"
        save(path, values)
        if "000001" in str(path):
            waiting.set()

    monkeypatch.setattr(command, "save_picture", slow_first)
    # What is found depends on the number of threads in its last bits: here only the writing has two.
    monkeypatch.setattr(command, "_of_originals", lambda made, pictures: torch.set_num_threads(2) or OF_ORIGINALS(made, pictures))
    try:
        assert run(monkeypatch, place, "side-by-side") == 0
    finally:
        torch.set_num_threads(threads)
    for path in (place / "set").iterdir():
        if path.suffix in (".png", ".jsonl"):
            assert (place / "side-by-side" / path.name).read_bytes() == path.read_bytes(), path.name


def test_few_large_pictures_are_written_at_once():
    sizes = [(4000, 3000), (3000, 4000), (4000, 3000), (7000, 5000), (100, 100), (100, 100)]
    assert list(command._together(sizes)) == [[0, 1], [2], [3], [4, 5]]
    assert [len(part) for part in command._together([(64, 64)] * 35)] == [16, 16, 3] and not list(command._together([]))


def test_a_set_that_changed_between_runs_is_a_sentence(tmp_path):
    pictures = [("a.png", "1"), ("b.png", "2")]
    stages = Stages(tmp_path, {"seed": 0}, pictures)
    stages.save("graph", {"x": torch.ones(2)})
    assert torch.equal(Stages(tmp_path, {"seed": 0}, pictures).load("graph")["x"], torch.ones(2))
    for changed, words in (
        ([("a.png", "1"), ("b.png", "3")], "b.png"),
        (pictures[:1], "2 then, 1 now; first difference: b.png"),
        (pictures[::-1], "their order"),
    ):
        with pytest.raises(UserError, match=f"other pictures.*{re.escape(words)}"):
            Stages(tmp_path, {"seed": 0}, changed)
    (tmp_path / FOLDER / "graph.safetensors").write_bytes(b"cut")
    assert Stages(tmp_path, {"seed": 0}, pictures).load("graph") is None, "a damaged stage is computed anew"
    stages.save("graph", {"x": torch.ones(2)})
    assert Stages(tmp_path, {"seed": 1}, pictures).load("graph") is None, "other options have other numbers"


def test_members_and_others_are_aligned_from_the_folder(place, monkeypatch, capsys):
    (place / "more").mkdir()
    save_picture(place / "more" / "new.png", shown(1))
    (place / "more" / "known.png").write_bytes((place / "pictures" / "2.png").read_bytes())
    assert call(monkeypatch, align, "--checkpoint", place / "set", "--data", place / "more", "--out", place / "aligned") == 0
    lines = {line["picture"]: line for line in read_json_lines(place / "aligned" / "warps.jsonl")}
    assert Image.open(place / "aligned" / lines["new.png"]["file"]).size == (64, 64)
    aligner = Aligner.load(place / "set")
    known, new = (
        to_float(torch.from_numpy(np.array(Image.open(place / "more" / "known.png")))).permute(2, 0, 1)[None],
        shown(1)[None],
    )
    assert torch.equal(aligner.align(known), aligner.align(["2.png"]))
    points = torch.tensor([[-0.2, -0.15], [0.15, -0.2], [0.2, 0.2]], dtype=torch.float64)
    start = thing_to_picture(0, points)[None].float()
    inverse = torch.linalg.inv(pose(1))
    truth = ((points @ inverse[:2, :2].T + inverse[:2, 2]) * SIDE + SIDE) / 2 - 0.5
    found = aligner.from_template(new, aligner.to_template(["0.png"], start))[0]
    assert (found - truth).norm(dim=1).max() < 2.5


def test_an_edit_appears_in_the_pictures_of_the_set(place, monkeypatch, capsys):
    edit = np.zeros((64, 64, 4), np.uint8)
    edit[24:40, 24:40] = (255, 0, 0, 255)
    Image.fromarray(edit).save(place / "edit.png")
    options = ["--checkpoint", place / "set", "--data", place / "pictures", "--edit", place / "edit.png", "--out", place / "edited"]
    assert call(monkeypatch, propagate, *options) == 0
    lines = read_json_lines(place / "edited" / "edits.jsonl")
    assert len(lines) == COUNT
    aligner = Aligner.load(place / "set")
    for line in lines:
        edited = np.array(Image.open(place / "edited" / line["file"])).astype(int)
        x, y = aligner.from_template([line["picture"]], torch.tensor([[[31.5, 31.5]]]))[0, 0].round().int().tolist()
        assert edited[y, x, 0] > 230 and edited[y, x, 1:].max() < 25


def test_a_trained_aligner_is_refined(place):
    """A network that leaves every picture as it is, on pictures that are a few pixels off: what is left over is found."""
    from gangealing_fast.models import SpatialTransformer

    base = Aligner(SpatialTransformer(("similarity",), 64, channel_base=64, max_channels=8))
    numbers = (0, 2, 4)
    pictures = torch.stack([shown(number) for number in numbers])
    refined = base.refine(pictures, flow=False)
    points = torch.tensor([[-0.2, -0.15], [0.15, -0.2], [0.2, 0.2]], dtype=torch.float64)
    truth = torch.stack([thing_to_picture(number, points) for number in numbers]).float()

    def error(aligner: Aligner) -> float:
        template = aligner.to_template(pictures, truth)
        return (template - template.mean(0)).norm(dim=2).mean().item()

    assert refined.size == base.size == 64
    assert error(refined) < 0.3 * error(base), (error(refined), error(base))
    assert refined.align(pictures, output_resolution=40).shape == (3, 3, 40, 40)
    first, last = refined.stages(pictures)
    assert torch.equal(first.image, base.align(pictures)) and torch.equal(last.image, refined.align(pictures))
    with pytest.raises(UserError, match="refining needs at least 3 pictures"):
        base.refine(pictures[:2])
    with pytest.raises(UserError, match="export the aligner it refines"):
        refined.export(place / "a.pt2")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--limit", 2], "has 2 pictures that can be read, but at least 3"),
        (["--clusters", "many"], "--clusters must be auto or a number from 1 to 1000, got many"),
        (["--features", "none.pt"], "needs --features-stride"),
        (["--features", "none.pt", "--features-stride", 8], "none.pt"),
        (["--masks", "FOLDER"], "has no mask for any picture"),
    ],
)
def test_mistakes_are_sentences(place, monkeypatch, capsys, options, words):
    (place / "masks").mkdir(exist_ok=True)
    Image.fromarray(noise(8, 8)).save(place / "masks" / "another.png")
    options = [place / "masks" if option == "FOLDER" else option for option in options]
    assert run(monkeypatch, place, "mistake", *options) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("error: ") and words in said


def test_a_set_of_a_users_network_never_runs_it(place, tmp_path):
    import dataclasses

    from gangealing_fast.congealing.folder import FILE, save_set

    saved = load_set(place / "set")
    (tmp_path / "network.pt").write_bytes(b"a program")
    own = dataclasses.replace(saved, settings={**saved.settings, "features": str(tmp_path / "network.pt")})
    save_set(tmp_path / FILE, own)
    aligner = Aligner.load(tmp_path / FILE)
    assert aligner.align(["0.png"]).shape == (1, 3, 64, 64)
    with pytest.raises(UserError, match="whose file runs code when it is read"):
        aligner.align(shown(1)[None])


class Patches(torch.nn.Module):
    """The pixels of every patch of 4x4, without their mean."""

    def forward(self, x: Tensor) -> Tensor:
        cells = torch.nn.functional.pixel_unshuffle(torch.nn.functional.avg_pool2d(x, 2), 2)
        return cells - cells.mean(1, keepdim=True)


def test_new_pictures_are_registered_by_the_users_network(place, tmp_path, monkeypatch, capsys):
    """`congeal --features PATH`, and what uses its set with `--set-features PATH`, which alone has the file read."""
    network = tmp_path / "patches.pt"
    torch.jit.script(Patches()).save(str(network))
    assert run(monkeypatch, place, "own", "--features", network, "--features-stride", 4, "--no-pictures") == 0
    (tmp_path / "more").mkdir()
    save_picture(tmp_path / "more" / "new.png", shown(2) * 0.9)
    options = ["--checkpoint", place / "own", "--data", tmp_path / "more"]
    assert call(monkeypatch, align, *options, "--out", tmp_path / "no") == 2
    assert "to register new pictures give it as --set-features" in capsys.readouterr().err
    assert call(monkeypatch, align, *options, "--out", tmp_path / "yes", "--set-features", network) == 0
    aligner = Aligner.load(place / "own", features=network)
    there = torch.tensor([[[40.0, 50.0], [60.0, 40.0]]])
    new, member = (aligner.to_template(which, there) for which in (shown(2)[None] * 0.9, ["2.png"]))
    assert (new - member).norm(dim=-1).max() < 2


@pytest.mark.parametrize(("checkpoint", "words"), [("set", "which it finds by itself"), ("none", "is no set")])
def test_a_network_where_none_is_wanted_is_said(place, checkpoint, words):
    with pytest.raises(UserError, match=words):
        Aligner.load(place / checkpoint, features="network.pt")


def test_digits_are_aligned_by_entropy(tmp_path, monkeypatch, capsys):
    """The other method makes the same folder; its funnel aligns new pictures."""
    (tmp_path / "pictures").mkdir()
    for number in range(6):
        bar = torch.full((3, 28, 28), -1.0)
        bar[:, 5:23, 9 + number : 13 + number] = 1
        save_picture(tmp_path / "pictures" / f"{number}.png", bar)
    options = ["--data", tmp_path / "pictures", "--out", tmp_path / "set", "--method", "entropy", "--model", "similarity"]
    assert call(monkeypatch, congeal, *options, "--threads", 1) == 0
    aligner = Aligner.load(tmp_path / "set")
    names = list(aligner.names)
    middle = torch.tensor([[[10.5 + k, 14.0]] for k in range(6)])
    spread = aligner.to_template(names, middle)[:, 0, 0].std()
    assert spread < 0.4 * middle[:, 0, 0].std()
    new = torch.full((1, 3, 28, 28), -1.0)
    new[:, :, 6:24, 10:14] = 1
    found = aligner.to_template(new, torch.tensor([[[11.5, 14.0]]]))[0, 0, 0]
    assert abs(found - aligner.to_template(names, middle)[:, 0, 0].mean()) < 1.5
    assert call(monkeypatch, congeal, *options[:-2], "--clusters", 2) == 2
    assert "makes one template" in capsys.readouterr().err
