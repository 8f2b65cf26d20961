# SPDX-License-Identifier: Apache-2.0
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from runs import assert_identical, train_config, write_generator, write_pictures
from torch.utils._python_dispatch import TorchDispatchMode

from gangealing_fast import ops
from gangealing_fast.alignment import step as step_module
from gangealing_fast.alignment.building import build
from gangealing_fast.alignment.results import health, print_figures
from gangealing_fast.alignment.step import Samples
from gangealing_fast.alignment.trainer import run
from gangealing_fast.applications.aligner import Aligner
from gangealing_fast.geometry.warps import identity_grid, similarity_matrix, transform_points
from gangealing_fast.metrics import inspect_warps
from gangealing_fast.models import Alignment
from gangealing_fast.runtime import precision
from gangealing_fast.runtime.distributed import Group
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.storage import checkpoint
from gangealing_fast.storage.files import read_json_lines


@pytest.fixture
def folder(tmp_path):
    write_generator(tmp_path / "generator.safetensors")
    return tmp_path


def without_time(path: Path) -> list[dict]:
    return [{k: v for k, v in line.items() if k != "seconds"} for line in read_json_lines(path)]


@pytest.mark.parametrize("transforms", ["similarity", "flow", "similarity,flow"])
def test_a_run_leaves_everything_it_promises(folder, transforms, capsys):
    write_pictures(folder / "pictures")
    config = train_config(folder, transforms=transforms, data=folder / "pictures", steps=4)
    run(config)
    names = {path.name for path in config.out.iterdir()}
    assert {"checkpoint.pt", "aligner.safetensors", "report.html", "log.jsonl", "average.png", "aligned.png"} <= names
    assert {"samples-0000004.png", "average-0000004.png"} <= names
    lines = read_json_lines(config.out / "log.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert {"loss", "perceptual", "tv", "identity", "psi", "lr"} <= lines[0].keys()
    page = (config.out / "report.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org", "") and "data:image/png;base64" in page
    aligner = Aligner.load(config.out)
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    assert aligner.align(images).shape == (2, 3, 32, 32)
    assert "perceptual distance" in capsys.readouterr().out


def test_the_perceptual_distance_can_be_learned_on_the_way(folder):
    """Without outside weights; and a run that finds the distance learned already gives the same numbers."""
    config = train_config(folder, perceptual="self", perceptual_steps=2, steps=2)
    run(config)
    assert (folder / "run-perceptual" / "perceptual.safetensors").exists()
    again = dataclasses.replace(config, out=folder / "again", perceptual_weights=folder / "run-perceptual")
    run(again)
    assert without_time(config.out / "log.jsonl") == without_time(again.out / "log.jsonl")


class _Kernels(TorchDispatchMode):
    """Counts calls of this package's operators."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.namespace == "gangealing_fast"
        return func(*args, **(kwargs or {}))


def test_on_the_references_alone_no_kernel_runs_and_the_losses_agree(folder):
    losses = {}
    try:
        for kind in ("fused", "reference"):
            config = train_config(folder, ops=kind, out=folder / kind, steps=2, precision="float32")
            with _Kernels() as kernels:
                run(config)
            assert (kernels.count == 0) is (kind == "reference")
            losses[kind] = [line["loss"] for line in read_json_lines(config.out / "log.jsonl")]
    finally:
        ops.use("fused")
    assert losses["fused"] == pytest.approx(losses["reference"], rel=1e-4)


def test_stopped_and_resumed_equals_uninterrupted(folder, monkeypatch):
    config = train_config(folder, snapshot=25, steps=30)  # ticks of 2 steps, which do not divide 25
    run(dataclasses.replace(config, out=folder / "whole"))
    original = step_module.AlignmentStep.step

    def interrupted(self, index):
        if index == 27:
            raise KeyboardInterrupt
        return original(self, index)

    monkeypatch.setattr(step_module.AlignmentStep, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(config)
    monkeypatch.undo()
    run(config)
    whole, resumed = (checkpoint.load(folder / name / "checkpoint.pt") for name in ("whole", "run"))
    assert_identical(whole, resumed)
    assert without_time(folder / "whole" / "log.jsonl") == without_time(folder / "run" / "log.jsonl")


@pytest.mark.slow
def test_killed_at_twenty_random_moments_equals_uninterrupted(folder):
    changes = {"steps": 150, "snapshot": 2, "transforms": "similarity"}
    run(train_config(folder, out=folder / "whole", **changes))
    script = [sys.executable, str(Path(__file__).parent / "runs.py"), "train", str(folder), "20", repr(changes)]
    result = subprocess.run(script, capture_output=True, text=True, timeout=1500)
    assert result.returncode == 0, result.stderr[-2000:]
    assert int(result.stdout.rsplit("cut short:", 1)[1]) >= 15, "the run ended before it could be killed often enough"
    whole, resumed = (checkpoint.load(folder / name / "checkpoint.pt") for name in ("whole", "run"))
    assert_identical(whole, resumed)
    assert without_time(folder / "whole" / "log.jsonl") == without_time(folder / "run" / "log.jsonl")


def test_accumulated_gradients_equal_those_of_one_pass(folder):
    """A sample is the same whatever the pass it is in, and so are the loss and the gradients of all."""
    results = []
    for micro in (4, 2, 3):
        torch.manual_seed(0)
        config = train_config(folder, micro_batch=micro, transforms="similarity", precision="float32")
        trainer = build(config, Group(torch.device("cpu")))
        statistics = trainer.step(0)
        results.append((statistics["loss"], [p.grad.clone() for p in trainer.transformer.parameters() if p.grad is not None]))
    assert len(results[0][1]) > 10
    for loss, gradients in results[1:]:
        assert loss == pytest.approx(results[0][0], rel=1e-5)
        for a, b in zip(gradients, results[0][1], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_state(folder, monkeypatch):
    config = train_config(folder)
    original = step_module.AlignmentStep.loss

    def poisoned(self, numbers, psi):
        parts, assignment = original(self, numbers, psi)
        return parts._replace(total=parts.total * float("nan")) if psi < 0.5 else parts, assignment

    monkeypatch.setattr(step_module.AlignmentStep, "loss", poisoned)
    with pytest.raises(UserError, match="not finite|is nan"):
        run(config)
    saved = checkpoint.load(config.out / "checkpoint.pt")
    assert saved["step"] > 0
    assert all(torch.isfinite(value).all() for value in saved["transformer"].values())


def test_float16_runs_and_resumes(folder, monkeypatch):
    monkeypatch.setattr(precision, "_convolves_in_float16", lambda device: True)
    config = train_config(folder, precision="float16", steps=4, transforms="similarity")
    run(dataclasses.replace(config, out=folder / "whole"))
    original = step_module.AlignmentStep.step
    monkeypatch.setattr(step_module.AlignmentStep, "step", lambda self, index: original(self, index) if index < 3 else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(config)
    monkeypatch.setattr(step_module.AlignmentStep, "step", original)
    run(config)
    assert_identical(*(checkpoint.load(folder / name / "checkpoint.pt") for name in ("whole", "run")))
    monkeypatch.setattr(precision, "_convolves_in_float16", lambda device: False)
    with pytest.raises(UserError, match="use bfloat16 or float32"):
        run(dataclasses.replace(config, out=folder / "refused"))


def test_without_pictures_new_samples_show_what_was_learned(folder, capsys):
    config = train_config(folder, steps=2)
    run(config)
    assert "no --data: judged by new samples" in capsys.readouterr().out
    assert "Average of 8 new samples before" in (config.out / "report.html").read_text()
    assert (config.out / "average.png").exists()


def test_frozen_target_stays_at_the_mean(folder):
    config = train_config(folder, freeze_target=True, steps=2)
    run(config)
    assert not checkpoint.load(config.out / "checkpoint.pt")["target"]["coefficients"].any()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"flow_size": 64}, "32x32"),
        ({"inject": 9}, "8 latents"),
        ({"batch": 0}, "at least 1"),
        ({"generator": Path("missing.safetensors")}, "missing.safetensors"),
        ({"data": Path("missing")}, "missing"),
        ({"digit": (9,)}, "class 9"),
        ({"flow_size": 16, "transforms": "flow"}, "at least 32"),
        ({"device": "cuda:7"}, "not available"),
        ({"device": "cpu", "cuda_graphs": True}, "CUDA device"),
        ({"perceptual": "lpips", "perceptual_weights": Path("nowhere.pth")}, "nowhere.pth"),
    ],
)
def test_mistakes_are_one_sentence_and_leave_no_run(folder, changes, words):
    config = train_config(folder, **changes)
    with pytest.raises(UserError, match=words):
        run(config)
    assert not (config.out / "checkpoint.pt").exists()


def test_a_preset_without_its_generator_says_how_to_get_one(tmp_path):
    from gangealing_fast.alignment.config import ASSETS

    config = train_config(tmp_path, generator=ASSETS / "horses" / "generator.safetensors")
    with pytest.raises(UserError, match="--preset horses --data"):
        run(config)


def test_results_folder_of_another_run_is_refused(folder):
    config = train_config(folder, steps=1)
    run(config)
    with pytest.raises(UserError, match="batch: 4 there, 5 now"):
        run(dataclasses.replace(config, batch=5))
    (folder / "other").mkdir()
    (folder / "other" / "letter.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        run(dataclasses.replace(config, out=folder / "other"))
    described = json.loads((config.out / "config.json").read_text())
    (config.out / "config.json").write_text(json.dumps(described | {"command": "pretrain"}))
    with pytest.raises(UserError, match="run of pretrain"):
        run(config)


def test_corrupt_checkpoint_falls_back_to_the_one_before(folder, capsys):
    config = train_config(folder, steps=6)
    run(config)
    newest = config.out / "checkpoint.pt"
    newest.write_bytes(newest.read_bytes()[:1000])
    run(config)
    assert "going on from checkpoint.previous.pt" in capsys.readouterr().out
    assert checkpoint.load(newest)["step"] == 6


def test_a_file_that_is_no_generator_is_refused(folder):
    (folder / "generator.safetensors").write_bytes(b"not a generator")
    with pytest.raises(UserError, match="generator.safetensors"):
        run(train_config(folder))


def test_a_similarity_that_reads_a_point_is_not_said_to_fold(folder):
    """Rounding turns a third of so small cells inside out."""
    matrix = similarity_matrix(torch.linspace(0, 1, 8), torch.full((8,), -17.0), torch.full((8,), 0.3), torch.full((8,), 0.2))
    grid = transform_points(matrix, identity_grid(32, 32)[None])
    assert inspect_warps(grid).folded > 0.02
    pictures = torch.rand(8, 3, 32, 32)
    samples = Samples(pictures, pictures, Alignment(pictures, grid, None, matrix))
    warnings = " ".join(health(samples, 1000, train_config(folder)))
    assert "shrink to a point" in warnings and "fold" not in warnings


def test_figures_of_pictures_that_are_all_alike_are_printed(capsys):
    """Their distance is 0 before, so that there is no ratio."""
    print_figures({"Distance": {"before": 0.0, "after": 0.0}, "Purity": {"ratio": 0.5}, "Spread": {"before": 2.0, "after": 1.0}})
    assert capsys.readouterr().out.splitlines() == [
        "  Distance: 0 -> 0 (ratio nan)",
        "  Purity: ratio 0.500",
        "  Spread: 2 -> 1 (ratio 0.500)",
    ]


@pytest.mark.parametrize("kind", ["black", "one colour", "all alike"])
@pytest.mark.parametrize("changes", [{}, {"clusters": 2, "flips": True}, {"keep_area": True, "pose_rotation": 30.0}], ids=str)
def test_pictures_that_are_all_alike_end_no_run(folder, kind, changes, capsys):
    """There is nothing to compare, and nothing to divide by."""
    from gangealing_fast.storage.files import save_picture

    torch.manual_seed(1)
    picture = {"black": -torch.ones(3, 32, 32), "one colour": torch.full((3, 32, 32), 0.5), "all alike": torch.rand(3, 32, 32)}[
        kind
    ]
    (folder / "pictures").mkdir()
    for index in range(3):
        save_picture(folder / "pictures" / f"{index}.png", picture)
    options = {"transforms": "similarity", "steps": 1, "batch": 2, "data": folder / "pictures"}
    config = train_config(folder, **(options | changes))
    evaluation = run(config)
    assert evaluation is not None and "Mean pairwise perceptual distance" in evaluation.figures
    assert (config.out / "report.html").exists() and (config.out / "aligner.safetensors").exists()
    assert "perceptual distance" in capsys.readouterr().out
