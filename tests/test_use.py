# SPDX-License-Identifier: Apache-2.0
"""How an aligner is used: settings that a file states, that a user chooses or that are assumed; clusters and crops by choice."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from aligners import bend, clustered, composed
from foreign_files import original_file, small_parts
from picture_files import noise
from PIL import Image
from runs import call, train_config, write_generator

from gangealing_fast import Aligner, align, classify, convert, propagate
from gangealing_fast.alignment.trainer import run as train
from gangealing_fast.checkpoints.reading import read
from gangealing_fast.checkpoints.writing import export_aligner
from gangealing_fast.geometry.warping import PUBLISHED, Warping, settle
from gangealing_fast.models import ClusterClassifier, LatentTarget, SpatialTransformer
from gangealing_fast.models.layers import resize_to
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.storage import checkpoint
from gangealing_fast.storage.files import read_json_lines


def published_file(path, transforms=("similarity", "flow"), **settings):
    """As the original writes it: how often the similarity runs is not among its arguments."""
    parts = small_parts()
    parts.transformer = SpatialTransformer(transforms, 32, 64, channel_base=64, max_channels=8)
    parts.target = LatentTarget(torch.eye(8)[:3], torch.randn(8))
    for stage in parts.transformer.stns:
        for parameter in stage.warp_head.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    original_file(path, parts)
    content = torch.load(path, weights_only=False)
    arguments = vars(content["args"])
    for name in ("iters", "padding_mode"):
        del arguments[name]
    arguments.update(settings)
    torch.save(content, path)
    return path


# ---- what a file does not say


@pytest.mark.parametrize(
    ("stated", "chosen", "expected", "said"),
    [
        ({}, {}, PUBLISHED, ["--padding-mode", "--iters"]),
        ({"padding_mode": "border"}, {}, Warping("border", 3), ["--iters"]),
        ({"padding_mode": "border"}, {"iters": 1}, Warping("border", 1), []),
        ({"padding_mode": "border"}, {"padding_mode": "zeros"}, Warping("zeros", 3), ["--iters"]),
        ({"iters": 2}, {"padding_mode": "zeros"}, Warping("zeros", 2), []),
        ({"iters": 2, "padding_mode": "border"}, {}, Warping("border", 2), []),
        ({"iters": 2, "padding_mode": "border"}, {"iters": 5, "padding_mode": "reflection"}, Warping("reflection", 5), []),
    ],
)
def test_a_published_checkpoint_is_used_as_chosen_stated_or_assumed(tmp_path, stated, chosen, expected, said):
    sentences: list[str] = []
    path = published_file(tmp_path / "a.pt", **stated)
    model = Aligner.load(path, say=sentences.append, **chosen)
    assert model.warping == expected
    assert len(sentences) == len(said)
    for sentence, option in zip(sentences, said, strict=True):
        assert sentence.startswith(f"notice: {path} does not say") and option in sentence and sentence.endswith("is assumed")


def test_a_flow_alone_does_not_iterate(tmp_path):
    sentences: list[str] = []
    Aligner.load(published_file(tmp_path / "a.pt", ("flow",), padding_mode="border"), say=sentences.append)
    assert not sentences


def test_a_choice_that_is_none():
    for choice in ({"iters": 0}, {"iters": -3}, {"padding_mode": "nonsense"}):
        with pytest.raises(ValueError, match=next(iter(choice))):
            settle(Warping(), (), "a.pt", **choice)
        with pytest.raises(UserError, match=next(iter(choice))):
            small_parts().settle("a.pt", **choice)


def pictures(folder, sizes=((32, 32), (48, 30), (20, 40))):
    folder.mkdir()
    for index, (width, height) in enumerate(sizes):
        Image.fromarray(noise(height, width, seed=index)).save(folder / f"{index}.png")
    return folder


def edit(path):
    values = np.zeros((32, 32, 4), np.uint8)
    values[8:24, 8:24] = (255, 0, 0, 255)
    Image.fromarray(values).save(path)
    return path


USES = {
    align: lambda folder: ["--checkpoint", folder / "a.pt", "--data", folder / "pictures"],
    propagate: lambda folder: [
        *("--checkpoint", folder / "a.pt", "--data", folder / "pictures"),
        *("--edit", edit(folder / "edit.png")),
    ],
    convert: lambda folder: ["--source", folder / "a.pt"],
    classify: lambda folder: ["--checkpoint", folder / "a.pt", *"--flips --steps 1 --batch 2 --snapshot 1 --threads 1".split()],
}


@pytest.mark.parametrize("command", USES, ids=lambda command: command.__name__.rpartition(".")[2])
def test_every_command_takes_the_choice_and_says_what_it_assumes(tmp_path, monkeypatch, capsys, command):
    pictures(tmp_path / "pictures")
    published_file(tmp_path / "a.pt", padding_mode="border")
    arguments = USES[command](tmp_path)
    assert call(monkeypatch, command, *arguments, "--out", tmp_path / "assumed") == 0
    assert capsys.readouterr().out.count("does not say how often the similarity runs") == 1
    assert call(monkeypatch, command, *arguments, "--out", tmp_path / "chosen", "--iters", 1, "--padding-mode", "zeros") == 0
    assert "notice" not in capsys.readouterr().out
    assert call(monkeypatch, command, *arguments, "--out", tmp_path / "none", "--iters", 0) == 2
    error = capsys.readouterr().err
    assert "--iters must be at least 1" in error and error.count("\n") == 1 and not (tmp_path / "none").exists()
    if command in (convert, classify):
        assert read(tmp_path / "assumed").warping == Warping("border", 3) and read(tmp_path / "chosen").warping == Warping(
            "zeros", 1
        )
    elif command is align:
        lines = [read_json_lines(tmp_path / name / "warps.jsonl") for name in ("assumed", "chosen")]
        assert all(a["matrix"] != b["matrix"] for a, b in zip(*lines, strict=True))
    else:
        lines = [read_json_lines(tmp_path / name / "edits.jsonl") for name in ("assumed", "chosen")]
        assert any(a["covered"] != b["covered"] for a, b in zip(*lines, strict=True))


def test_a_run_s_checkpoint_says_how_it_is_used(tmp_path, capsys):
    """As the aligner beside it; those of earlier versions did not, which is said."""
    write_generator(tmp_path / "generator.safetensors")
    config = train_config(tmp_path, transforms="similarity", steps=2, padding_mode="zeros", iters_in_use=3)
    train(config)
    capsys.readouterr()
    beside, inside = read(config.out), read(config.out / "checkpoint.pt")
    assert (inside.warping, inside.inject) == (beside.warping, beside.inject) == (Warping("zeros", 3), 3)
    state = checkpoint.load(config.out / "checkpoint.pt")
    del state["use"]
    checkpoint.save(tmp_path / "old.pt", state, kind="train")
    assert Aligner.load(tmp_path / "old.pt").warping == Warping()
    assert capsys.readouterr().out.count("is assumed") == 2


# ---- crops and flips


def saved(path, model: Aligner):
    export_aligner(path, model.transformer, None, model.warping, classifier=model.classifier)
    return path


def shown(path) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)[None].float() / 127.5 - 1


@pytest.mark.parametrize("flips", [False, True])
@pytest.mark.parametrize("crop", [None, "center", "none"])
def test_align_takes_pictures_cropped_or_whole(tmp_path, monkeypatch, capsys, crop, flips):
    model = composed()
    bend(model, 0.1)
    folder = pictures(tmp_path / "pictures")
    arguments = ["--checkpoint", saved(tmp_path / "a.safetensors", model), "--data", folder, "--out", tmp_path / "out"]
    arguments += ([] if crop is None else ["--crop", crop]) + ["--flips"] * flips
    assert call(monkeypatch, align, *arguments, "--resolution", 40) == 0
    assert ("read whole" if crop == "none" else "read as 32x32") in capsys.readouterr().out
    aligner = Aligner(model.transformer, model.warping, flips=flips)
    lines = read_json_lines(tmp_path / "out" / "warps.jsonl")
    assert len(lines) == 3
    for line in lines[: 3 if crop == "none" else 1]:  # the first is a square that needs no crop
        picture = shown(folder / line["picture"])
        look = aligner.look(picture, output_resolution=40)
        torch.testing.assert_close(shown(tmp_path / "out" / line["file"]), look.alignment.image.clamp(-1, 1), atol=0.01, rtol=0)
        assert ("mirrored" in line) == flips and line.get("mirrored", False) == bool(look.mirrored)
    before = Image.open(tmp_path / "out" / "average.png")
    assert before.size[1] >= 40


def test_the_average_of_whole_pictures_is_that_of_their_squares(tmp_path, monkeypatch):
    model = composed()
    folder = pictures(tmp_path / "pictures")
    arguments = ["--checkpoint", saved(tmp_path / "a.safetensors", model), "--data", folder, "--out", tmp_path / "out"]
    assert call(monkeypatch, align, *arguments, "--crop", "none") == 0
    squares = [resize_to(model.square(shown(folder / f"{k}.png")).images, 32) for k in range(3)]
    expected = torch.cat(squares).mean(0, keepdim=True)
    found = shown(tmp_path / "out" / "average.png")
    edge = (found.shape[2] - 32) // 2
    differences = [
        (found[:, :, top : top + 32, left : left + 32] - expected).abs().max().item()
        for top in range(2 * edge + 1)
        for left in range(8)
        if top + 32 <= found.shape[2]
    ]
    assert min(differences) < 0.02


def test_propagate_crops_if_asked(tmp_path, monkeypatch):
    model, folder = composed(), pictures(tmp_path / "pictures")
    arguments = ["--checkpoint", saved(tmp_path / "a.safetensors", model), "--data", folder, "--edit", edit(tmp_path / "edit.png")]
    for crop, sizes in (("none", [(32, 32), (48, 30), (20, 40)]), ("center", [(32, 32), (30, 30), (20, 20)])):
        assert call(monkeypatch, propagate, *arguments, "--out", tmp_path / crop, "--crop", crop) == 0
        lines = read_json_lines(tmp_path / crop / "edits.jsonl")
        assert [Image.open(tmp_path / crop / line["file"]).size for line in lines] == sizes


@pytest.mark.parametrize("times", [1, 2, 3, 5, 6])
def test_pictures_of_any_multiple_of_the_networks_size(times):
    """The tent filter halves, quarters and so on; what it cannot do is resized otherwise."""
    picture = torch.linspace(-1, 1, 16 * times).expand(1, 3, 16 * times, -1)
    seen = resize_to(picture, 16)
    torch.testing.assert_close(seen[0, 0, 8, 2:-2], torch.linspace(-1, 1, 16)[2:-2], atol=0.07, rtol=0)


def test_a_size_belongs_to_cropped_pictures(tmp_path, monkeypatch, capsys):
    arguments = ["--checkpoint", saved(tmp_path / "a.safetensors", composed()), "--data", pictures(tmp_path / "pictures")]
    assert call(monkeypatch, align, *arguments, "--out", tmp_path / "out", "--crop", "none", "--size", 64) == 2
    assert "--crop none" in capsys.readouterr().err and not (tmp_path / "out").exists()


# ---- a cluster by hand


@pytest.mark.parametrize("cluster", [0, 1])
@pytest.mark.parametrize("classifier", ["flips", "plain", "absent"])
def test_a_cluster_chosen_by_hand(classifier, cluster):
    model = clustered()
    knows = {"flips": model.classifier, "absent": None}.get(classifier, ClusterClassifier.like(model.transformer))
    chosen = Aligner(model.transformer, model.warping, knows, cluster=cluster)
    images = torch.rand(4, 3, 16, 24) * 2 - 1
    images = torch.cat([images, images.flip(3)])
    look = chosen.look(images)
    assert (look.cluster == cluster).all() and torch.equal(chosen.assign(images)[0], look.cluster)
    mirrored = torch.zeros(8, dtype=torch.bool)
    if classifier == "flips":
        logits = model.classifier(model.square(images).images)
        mirrored = logits[:, cluster + 2] > logits[:, cluster]
        assert mirrored.any()
    assert torch.equal(look.mirrored, mirrored)
    expected = Aligner(model.transformer, model.warping).warp(images, assignment=(look.cluster, mirrored))
    assert torch.equal(look.alignment.grid, expected.grid)


def test_a_cluster_by_hand_and_flips_by_flows():
    torch.manual_seed(0)
    transformer = SpatialTransformer(("similarity", "flow"), 32, channel_base=64, max_channels=8, heads=3)
    for stage in transformer.stns:
        for parameter in stage.warp_head.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    model = Aligner(transformer, flips=True, cluster=2)
    images = torch.rand(6, 3, 32, 32)
    look = model.look(images)
    again = model.look(images.flip(3))
    assert torch.equal(look.mirrored, ~again.mirrored) and (look.cluster == 2).all()
    torch.testing.assert_close(look.alignment.image, again.alignment.image)


def test_clusters_that_there_are_not():
    for cluster in (-1, 2):
        with pytest.raises(ValueError, match="between 0 and 1"):
            Aligner(clustered().transformer, cluster=cluster)


@pytest.mark.parametrize("command", [align, propagate], ids=["align", "propagate"])
def test_the_commands_take_a_cluster(tmp_path, monkeypatch, capsys, command):
    model = clustered()
    model = Aligner(model.transformer, model.warping)
    arguments = ["--checkpoint", saved(tmp_path / "a.safetensors", model), "--data", pictures(tmp_path / "pictures")]
    arguments += ["--edit", edit(tmp_path / "edit.png")] if command is propagate else []
    for name, options, status in (("without", [], 2), ("one", ["--cluster", 1], 0), ("many", ["--cluster", 2], 2)):
        assert call(monkeypatch, command, *arguments, "--out", tmp_path / name, *options) == status
        said = capsys.readouterr()
        assert {"without": "--cluster", "one": "", "many": "between 0 and 1"}[name] in said.err + said.out
    lines = read_json_lines(tmp_path / "one" / ("edits.jsonl" if command is propagate else "warps.jsonl"))
    assert [line["cluster"] for line in lines] == [1, 1, 1]


def test_convert_takes_a_cluster_for_programs_alone(tmp_path, monkeypatch, capsys):
    path = saved(tmp_path / "a.safetensors", clustered())
    for to, cluster, words in (("safetensors", 0, "belongs to --to onnx and pt2"), ("pt2", 2, "between 0 and 1")):
        arguments = ["--source", path, "--out", tmp_path / f"out.{to}", "--to", to, "--cluster", cluster]
        assert call(monkeypatch, convert, *arguments) == 2
        assert words in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.slow
@pytest.mark.parametrize("known", [True, False])
def test_a_program_keeps_the_chosen_cluster(tmp_path, known):
    model = clustered()
    chosen = Aligner(model.transformer, model.warping, model.classifier if known else None, cluster=1)
    program = torch.export.load(chosen.export(tmp_path / "a.pt2")).module()
    images = torch.rand(5, 3, 16, 16) * 2 - 1
    torch.testing.assert_close(program(images)[1], chosen.warp(images).grid, atol=1e-5, rtol=1e-4)


# ---- stages, base warps, bounds


@pytest.mark.parametrize("flips", [False, True])
def test_stages_and_base_warps_of_an_aligner(flips):
    model = composed()
    bend(model, 0.1)
    aligner = Aligner(model.transformer, Warping("reflection", 2), flips=flips)
    images = torch.rand(6, 3, 32, 24) * 2 - 1
    stages, look = aligner.stages(images, output_resolution=20, alpha=0.5), aligner.look(images, output_resolution=20, alpha=0.5)
    assert len(stages) == 3 and torch.equal(stages[-1].grid, look.alignment.grid)
    torch.testing.assert_close(stages[-1].image, look.alignment.image)
    once = Aligner(model.transformer, Warping("reflection", 1))
    first = once.stages(images)[0].matrix
    assignment = (torch.zeros(6, dtype=torch.long), torch.zeros(6, dtype=torch.bool))
    expected = Aligner(model.transformer, Warping("reflection", 2)).warp(images, assignment=assignment)
    assert torch.equal(once.warp(images, base_warp=first).grid, expected.grid)


def test_a_base_warp_of_a_picture_is_mirrored_with_it():
    """What a base warp shows of a picture, mirrored, is what is seen of the mirror image."""
    model = Aligner(SpatialTransformer(("similarity", "flow"), 32, channel_base=64, max_channels=8))
    base = torch.tensor([[[0.8, -0.3, 0.2], [0.3, 0.8, -0.1]]]).repeat(2, 1, 1)
    images, mirrored = torch.rand(2, 3, 32, 32), torch.tensor([True, False])
    found = model.warp(images, base_warp=base, assignment=(torch.zeros(2, dtype=torch.long), mirrored))
    torch.testing.assert_close(found.image[:1].flip(3), model.warp(images, base_warp=base).image[:1], atol=1e-4, rtol=0)
    assert torch.equal(found.grid[1], model.warp(images, base_warp=base).grid[1])


@pytest.mark.parametrize("size", [(32, 32), (32, 20), (21, 32)])
def test_bounds_are_those_of_the_picture_as_given(size):
    """Not of the square it is padded to: the same picture untouched is in bounds only if it is square."""
    model = Aligner(SpatialTransformer(("similarity",), 32, channel_base=64, max_channels=8))
    images = torch.rand(2, 3, *size)
    assert model.out_of_bounds(images).tolist() == [size[0] != size[1]] * 2
    short = min(size) / max(size)
    inside = torch.tensor([[[0.95 * short, 0.0, 0.0], [0.0, 0.95 * short, 0.0]]]).repeat(2, 1, 1)
    inside[1, 0, 2] = 1 - 0.4 * short
    look = model.look(images, base_warp=inside)
    assert model.out_of_bounds(images, look=look).tolist() == [False, True]
