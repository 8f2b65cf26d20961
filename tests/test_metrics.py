# SPDX-License-Identifier: Apache-2.0
"""Metrics against brute force, closed forms and hand-made failures."""

from __future__ import annotations

import math

import pytest
import torch

from gangealing_fast import metrics
from gangealing_fast.geometry.warps import compose, identity_grid, identity_matrix, similarity_matrix, transform_points


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def similarity(count: int, seed: int = 0) -> torch.Tensor:
    """Random similarity matrices [N, 2, 3] in float64."""
    rotation, scale, x, y = (torch.rand(4, count, generator=generator(seed), dtype=torch.float64) - 0.5).unbind(0)
    return similarity_matrix(rotation, scale, x * 0.4, y * 0.4)


CORNERS = torch.tensor([[-0.5, -0.6], [0.5, -0.6], [0.5, 0.6], [-0.5, 0.6]], dtype=torch.float64)


def grid_of(matrix: torch.Tensor, height: int, width: int) -> torch.Tensor:
    return transform_points(matrix, identity_grid(height, width, dtype=matrix.dtype)[None])


def test_stack_entropy_brute_force() -> None:
    images = torch.rand(7, 3, 5, 4, generator=generator()) * 2 - 1
    expected = 0.0
    for y in range(5):
        for x in range(4):
            share = sum(float(images[i, :, y, x].mean()) > 0 for i in range(7)) / 7
            expected += sum(-p * math.log2(p) for p in (share, 1 - share) if p > 0) / 20
    assert float(metrics.stack_entropy(images)) == pytest.approx(expected, abs=1e-12)
    assert float(metrics.stack_entropy(images.mean(1))) == pytest.approx(expected, abs=1e-12)


def test_stack_entropy_extremes() -> None:
    same = (torch.rand(1, 1, 6, 6, generator=generator()) * 2 - 1).repeat(5, 1, 1, 1)
    assert float(metrics.stack_entropy(same)) == 0
    halves = torch.cat([-torch.ones(2, 1, 3, 3), torch.ones(2, 1, 3, 3)])
    assert float(metrics.stack_entropy(halves)) == pytest.approx(1)
    with pytest.raises(ValueError, match="non-empty"):
        metrics.stack_entropy(torch.zeros(0, 1, 3, 3))


def test_ink_kept() -> None:
    before = torch.full((4, 3, 8, 8), -1.0)
    before[:, :, 2:6, 2:6] = 1
    after = torch.full((4, 1, 8, 8), -1.0)
    after[:, :, 2:4, 2:6] = 1
    assert float(metrics.ink_kept(before, before)) == 1
    assert float(metrics.ink_kept(before, after)) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="no ink"):
        metrics.ink_kept(torch.full((1, 1, 4, 4), -1.0), before)


def test_pair_error_brute_force() -> None:
    a1, w1, a2, w2 = (similarity(4, seed) for seed in range(4))
    total = 0.0
    for i in range(4):
        for corner in CORNERS:
            ends = []
            for known, warp in ((a1[i], w1[i]), (a2[i], w2[i])):
                read = warp[:, :2] @ corner + warp[:, 2]
                ends.append(torch.linalg.solve(known[:, :2], read - known[:, 2]) * torch.tensor([40 / 2, 30 / 2]))
            total += float((ends[0] - ends[1]).norm()) / 16
    assert float(metrics.pair_error(a1, w1, a2, w2, CORNERS, (30, 40))) == pytest.approx(total, rel=1e-9)
    grids = grid_of(w1, 32, 32), grid_of(w2, 32, 32)
    assert float(metrics.pair_error(a1, grids[0], a2, grids[1], CORNERS, (30, 40))) == pytest.approx(total, rel=1e-9)


def test_perfect_alignment_scores_zero() -> None:
    a1, a2, template = similarity(8, 1), similarity(8, 2), similarity(1, 3).repeat(8, 1, 1)
    w1, w2 = compose(a1, template), compose(a2, template)
    scores = metrics.pair_error_ratio(a1, w1, a2, w2, CORNERS, 32)
    assert scores["after"] < 1e-6 and scores["ratio"] < 1e-6 and scores["before"] > 1
    scores = metrics.set_spread_ratio(a1, w1, CORNERS, 32)
    assert scores["after"] < 1e-6 and scores["before"] > 1
    assert metrics.set_spread_ratio(a1.float(), identity_matrix(8), CORNERS, 32)["ratio"] == 1


def test_set_spread_brute_force() -> None:
    known, warp = similarity(5, 4), similarity(5, 5)
    points = metrics.object_frame_points(known, warp, CORNERS, 32)
    total = sum(float((points[i, c] - points[:, c].mean(0)).square().sum()) for i in range(5) for c in range(4))
    assert float(metrics.set_spread(known, warp, CORNERS, 32)) == pytest.approx(math.sqrt(total / 20))


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(ValueError, match=r"\[N, 2, 3\]"):
        metrics.pair_error(torch.eye(3)[None], *[similarity(1)] * 3, CORNERS, 32)
    with pytest.raises(ValueError, match="do not match"):
        metrics.set_spread(similarity(3), similarity(2), CORNERS, 32)
    with pytest.raises(ValueError, match="points"):
        metrics.set_spread(similarity(3), similarity(3), torch.zeros(4, 3), 32)


def mean_square(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a - b).square().mean((1, 2, 3))


def test_mean_pairwise_distance() -> None:
    images = torch.rand(6, 3, 4, 4, generator=generator())
    pairs = metrics.random_pairs(6, 300, generator())
    assert bool((pairs[:, 0] != pairs[:, 1]).all()) and sorted(pairs.unique().tolist()) == list(range(6))
    expected = sum(float((images[i] - images[j]).double().square().mean()) for i, j in pairs.tolist()) / 300
    drawn = metrics.mean_pairwise_distance(mean_square, images, 300, generator(), batch=7)
    assert float(drawn) == pytest.approx(expected, rel=1e-5)
    assert float(metrics.mean_pairwise_distance(mean_square, images, pairs)) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="at least two"):
        metrics.mean_pairwise_distance(mean_square, images[:1])


def test_sharpness_of_an_edge_and_of_its_blur() -> None:
    ramp = torch.linspace(-1, 1, 9).expand(1, 9, 9)
    assert float(metrics.sharpness(ramp)) == pytest.approx(1 / 8)
    assert float(metrics.laplacian_variance(ramp)) == pytest.approx(0, abs=1e-12)
    noise = torch.rand(3, 16, 16, generator=generator()) * 2 - 1
    blurred = torch.nn.functional.avg_pool2d(noise[None], 3, 1, 1)
    assert metrics.sharpness(noise) > metrics.sharpness(blurred)
    assert metrics.laplacian_variance(noise) > metrics.laplacian_variance(blurred)
    assert float(metrics.sharpness(metrics.average_image(torch.ones(4, 3, 8, 8)))) == 0


def test_running_statistics() -> None:
    features = torch.randn(50, 6, generator=generator(), dtype=torch.float64) * 3 + 100
    statistics = metrics.FeatureStatistics()
    for piece in features.split([1, 20, 0, 29]):
        statistics.update(piece)
    torch.testing.assert_close(statistics.mean, features.mean(0))
    torch.testing.assert_close(statistics.covariance, torch.cov(features.T))
    again = metrics.FeatureStatistics.from_state_dict(statistics.state_dict()).update(features)
    torch.testing.assert_close(again.covariance, torch.cov(features.repeat(2, 1).T))
    with pytest.raises(ValueError, match="width"):
        statistics.update(torch.zeros(2, 5))
    with pytest.raises(ValueError, match="finite"):
        statistics.update(torch.full((2, 6), math.nan))


def test_frechet_distance_closed_forms() -> None:
    a = torch.randn(400, 5, generator=generator(), dtype=torch.float64)
    assert float(metrics.frechet_distance(a, a)) == pytest.approx(0, abs=1e-9)
    assert float(metrics.frechet_distance(a, a + 2)) == pytest.approx(20, rel=1e-9)
    # Scaling by k scales the covariance by k²: d² = ‖(k-1)μ‖² + (k-1)² tr C.
    expected = (2 * a.mean(0)).square().sum() + 4 * torch.cov(a.T).trace()
    assert float(metrics.frechet_distance(a, 3 * a)) == pytest.approx(float(expected), rel=1e-9)


def test_frechet_distance_against_scipy() -> None:
    linalg = pytest.importorskip("scipy.linalg")
    a = torch.randn(60, 8, generator=generator(1), dtype=torch.float64)
    a = a @ torch.randn(8, 8, generator=generator(2), dtype=torch.float64)
    b = torch.randn(70, 8, generator=generator(3), dtype=torch.float64) + 1
    root = torch.as_tensor(linalg.sqrtm((torch.cov(a.T) @ torch.cov(b.T)).numpy()).real)
    traces = torch.cov(a.T).trace() + torch.cov(b.T).trace() - 2 * root.trace()
    expected = (a.mean(0) - b.mean(0)).square().sum() + traces
    assert float(metrics.frechet_distance(a, b)) == pytest.approx(float(expected), rel=1e-8)


def test_fid_of_batches_and_of_fewer_pictures_than_features() -> None:
    images, others = torch.rand(2, 12, 3, 8, 8, generator=generator()).unbind(0)
    embedding = torch.nn.Flatten()
    expected = float(metrics.frechet_distance(images.flatten(1), others.flatten(1)))
    assert float(metrics.fid(embedding, images, iter(others.split(5)), batch=5)) == pytest.approx(expected, rel=1e-6)
    known = metrics.gather_statistics(embedding, images)
    assert float(metrics.fid(embedding, known, others)) == pytest.approx(expected, rel=1e-6)
    assert metrics.gather_features(embedding, images, 5).shape == (12, 192)


def test_precision_recall() -> None:
    real = torch.randn(200, 4, generator=generator())
    assert metrics.precision_recall(real, real) == (1.0, 1.0)
    assert metrics.precision_recall(real, real + 100) == (0.0, 0.0)
    precision, recall = metrics.precision_recall(real, real[:20] * 0.1)
    assert precision > 0.8 > 0.3 > recall
    with pytest.raises(ValueError, match="more than 3"):
        metrics.precision_recall(real[:3], real)


def test_relative_areas() -> None:
    torch.testing.assert_close(metrics.relative_areas(identity_grid(5, 8)[None]), torch.ones(1, 4, 7))
    torch.testing.assert_close(
        metrics.relative_areas(identity_grid(5, 8)[None] * torch.tensor([-2.0, 3.0])), torch.full((1, 4, 7), -6.0)
    )


def test_healthy_warps_give_no_warning() -> None:
    grid = grid_of(similarity(6).float(), 16, 16)
    images = torch.rand(6, 3, 16, 16, generator=generator())
    health = metrics.inspect_warps(grid, torch.zeros(6, 16, 16, 2), images, images)
    assert health.warnings() == [] and health.folded == 0 and health.contrast == pytest.approx(1)
    mirrored = grid * torch.tensor([-1.0, 1.0])
    assert metrics.inspect_warps(mirrored).warnings() == []


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda g: g * 0.01, "shrink to a point"),
        (lambda g: g * 6, "shrinks away"),
        (lambda g: g + 2, "outside"),
        (lambda g: g[:1].repeat(6, 1, 1, 1), "one and the same warp"),
        (lambda g: identity_grid(16, 16).repeat(6, 1, 1, 1), "the identity"),
        (lambda g: g + torch.randn(g.shape, generator=generator()) * 0.3, "folds"),
        (lambda g: g * math.nan, "NaN"),
    ],
)
def test_degenerate_warps_are_named(change, word: str) -> None:
    grid = change(grid_of(similarity(6).float(), 16, 16))
    assert any(word in sentence for sentence in metrics.inspect_warps(grid).warnings())


def test_quiet_before_the_start_and_on_flat_pictures() -> None:
    grid = identity_grid(16, 16).repeat(4, 1, 1, 1)
    assert metrics.inspect_warps(grid).warnings(started=False) == []
    assert metrics.inspect_warps(grid[:1]).warnings() == []
    images = torch.rand(4, 3, 16, 16, generator=generator())
    flat = metrics.inspect_warps(grid, None, images, images * 0.01)
    assert any("flat" in sentence for sentence in flat.warnings(started=False))


def test_residual_folds_are_counted_on_the_flow() -> None:
    grid = grid_of(similarity(2).float(), 16, 16)
    flow = torch.zeros(2, 16, 16, 2)
    flow[1, :, 8:, 0] = -0.8
    assert metrics.inspect_warps(grid, flow).folded == pytest.approx(1 / 15)


def test_kernel_distance_by_brute_force() -> None:
    x, y = torch.randn(6, 4, dtype=torch.float64), torch.randn(6, 4, dtype=torch.float64) + 1
    kernel = lambda a, b: (float(a @ b) / 4 + 1) ** 3  # noqa: E731
    pairs = [(i, j) for i in range(6) for j in range(6)]
    within = sum(kernel(x[i], x[j]) + kernel(y[i], y[j]) for i, j in pairs if i != j) / 30
    across = sum(kernel(x[i], y[j]) for i, j in pairs) / 36
    assert abs(metrics.kernel_distance(x, y) - (within - 2 * across)) < 1e-9
    blocks = [metrics.kernel_distance(x[i : i + 3], y[i : i + 3]) for i in (0, 3)]
    assert abs(metrics.kernel_distance(x, y, block=3) - sum(blocks) / 2) < 1e-9
    with pytest.raises(ValueError, match="at least two"):
        metrics.kernel_distance(x[:1], y)


def test_diversity_by_brute_force() -> None:
    x = torch.randn(7, 3, dtype=torch.float64)
    distances = [float((x[i] - x[j]).norm()) for b in (0, 3) for i in range(b, b + 3) for j in range(b, b + 3) if i != j]
    assert abs(metrics.batch_diversity(x, batch=3) - sum(distances) / 12) < 1e-12
    assert metrics.batch_diversity(torch.ones(8, 3)) == 0
    with pytest.raises(ValueError, match="at least two"):
        metrics.batch_diversity(x[:1])
