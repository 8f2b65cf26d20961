# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from support import assert_golden, golden, golden_state
from test_perceptual import lpips_state

from gangealing_fast.alignment.clustering import assign, cluster_distances, mirror_chosen, spread_centres, start_templates
from gangealing_fast.models import ClusterClassifier, Generator, LatentTarget, Lpips, SpatialTransformer


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
    perceptual.load_state_dict(lpips_state(case["lpips_state"]), strict=False)
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
    assert mirror_chosen(images, torch.tensor([False, True])).flatten().tolist() == [0, 1, 2, 5, 4, 3]


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
