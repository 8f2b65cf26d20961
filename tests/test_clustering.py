# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from runs import assert_identical, train_config, write_generator, write_pictures
from support import assert_golden, golden, golden_lpips_state, golden_state

from gangealing_fast import ops
from gangealing_fast.alignment import classifying
from gangealing_fast.alignment.building import build
from gangealing_fast.alignment.clustering import align_assigned, assign, cluster_distances
from gangealing_fast.alignment.config import ClassifyConfig
from gangealing_fast.alignment.step import AlignmentStep
from gangealing_fast.alignment.templates import central_members, distance_matrix, split_template, spread_centres, start_templates
from gangealing_fast.alignment.trainer import run
from gangealing_fast.applications.aligner import Aligner
from gangealing_fast.geometry.warping import Warping
from gangealing_fast.geometry.warps import mirror_pictures
from gangealing_fast.metrics import cluster_purity
from gangealing_fast.models import ClusterClassifier, Generator, LatentTarget, Lpips, SpatialTransformer
from gangealing_fast.runtime.distributed import Group
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.storage import checkpoint
from gangealing_fast.storage.files import read_json_lines


def test_golden_classifier():
    settings, arrays = golden("stn_clusters")
    classifier = ClusterClassifier(64, 3, flips=True)
    classifier.load_state_dict(golden_state(settings["classifier_state"]))
    with torch.no_grad():
        assert_golden(classifier(arrays["img"]), arrays["logits"], what="logits")


def test_golden_assignment():
    _, arrays = golden("cluster_assignment")
    case, _ = golden("training_step")  # the same generator and the same distance
    generator = Generator(64, 512, 2).requires_grad_(False)
    generator.load_state_dict(golden_state(case["generator_state"]), strict=False)
    perceptual = Lpips(pretrained=False)
    perceptual.load_state_dict(golden_lpips_state(case["lpips_state"]), strict=False)
    transformer = SpatialTransformer(flow_size=64, channel_multiplier=0.5, heads=2).requires_grad_(False)
    transformer.load_state_dict(golden_state({key: list(value.shape) for key, value in transformer.state_dict().items()}))
    target = LatentTarget(torch.zeros(2, 512), torch.zeros(512), heads=2)
    target.load_state_dict(golden_state({"coefficients": [2, 2], "directions": [2, 512], "lat_mean": [1, 512]}))
    with torch.no_grad():
        w = generator.map(arrays["z"])
        targets = generator.synthesize(target.mix_layers(w, 0.4, 4, generator.n_latent))
        distances = cluster_distances(transformer, perceptual, generator.synthesize(w), targets, flips=True)
    assert_golden(distances, arrays["distances"], what="distances")
    found = assign(distances, 2)
    assert_golden(found.distance, arrays["value"], what="value")
    assert torch.equal(found.cluster + 2 * found.mirrored, arrays["assignment"])


def test_classes_are_numbered_cluster_fastest():
    found = assign(torch.tensor([[3.0, 2.0, 1.0, 4.0], [0.0, 1.0, 2.0, 3.0]]), 2)
    assert found.cluster.tolist() == [0, 0] and found.mirrored.tolist() == [True, False]
    with pytest.raises(ValueError, match=r"\[N, 3\] or \[N, 6\]"):
        assign(torch.zeros(2, 4), 3)
    images = torch.arange(6.0).reshape(2, 1, 1, 3)
    assert mirror_pictures(images, torch.tensor([False, True])).flatten().tolist() == [0, 1, 2, 5, 4, 3]


def test_centres_lie_in_different_groups():
    """Four tight groups far apart: one centre in each, whatever the seed."""
    groups = torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0], [9.0, 9.0]]).repeat_interleave(10, 0)
    points = groups + 0.1 * torch.randn(40, 2)
    for seed in range(20):
        torch.manual_seed(seed)
        centres = spread_centres(lambda i: (points - points[i]).norm(dim=1), 40, 4)
        assert sorted(c // 10 for c in centres) == [0, 1, 2, 3]


def test_centres_of_candidates_that_are_all_alike():
    centres = spread_centres(lambda _: torch.zeros(5), 5, 5)
    assert sorted(centres) == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="between 1 and the 3 candidates"):
        spread_centres(lambda _: torch.zeros(3), 3, 4)


def test_templates_start_as_samples_that_differ():
    generator = Generator(16, 8, 1, channel_base=64, max_channels=8).eval().requires_grad_(False)
    target = LatentTarget(torch.eye(8)[:4], torch.zeros(8), heads=3)
    pictures = start_templates(
        target, generator, lambda a, b: (a - b).square().mean((1, 2, 3)), 8, candidates=24, inject=4, batch=10
    )
    assert pictures.shape == (3, 3, 8, 8)
    assert torch.pdist(target.coefficients.detach()).min() > 0.1


def test_medoids_improve_a_bad_start():
    """Both centres begin in one group; a far outlier draws no centre away from its group."""
    points = torch.cat([torch.linspace(0, 1, 11), torch.linspace(5, 6, 11), torch.tensor([7.5])])
    distances = (points[:, None] - points).abs()
    assert sorted(central_members(distances, [0, 1])) == [5, 16]
    alike = central_members(torch.zeros(4, 4), [2, 3])
    assert sorted(alike) == [2, 3]


class _PixelDistance:
    """The mean squared difference, with pictures for features."""

    def features(self, x):
        return [x]

    def distance(self, features_a, features_b):
        return (features_a[0] - features_b[0]).square().mean((1, 2, 3))


def test_the_distance_matrix_is_that_of_all_pairs():
    images, others = torch.rand(7, 3, 4, 4), torch.rand(5, 3, 4, 4)
    expected = (images[:, None] - others).square().mean((2, 3, 4))
    torch.testing.assert_close(distance_matrix(_PixelDistance(), images, others, batch=3), expected)


def test_templates_are_split_among_aligned_samples():
    generator = Generator(16, 8, 1, channel_base=64, max_channels=8).eval().requires_grad_(False)
    target = LatentTarget(torch.eye(8)[:4], torch.zeros(8), heads=3)
    transformer = SpatialTransformer(("similarity",), 16, channel_base=64, max_channels=8, heads=3).requires_grad_(False)
    transformer.stns[0].warp_head.linear.bias[1] = math.inf  # head 1's rotation: no other head may be asked
    transformer.stns[0].warp_head.linear.bias[3] = 0.3  # head 0's scale
    options = {"candidates": 12, "inject": 4, "warping": Warping(), "batch": 10}
    aligned = split_template(target, generator, transformer, _PixelDistance(), **options)
    assert torch.pdist(target.coefficients.detach()).min() > 0.1
    w = target.target().detach()
    pictures = generator.synthesize([w] * 4 + [torch.zeros(3, 8)] * (generator.n_latent - 4), noise="fixed")
    first = torch.zeros(3, dtype=torch.long)
    torch.testing.assert_close(aligned, transformer(pictures, assignment=first).image)


def test_every_head_starts_as_the_first():
    transformer = SpatialTransformer(("similarity", "flow"), 32, channel_base=64, max_channels=8, heads=3).requires_grad_(False)
    for stage in transformer.stns:
        for parameter in stage.warp_head.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    images = torch.rand(2, 3, 32, 32)
    before = transformer(images, assignment=torch.zeros(2, dtype=torch.long)).grid
    beside = {}
    transformer.copy_first_head(lambda parameter: [beside.setdefault(parameter, parameter.clone().mul_(2))])
    for head in range(3):
        assert torch.equal(transformer(images, assignment=torch.full((2,), head)).grid, before)
    for parameter, doubled in beside.items():
        assert torch.equal(doubled, 2 * parameter)
    assert len(beside) == 6


def test_a_classifier_starts_from_the_similaritys_trunk():
    transformer = SpatialTransformer(("similarity", "flow"), 32, channel_base=64, max_channels=8, heads=3)
    classifier = ClusterClassifier.like(transformer, flips=True)
    images = torch.rand(2, 3, 64, 64)
    assert classifier(images).shape == (2, 6)
    expected = transformer.similarity.final_conv(transformer.similarity.convs(transformer.network_input(images)))
    assert torch.equal(classifier.features(transformer.network_input(images)), expected)
    rebuilt = ClusterClassifier(**classifier.config())
    rebuilt.load_state_dict(classifier.state_dict())
    cluster, mirrored = rebuilt.assign(images)
    assert torch.equal(cluster + 3 * mirrored, classifier(images).argmax(1))
    assert classifier(torch.rand(1, 3, 40, 50)).shape == (1, 6)
    with pytest.raises(ValueError, match=r"\[N, 3, H, W\]"):
        classifier(torch.rand(1, 1, 32, 32))
    with pytest.raises(ValueError, match="power of two"):
        ClusterClassifier(24)


# ---- training


@pytest.fixture
def folder(tmp_path):
    write_generator(tmp_path / "generator.safetensors")
    write_pictures(tmp_path / "pictures")
    return tmp_path


@pytest.mark.parametrize(("clusters", "flips"), [(3, False), (1, True), (2, True)])
def test_the_gradient_is_that_of_the_least_distance(folder, clusters, flips):
    """Only the chosen class is computed with gradients; the result is that of the minimum over all classes."""
    trainer = build(train_config(folder, clusters=clusters, flips=flips, precision="float32"), Group(torch.device("cpu")))
    for head in trainer.transformer.stns:
        for parameter in head.warp_head.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
    psi, n = 0.3, 5
    numbers = trainer.draw(0, range(n))
    loss, _ = trainer.loss(numbers, psi)
    loss.total.backward()
    found = [p.grad.clone() for p in (*trainer.transformer.parameters(), trainer.target.coefficients)]
    trainer.transformer.zero_grad()
    trainer.target.zero_grad()

    generator = trainer.generator
    z, own_noise, noise, _ = trainer._draws(numbers)
    with torch.no_grad():
        w = generator.map(z)
        unaligned = generator.synthesize(w, own_noise)
    targets = generator.synthesize(trainer.target.mix_layers(w, psi, trainer.targets.inject, generator.n_latent), noise)
    rows, terms = [], []
    for images in (unaligned, unaligned.flip(3)) if flips else (unaligned,):
        aligned = trainer.transformer(images, warping=trainer.warping)
        rows.append(trainer.perceptual(aligned.image, targets).reshape(n, clusters))
        tv, identity = ops.flow_regularizer(aligned.residual_flow)
        terms.append((trainer.weights.tv * tv + trainer.weights.identity * identity).reshape(n, clusters))
    distances, terms = torch.cat(rows, 1), torch.cat(terms, 1)
    best = distances.argmin(1, keepdim=True)
    (distances.gather(1, best) + terms.gather(1, best)).mean().backward()
    expected = [p.grad for p in (*trainer.transformer.parameters(), trainer.target.coefficients)]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5 * float(b.abs().max() + 1))


def test_clusters_are_trained_classified_and_used(folder, capsys):
    config = train_config(folder, clusters=2, flips=True, data=folder / "pictures", steps=4)
    run(config)
    lines = read_json_lines(config.out / "log.jsonl")
    assert all(abs(line["cluster_0"] + line["cluster_1"] - 1) < 1e-6 for line in lines)
    assert "classify --checkpoint" in (config.out / "report.html").read_text()
    images = torch.rand(5, 3, 32, 32) * 2 - 1
    with pytest.raises(UserError, match="2 clusters but no classifier"):
        Aligner.load(config.out).align(images)
    options = ClassifyConfig(config.out, folder / "classified", flips=True, steps=6, batch=4, snapshot=2, threads=1)
    classifying.run(options)
    aligner = Aligner.load(folder / "classified")
    cluster, mirrored = aligner.assign(images)
    record = aligner.warp(images)
    for k in range(5):
        seen = images[k : k + 1].flip(3) if mirrored[k] else images[k : k + 1]
        alone = aligner.transformer(seen, assignment=cluster[k : k + 1], warping=aligner.warping)
        torch.testing.assert_close(record.image[k], alone.image[0])
    assert "perceptual distance" in capsys.readouterr().out
    assert (folder / "classified" / "report.html").exists()


def test_one_template_first_then_split_and_resumed(folder, monkeypatch):
    """Before the split only head 0 and no target learns; stopped just before or after it, a run ends the same."""
    options = {"clusters": 2, "single_steps": 2, "anneal_psi": 1, "steps": 4, "snapshot": 1, "cluster_candidates": 4}
    config = train_config(folder, **options)
    with pytest.raises(UserError, match="--single-steps needs"):
        build(train_config(folder, **options | {"single_steps": 4}), Group(torch.device("cpu")))
    run(dataclasses.replace(config, out=folder / "whole"))
    lines = read_json_lines(folder / "whole" / "log.jsonl")
    assert [line["cluster_1"] for line in lines[:2]] == [0, 0]
    for steps_done in (2, 3):
        original, calls = AlignmentStep.step, iter(range(100))

        def interrupted(self, index, original=original, calls=calls, steps_done=steps_done):
            if next(calls) == steps_done:
                raise KeyboardInterrupt
            return original(self, index)

        stopped = dataclasses.replace(config, out=folder / f"stopped{steps_done}")
        monkeypatch.setattr(AlignmentStep, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(stopped)
        monkeypatch.undo()
        if steps_done == 2:
            saved = checkpoint.load(stopped.out / "checkpoint.pt")
            assert not saved["target"]["coefficients"].any()
            weight = saved["transformer"]["stns.0.warp_head.linear.weight"].unflatten(0, (4, 2))
            assert weight[:, 0].any() and not weight[:, 1].any()
        run(stopped)
        assert_identical(*(checkpoint.load(out / "checkpoint.pt") for out in (folder / "whole", stopped.out)))


def test_classify_stopped_and_resumed_equals_uninterrupted(folder, monkeypatch):
    config = train_config(folder, clusters=2, steps=2)
    run(config)
    options = ClassifyConfig(config.out, folder / "run2", steps=6, batch=4, snapshot=2, threads=1)
    classifying.run(dataclasses.replace(options, out=folder / "whole"))
    original, calls = classifying.Teacher.lesson, iter(range(100))

    def interrupted(self, n):
        if next(calls) == 3:
            raise KeyboardInterrupt
        return original(self, n)

    monkeypatch.setattr(classifying.Teacher, "lesson", interrupted)
    with pytest.raises(KeyboardInterrupt):
        classifying.run(options)
    monkeypatch.undo()
    classifying.run(options)
    assert_identical(*(checkpoint.load(folder / name / "checkpoint.pt") for name in ("whole", "run2")))


def test_nothing_to_classify(folder):
    config = train_config(folder, steps=2)
    run(config)
    with pytest.raises(UserError, match="one cluster"):
        classifying.run(ClassifyConfig(config.out, folder / "classified"))
    with pytest.raises(UserError, match="no aligner"):
        classifying.run(ClassifyConfig(folder / "generator.safetensors", folder / "classified"))


def test_clusters_of_digits_are_measured(folder):
    config = train_config(folder, clusters=2, digit=(3, 7), transforms="similarity", steps=2, snapshot=2, cluster_candidates=4)
    run(config)
    page = (config.out / "report.html").read_text()
    assert "Cluster purity" in page and "Pair error, cluster 1" in page


def test_purity():
    clusters, labels = torch.tensor([0, 0, 0, 2, 2]), torch.tensor([3, 3, 7, 7, 7])
    assert cluster_purity(clusters, labels) == 0.8
    assert cluster_purity(labels, labels) == 1.0
    with pytest.raises(ValueError, match="1 or more"):
        cluster_purity(clusters[:0], labels[:0])


def test_mirrored_pictures_are_read_from_the_original():
    transformer = SpatialTransformer(("similarity",), 16, channel_base=64, max_channels=8, heads=2)
    torch.nn.init.normal_(transformer.similarity.warp_head.linear.weight, std=0.1)
    images = torch.rand(3, 3, 16, 16)
    cluster, mirrored = torch.tensor([0, 1, 1]), torch.tensor([True, False, True])
    with torch.no_grad():
        record = align_assigned(transformer, images, cluster, mirrored, batch=2)
    again = ops.mipmap_warp(images, record.grid)
    assert torch.allclose(again, record.image, atol=2e-3)
