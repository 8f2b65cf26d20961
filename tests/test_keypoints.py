# SPDX-License-Identifier: Apache-2.0
"""Key points in and figures out: every format's own files, every protocol, and the arithmetic by hand."""

from __future__ import annotations

import json
import tarfile

import keypoint_files as made
import numpy
import pytest
import torch

from gangealing_fast.data.keypoints import choose_pairs, draw_cycles, open_keypoints
from gangealing_fast.data.keypoints.mirrors import FACES, SPAIR, from_names, from_pairs
from gangealing_fast.metrics.keypoints import (
    Expected,
    bootstrap,
    correct_points,
    expected_points,
    interval,
    keypoint_box_size,
    per_image,
    per_point,
)
from gangealing_fast.runtime.errors import UserError

VISIBLE = torch.tensor(made.VISIBLE)
POINTS = torch.tensor(made.POINTS, dtype=torch.float64)
BOXES = torch.tensor([made.BOX] * made.COUNT, dtype=torch.float64)


def write(folder, form):
    """The five pictures with their points as a file of one of the general formats."""
    made.pictures(folder)
    if form == "json":
        (folder / "keypoints.json").write_text(json.dumps(made.coco()))
    elif form == "npy":
        numpy.save(folder / "keypoints.npy", made.array())
    else:
        (folder / "keypoints.csv").write_text(getattr(made.tables(), form))
    return folder


@pytest.mark.parametrize("form", ["json", "npy", "by_point", "by_picture"])
def test_general_formats_say_the_same(tmp_path, form):
    found = open_keypoints(write(tmp_path / "data", form))
    assert list(found.names) == made.NAMES
    assert torch.equal(found.visible, VISIBLE)
    assert torch.equal(found.points[VISIBLE], POINTS[VISIBLE])
    assert found.sizes.tolist() == [[made.WIDTH, made.HEIGHT]] * made.COUNT
    assert (found.boxes is None) == (form in ("npy", "by_point"))
    if found.boxes is not None:
        assert torch.equal(found.boxes, BOXES)
    assert found.mirror is None if form == "npy" else found.mirror[0].tolist() == [0, 2, 1]
    assert found.picture(1).shape == (3, made.HEIGHT, made.WIDTH)


def test_points_of_a_tar_lie_in_it(tmp_path):
    folder = write(tmp_path / "data", "npy")
    with tarfile.open(tmp_path / "data.tar", "w") as tar:
        tar.add(folder, "data")
    found = open_keypoints(tmp_path / "data.tar")
    assert list(found.names) == [f"data/{name}" for name in made.NAMES] and torch.equal(found.visible, VISIBLE)


@pytest.mark.parametrize("annotations", [True, False])
def test_spair(tmp_path, annotations):
    found = open_keypoints(made.spair(tmp_path / "SPair-71k", annotations=annotations), category=["cat"])
    assert list(found.names) == [f"cat/{name}" for name in made.NAMES]
    assert found.pairs.tolist() == [list(pair) for pair in made.ORDERED]
    assert torch.equal(found.visible[:, :3], VISIBLE) and not found.visible[:, 3:].any()
    assert torch.equal(found.points[:, :3][VISIBLE], POINTS[VISIBLE]) and torch.equal(found.boxes, BOXES)
    assert torch.equal(found.pair_points[:, :3], VISIBLE[found.pairs[:, 0]] & VISIBLE[found.pairs[:, 1]])
    assert found.mirror[0, :6].tolist() == [1, 0, 3, 2, 5, 4]
    with pytest.raises(UserError, match="there are cat"):
        open_keypoints(tmp_path / "SPair-71k", category=["dog"])


def test_cub(tmp_path):
    folder = made.cub(tmp_path / "CUB_200_2011")
    found = open_keypoints(folder, category=["1"])
    assert len(found) == made.COUNT and set(found.groups) == {"001.First_Bird"}
    assert torch.equal(found.visible, VISIBLE) and torch.equal(found.points[VISIBLE], POINTS[VISIBLE])
    assert torch.equal(found.boxes, BOXES) and found.mirror[0].tolist() == [0, 2, 1]
    assert len(open_keypoints(folder)) == 7
    assert open_keypoints(folder, category=["Second_Bird", "003"]).groups == ("002.Second_Bird", "003.Third_Bird")
    with pytest.raises(UserError, match="there is no class Cat"):
        open_keypoints(folder, category=["Cat"])


def test_acsm_counts_from_one_and_cuts_birds_out(tmp_path):
    file = made.acsm(tmp_path / "val_cub_cleaned.mat", tmp_path / "images")
    found = open_keypoints(tmp_path / "images", keypoints=file)
    assert torch.equal(found.points[:, 0], POINTS[:2, 0]) and torch.equal(found.boxes, BOXES[:2])
    assert found.visible.sum(1).tolist() == [2, 2] and found.mirror[0, 6] == 10
    cut = found.cropped()
    # A box of 100x60 about (55, 35): the square's side is 110, from (0, -20) to (110, 90).
    assert cut.crops[0].tolist() == [0, -20, 110, 90] and cut.sizes[0].tolist() == [110, 110]
    assert torch.equal(cut.points[0, 0], POINTS[0, 0] + torch.tensor([0, 20]))
    assert cut.boxes[0].tolist() == [5, 25, 105, 85]
    whole, part = found.picture(0), cut.picture(0)
    assert torch.equal(part[:, 20:, :], whole[:, :90, :110]) and torch.equal(part[:, 0], part[:, 20])


def test_mirrors():
    assert from_names(["nose", "left eye", "right eye", "left"]).tolist() == [0, 2, 1, 3]
    assert from_names(["a", "b"]) is None
    faces = from_pairs(68, FACES)
    assert faces[faces].tolist() == list(range(68))
    assert [faces[k].item() for k in (0, 8, 17, 27, 31, 33, 36, 39, 40, 41, 48, 51, 55, 57, 60, 62, 65, 66)] == [
        *(16, 8, 26, 27, 35, 33, 45, 42, 47, 46, 54, 51, 59, 57, 64, 62, 67, 66)
    ]
    for pairs in SPAIR.values():
        flat = [k for pair in pairs for k in pair]
        assert len(set(flat)) == len(flat) and max(flat) < 30


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: (f / "keypoints.npy").write_bytes(b"no"), "no array of numbers"),
        (lambda f: numpy.save(f / "keypoints.npy", made.array()[:4]), "of 4 pictures, but there are 5"),
        (lambda f: numpy.save(f / "keypoints.npy", made.array()[0]), r"must be \[pictures, points, 2 or 3\]"),
        (lambda f: (f / "keypoints.csv").write_text("a,b\n1,2"), "2 files with key points"),
        (lambda f: (f / "keypoints.npy").unlink(), "has no key points"),
        (lambda f: (f / "keypoints.npy").rename(f / "keypoints.json"), "not valid JSON"),
    ],
)
def test_mistakes_in_a_folder_are_sentences(tmp_path, change, words):
    folder = write(tmp_path / "data", "npy")
    change(folder)
    with pytest.raises(UserError, match=words):
        open_keypoints(folder)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("p.csv", "a,b\n1,2", "no column named picture"),
        ("p.csv", "picture,b\nbird_0.jpg,2", "neither the columns point,x,y"),
        ("p.csv", "picture,point,x,y\nno.jpg,a,1,2", "no picture of that name"),
        ("p.csv", "picture,point,x,y\nbird_0.jpg,a,one,2", "'one' where a number"),
        ("p.json", "[]", "no key points as COCO"),
        ("p.json", '{"images": [], "annotations": []}', "no object with a visible key point"),
        ("p.txt", "", "must be a file .json"),
        ("p.mat", "no", "not one of ACSM's files"),
    ],
)
def test_mistakes_in_a_file_are_sentences(tmp_path, name, content, words):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=words):
        open_keypoints(made.pictures(tmp_path / "data"), keypoints=tmp_path / name)


@pytest.mark.parametrize("content", ["[0, 2, 0]", "[1, 2, 0]", "[0, 1]", '{"a": 1}'])
def test_a_mirror_that_is_no_mirror_is_refused(tmp_path, content):
    folder = write(tmp_path / "data", "npy")
    (tmp_path / "mirror.json").write_text(content)
    with pytest.raises(UserError, match="for each of the 3 points"):
        open_keypoints(folder, mirror=str(tmp_path / "mirror.json"))
    with pytest.raises(UserError, match="is for 68 points"):
        open_keypoints(folder, mirror="faces68")


def test_a_picture_of_another_size_is_named(tmp_path):
    found = open_keypoints(write(tmp_path / "data", "npy"))
    made.picture(tmp_path / "data" / made.NAMES[2], size=(80, 80))
    with pytest.raises(UserError, match="bird_2.jpg has 80x80 pixels"):
        found.picture(2)


# ---- protocols


def test_protocols(tmp_path):
    spair, cub = open_keypoints(made.spair(tmp_path / "s")), open_keypoints(made.cub(tmp_path / "c"))
    assert choose_pairs(spair).protocol == "given" and choose_pairs(cub).protocol == "all"
    assert choose_pairs(spair, "all").pairs.tolist() == [list(pair) for pair in made.ORDERED]
    drawn = choose_pairs(cub, "random", pairs=50, seed=3)
    assert torch.equal(drawn.pairs[:50], drawn.pairs[50:].flip(1)) and (drawn.pairs[:, 0] != drawn.pairs[:, 1]).all()
    assert torch.equal(drawn.pairs, choose_pairs(cub, "random", pairs=50, seed=3).pairs)
    classes = choose_pairs(cub, "classes", classes=3)  # the second and third class have one picture each
    assert classes.pairs.tolist() == [list(pair) for pair in made.ORDERED] and classes.names == ("001.First_Bird",)
    subsets = choose_pairs(spair, "subsets", subsets=2, subset_size=3)
    assert len(subsets.pairs) == 6 and len(subsets.pairs.unique()) == 3
    with pytest.raises(UserError, match="more than is held in memory"):
        choose_pairs(cub, "random", pairs=10_000_000)
    with pytest.raises(UserError, match="without prescribed pairs"):
        choose_pairs(cub, "given")


def test_sets_without_classes_are_drawn_from_all(tmp_path):
    data = open_keypoints(write(tmp_path / "data", "npy"))
    chosen = choose_pairs(data, "subsets", subsets=3, subset_size=4)
    assert chosen.names == ("set 1", "set 2", "set 3") and chosen.group.bincount().tolist() == [12, 12, 12]
    with pytest.raises(UserError, match="without classes"):
        choose_pairs(data, "classes")
    cycles = draw_cycles(5, 4, 7, seed=1)
    assert cycles.shape == (7, 4) and all(len(set(row)) == 4 for row in cycles.tolist())
    with pytest.raises(UserError, match="leave 6 out of --cycles"):
        draw_cycles(5, 6, 1)


def test_a_choice_of_pictures_keeps_the_pairs_among_them(tmp_path):
    data = open_keypoints(made.spair(tmp_path / "s")).choose([3, 1])
    assert data.pairs.tolist() == [[1, 0], [0, 1]] and data.names == ("cat/bird_3.jpg", "cat/bird_1.jpg")
    assert data.pair_points.shape == (2, 30)


# ---- arithmetic


def test_sizes_leave_hidden_points_out():
    points = torch.tensor([[[0.0, 0.0], [10.0, 4.0], [900.0, 900.0]], [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]])
    visible = torch.tensor([[True, True, False], [False, False, False]])
    sizes = keypoint_box_size(points, visible)
    assert sizes[0] == 10 and sizes[1].isnan()


def test_the_border_is_correct_and_nothing_found_is_wrong():
    expected = Expected(torch.zeros(1, 4, 2), torch.tensor([[True, True, True, False]]))
    found = torch.tensor([[[3.0, 4.0], [3.0, 4.1], [torch.nan, 0.0], [0.0, 0.0]]])
    correct = correct_points(found, expected, torch.tensor([50.0]), torch.tensor([0.1, 0.2]))
    assert correct.tolist() == [[[True, False, False, False]], [[True, True, False, False]]]
    assert per_point(correct, expected.counted).value().tolist() == [1 / 3, 2 / 3]


def test_visibility_is_permuted_with_the_labels():
    """The first picture shows its left eye alone, the second one its right eye alone; it is the mirror image."""
    points = torch.tensor([[[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]], [[4.0, 4.0], [5.0, 5.0], [6.0, 6.0]]])
    visible = torch.tensor([[True, False, True], [False, True, True]])
    mirror = torch.tensor([[1, 0, 2], [1, 0, 2]])
    pairs = torch.tensor([[0, 1]])
    plain = expected_points(pairs, points, visible)
    assert plain.counted.tolist() == [[False, False, True]] and torch.equal(plain.points[0], points[1])
    mirrored = expected_points(pairs, points, visible, mirrored=torch.tensor([True]), mirror=mirror)
    assert mirrored.counted.tolist() == [[True, False, True]]
    assert mirrored.points[0].tolist() == [[5.0, 5.0], [4.0, 4.0], [6.0, 6.0]]
    same = expected_points(pairs, points, visible, mirrored=torch.tensor([False]), mirror=mirror)
    assert torch.equal(same.points, plain.points) and torch.equal(same.counted, plain.counted)


def test_points_and_pairs_weigh_differently():
    correct = torch.tensor([[True, True, True, True], [False, False, False, False], [False, False, False, False]])[None]
    counted = torch.tensor([[True] * 4, [True, False, False, False], [False] * 4])
    assert per_point(correct, counted).value().item() == 4 / 5
    assert per_image(correct, counted).value().item() == 1 / 2


def test_intervals_draw_pictures():
    """Of two pictures every draw has both, or one of them twice and no pair: what is left agrees with the figure."""
    pairs, counted = torch.tensor([[0, 1], [1, 0]]), torch.ones(2, 4, dtype=torch.bool)
    correct = torch.tensor([[True, True, True, False], [True, False, False, False]])[None]
    shares = per_point(correct, counted)
    drawn = bootstrap(shares, pairs, 2, resamples=200)
    assert drawn.shape == (1, 200) and set(drawn[~drawn.isnan()].tolist()) == {0.5} and 50 < drawn.isnan().sum() < 150
    assert [edge.item() for edge in interval(drawn)] == [0.5, 0.5]


def test_intervals_cover_and_are_equal_for_equal_seeds():
    source = torch.Generator().manual_seed(0)
    pairs = torch.tensor([(i, j) for i in range(12) for j in range(12) if i != j])
    correct = torch.rand(1, len(pairs), 6, generator=source) < 0.4
    shares = per_point(correct, torch.ones(len(pairs), 6, dtype=torch.bool))
    drawn = bootstrap(shares, pairs, 12, resamples=400, seed=5)
    low, high = interval(drawn, 0.9)
    assert low < shares.value() < high and 0.02 < (high - low).item() < 0.3
    assert torch.equal(drawn, bootstrap(shares, pairs, 12, resamples=400, seed=5))
    assert not torch.equal(drawn, bootstrap(shares, pairs, 12, resamples=400, seed=6))
