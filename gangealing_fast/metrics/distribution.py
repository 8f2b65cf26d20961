# SPDX-License-Identifier: Apache-2.0
"""Distances between two sets of pictures in a feature space: Fréchet and kernel distance, precision, recall, diversity."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor


class FeatureStatistics:
    """Mean and covariance of feature vectors, gathered batch by batch in float64 (Chan, Golub, LeVeque 1979).

    `update` takes [B, D]; `mean` is [D] and `covariance` [D, D] with the unbiased divisor count - 1.
    `state_dict` / `from_state_dict` keep the statistics of a data set for later.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean: Tensor | None = None
        self._scatter: Tensor | None = None

    def update(self, features: Tensor) -> FeatureStatistics:
        """Add a batch [B, ...], flattened to [B, D]. Raises ValueError for another width or values not finite."""
        features = features.detach().flatten(1).to("cpu", torch.float64)
        if features.shape[0] == 0:
            return self
        if not bool(features.isfinite().all()):
            raise ValueError("features hold values that are not finite; check the pictures and the feature extractor")
        mean = features.mean(0)
        centred = features - mean
        scatter = centred.T @ centred
        if self.mean is None or self._scatter is None:
            self.count, self.mean, self._scatter = features.shape[0], mean, scatter
            return self
        if mean.shape != self.mean.shape:
            raise ValueError(f"features have width {mean.shape[0]}, those before had {self.mean.shape[0]}")
        total = self.count + features.shape[0]
        delta = mean - self.mean
        self._scatter = self._scatter + scatter + torch.outer(delta, delta) * (self.count * features.shape[0] / total)
        self.mean = self.mean + delta * (features.shape[0] / total)
        self.count = total
        return self

    @property
    def covariance(self) -> Tensor:
        """[D, D] float64. Raises ValueError before two vectors were seen."""
        if self.count < 2 or self._scatter is None:
            raise ValueError(f"a covariance needs at least two feature vectors, got {self.count}")
        return self._scatter / (self.count - 1)

    def state_dict(self) -> dict[str, Tensor]:
        """{"count", "mean", "covariance"}, ready to be stored."""
        covariance = self.covariance
        assert self.mean is not None
        return {"count": torch.tensor(self.count), "mean": self.mean, "covariance": covariance}

    @classmethod
    def from_state_dict(cls, state: dict[str, Tensor]) -> FeatureStatistics:
        """The statistics that `state_dict` described."""
        statistics = cls()
        statistics.count = int(state["count"])
        statistics.mean = state["mean"].to(torch.float64)
        statistics._scatter = state["covariance"].to(torch.float64) * (statistics.count - 1)
        return statistics


def frechet_distance(a: Tensor | FeatureStatistics, b: Tensor | FeatureStatistics) -> Tensor:
    """Squared Fréchet distance of the Gaussians fitted to two feature sets; float64 scalar >= 0.

    a, b: features [N, D] (N >= 2) or gathered `FeatureStatistics`.
    d² = ‖μa - μb‖² + tr Ca + tr Cb - 2 tr (Ca^½ Cb Ca^½)^½ (Dowson and Landau 1982; used on Inception features by
    Heusel et al. 2017). The roots come from symmetric eigen-decompositions, negative eigenvalues counting as 0.
    """
    first, second = (x if isinstance(x, FeatureStatistics) else FeatureStatistics().update(x) for x in (a, b))
    covariance_a, covariance_b = first.covariance, second.covariance
    assert first.mean is not None and second.mean is not None
    if first.mean.shape != second.mean.shape:
        raise ValueError(f"feature widths differ: {first.mean.shape[0]} and {second.mean.shape[0]}")
    values, vectors = torch.linalg.eigh(covariance_a)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ covariance_b @ root).clamp(min=0).sqrt().sum()
    distance = (first.mean - second.mean).square().sum() + covariance_a.trace() + covariance_b.trace() - 2 * cross
    return distance.clamp(min=0)


@torch.no_grad()
def gather_features(embedding: Callable[[Tensor], Tensor], batches: Iterable[Tensor] | Tensor, batch: int = 50) -> Tensor:
    """Features [N, D], on the CPU, of pictures given as batches [B, C, H, W] or as one tensor, which is cut up."""
    pieces = batches.split(batch) if isinstance(batches, Tensor) else batches
    features = [embedding(piece).flatten(1).cpu() for piece in pieces]
    if not features:
        raise ValueError("there are no pictures to take features from")
    return torch.cat(features)


@torch.no_grad()
def gather_statistics(
    embedding: Callable[[Tensor], Tensor], batches: Iterable[Tensor] | Tensor, batch: int = 50
) -> FeatureStatistics:
    """As `gather_features`, but keeping only mean and covariance."""
    statistics = FeatureStatistics()
    for piece in batches.split(batch) if isinstance(batches, Tensor) else batches:
        statistics.update(embedding(piece))
    return statistics


def fid(
    embedding: Callable[[Tensor], Tensor],
    images_a: Iterable[Tensor] | Tensor | FeatureStatistics,
    images_b: Iterable[Tensor] | Tensor | FeatureStatistics,
    batch: int = 50,
) -> Tensor:
    """Fréchet distance between two sets of pictures in the feature space of `embedding`.

    embedding: [B, C, H, W] in [-1, 1] → [B, ...]. Each set: one tensor, an iterable of batches, or statistics gathered
    before. Only with the Inception network of Heusel et al. are the figures comparable to published FIDs.
    """
    first, second = (
        x if isinstance(x, FeatureStatistics) else gather_statistics(embedding, x, batch) for x in (images_a, images_b)
    )
    return frechet_distance(first, second)


def kernel_distance(real: Tensor, fake: Tensor, block: int = 1000) -> float:
    """Squared maximum mean discrepancy (KID) of features `[N, D]` and `[M, D]` under the kernel (x · y / D + 1)³.

    Binkowski et al. 2018 (arXiv 1801.01401), section 3.1: the unbiased estimate, so that it may be negative and, unlike the Fréchet
    distance, does not depend on how many pictures there are; the mean over consecutive blocks of `block` rows of both. Raises
    ValueError for fewer than two rows.
    """
    count = min(real.shape[0], fake.shape[0])
    if count < 2:
        raise ValueError(f"a kernel distance needs at least two feature vectors of each set, got {count}")
    size = min(block, count)
    starts = range(0, count - size + 1, size)
    return sum(_mmd(real[start : start + size].double(), fake[start : start + size].double()) for start in starts) / len(starts)


def _mmd(x: Tensor, y: Tensor) -> float:
    n, width = x.shape
    within_x, within_y, across = (((a @ b.T) / width + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    pairs = n * (n - 1)
    within = (within_x.sum() - within_x.diagonal().sum() + within_y.sum() - within_y.diagonal().sum()) / pairs
    return float(within - 2 * across.mean())


def batch_diversity(features: Tensor, batch: int = 64) -> float:
    """Mean Euclidean distance between two different samples of one batch, over all pairs of all full batches of `[N, D]`.

    Compare it with that of real features: a generator that collapses has a lower one. Raises ValueError for fewer than two rows.
    """
    batch = min(batch, features.shape[0])
    if batch < 2:
        raise ValueError(f"diversity needs at least two feature vectors, got {features.shape[0]}")
    whole = features[: features.shape[0] // batch * batch].double().reshape(-1, batch, features.shape[1])
    distances = torch.cdist(whole, whole, compute_mode="donot_use_mm_for_euclid_dist")
    return float(distances.sum() / (whole.shape[0] * batch * (batch - 1)))


def precision_recall(real: Tensor, fake: Tensor, neighbours: int = 3) -> tuple[float, float]:
    """Precision (fakes inside the real manifold) and recall (reals inside the fake one), each in [0, 1].

    real: [N, D], fake: [M, D], both with more than `neighbours` rows. A manifold is the union of balls around its
    points out to their `neighbours`-th neighbour (Kynkäänniemi et al. 2019).
    """
    if min(real.shape[0], fake.shape[0]) <= neighbours:
        counts = f"{real.shape[0]} and {fake.shape[0]}"
        raise ValueError(f"both sets need more than {neighbours} feature vectors, got {counts}")
    real, fake = real.to(torch.float64), fake.to(torch.float64)
    return _share_inside(real, fake, neighbours), _share_inside(fake, real, neighbours)


def _share_inside(manifold: Tensor, points: Tensor, neighbours: int, block: int = 1024) -> float:
    exact = "donot_use_mm_for_euclid_dist"
    radii = torch.cat(
        [torch.cdist(some, manifold, compute_mode=exact).kthvalue(neighbours + 1, dim=1).values for some in manifold.split(block)]
    )
    inside = [(torch.cdist(some, manifold, compute_mode=exact) <= radii).any(1) for some in points.split(block)]
    return float(torch.cat(inside).to(torch.float64).mean())
