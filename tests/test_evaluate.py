# SPDX-License-Identifier: Apache-2.0
"""`evaluate`: figures that were counted by hand, every way to carry points, other systems' files, a run that was stopped."""

from __future__ import annotations

import json
import shlex
from fractions import Fraction
from pathlib import Path

import keypoint_files as made
import numpy
import pytest
import torch
import torch.nn.functional as F
from aligners import aligner, clustered
from PIL import Image
from runs import call

from gangealing_fast import evaluate
from gangealing_fast.applications import evaluating
from gangealing_fast.applications.config import EvaluateConfig
from gangealing_fast.applications.transfers import ByAligner, Identity, NearestNeighbour
from gangealing_fast.checkpoints.writing import export_aligner
from gangealing_fast.congealing.features import FeatureNetwork, Tap
from gangealing_fast.data.keypoints import open_keypoints
from gangealing_fast.data.pictures import to_float
from gangealing_fast.runtime.commands import parse

ALONE = ("--features", "none", "--cycle-count", 0, "--bootstrap", 20, "--pictures", 1, "--threads", 1)


def figures(folder: Path) -> dict:
    return json.loads((folder / "figures.json").read_text())


def value(found: dict, method: str, of: str, per: str, *, alpha: float = 0.1, mirroring: bool = False) -> float:
    (line,) = [
        line
        for line in found["methods"][method]["figures"]
        if (line["of"], line["per"], line["alpha"], line["mirroring"]) == (of, per, alpha, mirroring)
    ]
    return line["value"]


def results(pairs_file: Path, data, out: Path) -> Path:
    """What a system with known errors carries: point 0 is 3 pixels off, 30 in every fifth pair, point 1 is 10 off, point 2 15."""
    with numpy.load(pairs_file) as pairs:
        points = data.points[pairs["second"]].numpy().copy()
    points[:, 0, 0] += numpy.where(numpy.arange(len(points)) % 5, 3, 30)
    points[:, 1, 0] += 10
    points[:, 2, 1] += 15
    numpy.savez(out, points=points)
    return out


def evaluate_results(monkeypatch, tmp_path, folder: Path, *options: object) -> dict:
    """Get pairs.npz, write the results of the system above, judge them."""
    arguments = ["--data", folder, "--out", tmp_path / "out", *ALONE, *options]
    assert call(monkeypatch, evaluate, *arguments) == 0
    category = [options[options.index("--category") + 1]] if "--category" in options else []
    theirs = results(tmp_path / "out" / "pairs.npz", open_keypoints(folder, category=category), tmp_path / "theirs.npz")
    assert call(monkeypatch, evaluate, *arguments, "--results", theirs) == 0
    return figures(tmp_path / "out")


# Twenty pairs. Eight have the picture that hides point 2, so that 12 * 3 + 8 * 2 = 52 points count. Pairs 0, 5, 10 and 15 miss
# point 0, and pair 15 alone of these has two points. Within 0.1 of the key points' box, 4 pixels, is point 0: 16 of 52. Within 0.1
# of the object's box, 10 pixels, is point 1 too, on the border: 36 of 52. Of the picture, 20 pixels, point 2 too: 48 of 52.
# Pair by pair: 9/3 + 7/2, then (9 * 2 + 3) / 3 + 7 + 1/2, then 9 + 3 * 2/3 + 7 + 1/2, of 20 each.
BY_HAND = {
    ("keypoints", "point"): Fraction(16, 52),
    ("object", "point"): Fraction(36, 52),
    ("picture", "point"): Fraction(48, 52),
    ("keypoints", "image"): Fraction(13, 40),
    ("object", "image"): Fraction(29, 40),
    ("picture", "image"): Fraction(37, 40),
}


@pytest.mark.parametrize(
    ("form", "options", "protocol"),
    [
        (made.spair, (), "given"),
        (made.spair, ("--protocol", "all"), "all"),
        (made.spair, ("--protocol", "subsets", "--subsets", 1, "--subset-size", 5), "subsets"),
        (made.spair, ("--protocol", "classes"), "classes"),
        (made.cub, ("--protocol", "classes", "--classes", 3), "classes"),
        (made.cub, ("--category", "001", "--protocol", "all"), "all"),
        (made.cub, ("--protocol", "subsets", "--subsets", 1, "--subset-size", 5, "--category", "1"), "subsets"),
    ],
)
def test_twenty_pairs_by_hand(tmp_path, monkeypatch, form, options, protocol):
    found = evaluate_results(monkeypatch, tmp_path, form(tmp_path / "data"), *options)
    assert found["pairs"]["protocol"] == protocol and found["pairs"]["count"] == 20
    for (of, per), exact in BY_HAND.items():
        assert value(found, "theirs", of, per) == pytest.approx(float(exact), abs=1e-15, rel=0)
        assert value(found, "theirs", of, per, mirroring=True) == value(found, "theirs", of, per)
    points = list(found["methods"]["theirs"]["points"].values())[:3]
    shown = {"object": [16 / 20, 20 / 20, 0], "picture": [16 / 20, 20 / 20, 12 / 12]}
    assert points == shown[found["shown"]["of"]]
    # Of 0.05, 2, 5 and 10 pixels: nothing; point 0 of 16 pairs; points 0 and 1.
    assert [value(found, "theirs", of, "point", alpha=0.05) for of in ("keypoints", "object", "picture")] == [0, 16 / 52, 36 / 52]


def test_random_pairs_both_ways_by_hand(tmp_path, monkeypatch):
    """The same errors on pairs that are drawn, counted point by point."""
    folder = made.cub(tmp_path / "data")
    options = ("--category", "001", "--protocol", "random", "--pairs", 10, "--seed", 4)
    found = evaluate_results(monkeypatch, tmp_path, folder, *options)
    with numpy.load(tmp_path / "out" / "pairs.npz") as pairs:
        first, second = pairs["first"].tolist(), pairs["second"].tolist()
    assert first[:10] == second[10:] and second[:10] == first[10:]
    for of, limit in (("keypoints", 4), ("object", 10), ("picture", 20)):
        right = many = 0
        shares = Fraction(0)
        for row, (i, j) in enumerate(zip(first, second, strict=True)):
            errors = [3 if row % 5 else 30, 10, 15]
            seen = [errors[p] <= limit for p in range(3) if made.VISIBLE[i][p] and made.VISIBLE[j][p]]
            right, many, shares = right + sum(seen), many + len(seen), shares + Fraction(sum(seen), len(seen))
        assert value(found, "theirs", of, "point") == pytest.approx(right / many, abs=1e-15, rel=0)
        assert value(found, "theirs", of, "image") == pytest.approx(float(shares / 20), abs=1e-15, rel=0)


def test_both_figures_with_and_without_mirroring(tmp_path, monkeypatch):
    """A system that mirrors every pair and finds each eye at the other one: right with mirrored labels, wrong without."""
    folder = made.cub(tmp_path / "data")
    arguments = ["--data", folder, "--category", "1", "--out", tmp_path / "out", *ALONE]
    assert call(monkeypatch, evaluate, *arguments) == 0
    data = open_keypoints(folder, category=["1"])
    with numpy.load(tmp_path / "out" / "pairs.npz") as pairs:
        points = data.points[pairs["second"]][:, [0, 2, 1]].numpy()
        # In another order, and by name: each pair is found again.
        names = pairs["names"]
        numpy.savez(
            tmp_path / "mirrors.npz",
            points=points[::-1],
            mirrored=numpy.ones(len(points), bool),
            first=names[pairs["first"]][::-1],
            second=names[pairs["second"]][::-1],
        )
    assert call(monkeypatch, evaluate, *arguments, "--results", tmp_path / "mirrors.npz") == 0
    found = figures(tmp_path / "out")
    assert value(found, "mirrors", "keypoints", "point", mirroring=True) == 1
    # The beak is where it is; the eyes are 40 pixels and more from one another: 20 of 52 points.
    assert value(found, "mirrors", "keypoints", "point") == 20 / 52
    assert found["methods"]["mirrors"]["mirrored_pairs"] == 20


# ---- ways to carry points


def general(folder: Path) -> Path:
    made.pictures(folder)
    numpy.save(folder / "keypoints.npy", made.array())
    return folder


def test_an_aligner_carries_points_as_its_own_transfer_does(tmp_path):
    data, model = open_keypoints(general(tmp_path / "data")), aligner()
    pairs = torch.tensor([(0, 1), (3, 1), (2, 4), (0, 4)])
    ticks = []
    found = ByAligner(data, model).transfer(pairs, data.points[pairs[:, 0]], lambda: ticks.append(1))
    for row, (i, j) in enumerate(pairs.tolist()):
        one, two = (to_float(data.picture(k))[None] for k in (i, j))
        expected = model.transfer(one, two, data.points[i][None].float())
        assert torch.allclose(found[row].float(), expected[0], atol=1e-3)
    assert len(ticks) == ByAligner(data, model).looks(pairs) == 5


def test_clusters_and_mirrors_are_the_classifiers(tmp_path):
    data, model = open_keypoints(general(tmp_path / "data")), clustered()
    method = ByAligner(data, model)
    pairs = torch.tensor(made.ORDERED)
    found = method.transfer(pairs, data.points[pairs[:, 0]], lambda: None)
    looks = [model.look(to_float(data.picture(k))[None]) for k in range(made.COUNT)]
    cluster, mirrored = (torch.cat([getattr(look, name) for look in looks]) for name in ("cluster", "mirrored"))
    apart = cluster[pairs[:, 0]] != cluster[pairs[:, 1]]
    assert torch.equal(found.isnan().all(2).all(1), apart) and torch.equal(found.isnan().any(2).any(1), apart)
    assert torch.equal(method.mirrored(pairs), mirrored[pairs[:, 0]] != mirrored[pairs[:, 1]])


def test_identity_keeps_the_place_in_the_square(tmp_path):
    folder = tmp_path / "data"
    made.picture(folder / "a.png", size=(200, 120))
    made.picture(folder / "b.png", size=(100, 100))
    numpy.save(folder / "keypoints.npy", numpy.array([[[99.5, 59.5], [0, 0]], [[0, 0], [99, 0]]], dtype=numpy.float64))
    data = open_keypoints(folder)
    pairs = torch.tensor([(0, 1), (1, 0)])
    found = Identity(data).transfer(pairs, data.points[pairs[:, 0]], lambda: None)
    # The square of a 200x120 picture has its middle at (99.5, 59.5), and one of 100 at (49.5, 49.5).
    assert found.tolist() == [[[49.5, 49.5], [-0.25, 19.75]], [[0.5, -39.5], [198.5, -39.5]]]


def colours() -> FeatureNetwork:
    """Cells of 8 pixels that are described by their own colour."""
    return FeatureNetwork("colours", lambda x: [Tap(F.avg_pool2d(x, 8), 8.0, 3.5, x.shape[-1])], coarse=(128, 16), fine=(128, 16))


def test_the_nearest_neighbour_follows_a_shift(tmp_path):
    """Two cut-outs of one noisy picture, 8 pixels apart; neither fills the square, and nothing is found beyond a picture's edge."""
    folder = tmp_path / "data"
    folder.mkdir()
    values = torch.randint(0, 256, (10, 17, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    whole = Image.fromarray(values.numpy()).resize((136, 80), Image.Resampling.NEAREST)
    whole.crop((0, 0, 128, 80)).save(folder / "a.png")
    whole.crop((8, 0, 136, 80)).save(folder / "b.png")
    start = [[43.5, 19.5], [91.5, 51.5], [59.5, 75.5]]
    numpy.save(folder / "keypoints.npy", numpy.array([start, start]))
    data = open_keypoints(folder)
    pairs = torch.tensor([(0, 1), (1, 0)])
    method = NearestNeighbour(data, colours(), whiten=False)
    found = method.transfer(pairs, data.points[pairs[:, 0]], lambda: None)
    shift = torch.tensor([8.0, 0.0], dtype=torch.float64)
    assert torch.allclose(found[0], data.points[0] - shift) and torch.allclose(found[1], data.points[0] + shift)
    again = NearestNeighbour(data, colours(), seed=1).transfer(pairs, data.points[pairs[:, 0]], lambda: None)
    assert torch.allclose(again, found)


# ---- the command


@pytest.fixture
def place(tmp_path):
    general(tmp_path / "data")
    model = aligner()
    export_aligner(tmp_path / "aligner.safetensors", model.transformer, None, model.warping)
    return tmp_path


def test_everything_beside_an_aligner_in_one_run(place, monkeypatch, capsys):
    network = torch.jit.trace(torch.nn.AvgPool2d(8), torch.zeros(1, 3, 64, 64))
    network.save(str(place / "pool.pt"))
    arguments = ["--data", place / "data", "--checkpoint", place / "aligner.safetensors", "--out", place / "out", "--threads", 1]
    arguments += [
        "--features",
        place / "pool.pt",
        "--features-stride",
        8,
        "--cycle-count",
        4,
        "--cycles",
        2,
        3,
        6,
        "--bootstrap",
        30,
        "--alpha",
        0.1,
        0.1,
    ]
    assert call(monkeypatch, evaluate, *arguments, "--pictures", 2) == 0
    said = capsys.readouterr().out
    assert "PCK-Transfer@0.1" in said and "report.html" in said and "next:" in said
    found = figures(place / "out")
    assert list(found["methods"]) == ["aligner", "aligner-published", "nearest", "identity"]
    assert set(found["differences"]) == {"aligner", "aligner-published", "identity"}
    assert set(found["cycles"]["aligner"]) == {"2", "3"} and "cycles of 6 pictures are left out" in said
    for line in found["cycles"]["identity"]["3"]:
        assert line["value"] == line["low"] == line["high"] == 1
    for method in found["methods"].values():
        for line in method["figures"]:
            assert 0 <= line["low"] <= line["value"] <= line["high"] <= 1 or line["value"] in (0, 1)
    page = (place / "out" / "report.html").read_text()
    words = shlex.split(found["command"])
    assert words[:3] == ["python", "-m", "gangealing_fast.evaluate"] and "--features-stride 8" in found["command"]
    again = parse(EvaluateConfig, {}, "", words[3:])
    assert again == parse(EvaluateConfig, {}, "", [*map(str, arguments), "--pictures", "2"])
    assert "Cycle consistency" in page and "bird_0.jpg" in page and page.count("<img") == 2


def test_a_stopped_run_goes_on_where_it_was(place, monkeypatch, capsys):
    arguments = ["--data", place / "data", "--checkpoint", place / "aligner.safetensors", "--out", place / "out", *ALONE]

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(evaluating, "judge", stopped)
        assert call(patch, evaluate, *arguments) == 130
    carried = {path.name: path.read_bytes() for path in (place / "out" / evaluating.CARRIED).glob("transfers-*.npz")}
    assert set(carried) == {f"transfers-{name}.npz" for name in ("aligner", "aligner-published", "identity")}
    with monkeypatch.context() as patch:
        patch.setattr(ByAligner, "transfer", stopped)
        assert call(patch, evaluate, *arguments) == 0
    assert "Aligner: as carried before" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in (place / "out").glob("transfers-*.npz")} == carried
    first = figures(place / "out")
    # A finished run is done anew, and other options do not take what was carried for these.
    assert call(monkeypatch, evaluate, *arguments) == 0
    assert "as carried before" not in capsys.readouterr().out
    again = figures(place / "out")
    assert again["methods"]["aligner"]["figures"] == first["methods"]["aligner"]["figures"]
    (place / "out" / "figures.json").unlink()
    assert call(monkeypatch, evaluate, *arguments, "--limit", 4) == 0
    assert "as carried before" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({}, "has no array named points"),
        ({"points": numpy.zeros((20, 2, 2))}, "but [pairs, 3, 2] are needed"),
        ({"points": numpy.zeros((19, 3, 2))}, "has points of 19 pairs, but there are 20"),
        ({"points": numpy.zeros((20, 3, 2)), "mirrored": numpy.zeros(3)}, "one for each pair is needed"),
        ({"points": numpy.zeros((20, 3, 2)), "first": numpy.zeros(20), "second": numpy.ones(20)}, "lacks 19 of the 20 pairs"),
    ],
)
def test_mistakes_in_results_are_sentences(place, monkeypatch, capsys, arrays, words):
    numpy.savez(place / "theirs.npz", **arrays)
    arguments = ["--data", place / "data", "--out", place / "out", "--results", place / "theirs.npz", *ALONE]
    assert call(monkeypatch, evaluate, *arguments) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("error: ") and words in said
    assert not (place / "out").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--of", "object"], "--of object needs the objects' boxes"),
        (["--crop", "object"], "--crop object needs the objects' boxes"),
        (["--alpha"], "--alpha needs at least one number"),
        (["--mirror", "nothing"], "neither a file nor one of faces68"),
        (["--limit", "1"], "two are needed"),
        (["--features", "nowhere.pt"], "nowhere.pt do not exist"),
        (["--checkpoint", "nowhere"], "nowhere"),
    ],
)
def test_mistakes_are_sentences(place, monkeypatch, capsys, options, words):
    arguments = ["--data", place / "data", "--out", place / "out", *ALONE]
    assert call(monkeypatch, evaluate, *arguments, *options) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("error: ") and words in said
