# SPDX-License-Identifier: Apache-2.0
"""Where K templates start: as samples that look different, as the generator makes them or once it is known how to align them.

The published start (arXiv 2112.05143, section 3.4) is K-means++ over the perceptual distance of samples. Where the objects'
pose varies more than their kind, that distance tells poses apart, and the templates come to be one kind of object in K
poses. `split_template` therefore compares samples that one template's transformer has aligned.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from gangealing_fast.geometry.warping import Warping
from gangealing_fast.geometry.warps import identity_grid
from gangealing_fast.metrics.perceptual import Distance
from gangealing_fast.models.generator import Generator, truncate
from gangealing_fast.models.latent_target import LatentTarget
from gangealing_fast.models.layers import resize_to
from gangealing_fast.models.spatial_transformer import SpatialTransformer


@runtime_checkable
class FeatureDistance(Protocol):
    """A perceptual distance whose features can be kept."""

    def features(self, x: Tensor) -> list[Tensor]: ...

    def distance(self, features_a: list[Tensor], features_b: list[Tensor]) -> Tensor: ...


@torch.no_grad()
def spread_centres(distance_to: Callable[[int], Tensor], count: int, clusters: int, *, trials: int = 0) -> list[int]:
    """K-means++ (Arthur and Vassilvitskii 2007) over `count` candidates: indices of `clusters` of them that lie far apart.

    distance_to(i): distances `[count]` of all candidates to candidate i; it is asked once for each one tried, and only the
    least distance so far is kept: memory does not grow with the clusters. The next centre is drawn with a probability
    proportional to the squared distance to the nearest centre; of `trials` draws (0: 2 + log K) that one is taken which leaves the
    least sum. Random numbers come from torch's default generator.
    """
    if not 1 <= clusters <= count:
        raise ValueError(f"clusters must lie between 1 and the {count} candidates, got {clusters}.")
    trials = trials or 2 + int(torch.tensor(float(clusters)).log().item())
    centres = [int(torch.randint(count, ()).item())]
    nearest = distance_to(centres[0]).double().cpu().square()
    while len(centres) < clusters:
        # Rounding may leave a chosen candidate a distance above zero to itself.
        weight = nearest.clone()
        weight[centres] = 0
        if weight.sum() <= 0:  # all candidates are alike: any other will do
            weight.fill_(1)
            weight[centres] = 0
        drawn = torch.multinomial(weight, min(trials, int((weight > 0).sum())), replacement=False).tolist()
        tried = [torch.minimum(nearest, distance_to(index).double().cpu().square()) for index in drawn]
        best = min(range(len(drawn)), key=lambda k: tried[k].sum().item())
        centres.append(drawn[best])
        nearest = tried[best]
    return centres


@torch.no_grad()
def central_members(distances: Tensor, centres: list[int]) -> list[int]:
    """K-medoids from `centres`, given all distances `[N, N]`: in turn, groups about the centres and the centres of the groups.

    Every candidate belongs to the nearest centre; the sum of these distances never rises, so that this ends.
    """
    while True:
        group = distances[:, centres].argmin(1)
        group[centres] = torch.arange(len(centres), device=group.device)  # equal candidates must not empty a group
        members = [(group == k).nonzero()[:, 0] for k in range(len(centres))]
        moved = [int(inside[distances[inside][:, inside].sum(0).argmin()]) for inside in members]
        if distances[:, moved].amin(1).sum() >= distances[:, centres].amin(1).sum():
            return centres
        centres = moved


@torch.no_grad()
def distance_matrix(perceptual: FeatureDistance, images: Tensor, others: Tensor, *, batch: int = 32) -> Tensor:
    """Distances of pictures `[N, 3, S, S]` to pictures `[M, 3, S, S]`, float32 `[N, M]`. Memory: the features of the latter, and
    those of a batch."""
    parts = [perceptual.features(chunk) for chunk in others.split(batch)]
    features = [torch.cat(taps) for taps in zip(*parts, strict=True)]
    rows = []
    for chunk in images.split(batch):
        taps = perceptual.features(chunk)
        columns = []
        for index in range(len(others)):
            one = [tap[index : index + 1].expand_as(seen) for tap, seen in zip(features, taps, strict=True)]
            columns.append(perceptual.distance(taps, one))
        rows.append(torch.stack(columns, 1))
    return torch.cat(rows).float()


def _draw(target: LatentTarget, generator: Generator, n: int, inject: int, truncation: float) -> tuple[Tensor, Tensor]:
    """Coefficients `[n, C]` of n samples in the target's directions, and the pictures `[n, 3, S, S]` that they make."""
    z = torch.randn(n, generator.latent_dim, device=target.lat_mean.device)
    found = (truncate(generator.map(z), truncation, target.lat_mean) - target.lat_mean) @ target.directions.T
    w = target.lat_mean + found @ target.directions
    mean = target.lat_mean.expand_as(w)
    return found, generator.synthesize([w] * inject + [mean] * (generator.n_latent - inject), noise="fixed")


@torch.no_grad()
def start_templates(
    target: LatentTarget,
    generator: Generator,
    perceptual: Distance,
    side: int,
    *,
    candidates: int = 256,
    inject: int,
    truncation: float = 1.0,
    batch: int = 32,
) -> Tensor:
    """Set the K targets' coefficients to K samples that look different, and return their pictures `[K, 3, side, side]`.

    Candidates are projected on the target's directions first, so that what is compared is what the targets can be; the layers
    after `inject` get the mean latent. Memory: the candidates' pictures and one batch of features.
    """
    parts = [_draw(target, generator, min(batch, candidates - start), inject, truncation) for start in range(0, candidates, batch)]
    coefficients = torch.cat([found for found, _ in parts])
    images = torch.cat([resize_to(pictures, side) for _, pictures in parts])

    def distance_to(index: int) -> Tensor:
        return torch.cat([perceptual(chunk, images[index : index + 1].expand_as(chunk)) for chunk in images.split(batch)])

    chosen = spread_centres(distance_to, candidates, target.heads)
    target.coefficients.copy_(coefficients[chosen])
    return images[chosen]


@torch.no_grad()
def split_template(
    target: LatentTarget,
    generator: Generator,
    transformer: SpatialTransformer,
    perceptual: FeatureDistance,
    *,
    candidates: int,
    inject: int,
    warping: Warping,
    truncation: float = 1.0,
    tries: int = 10,
    oversampling: int = 8,
    batch: int = 32,
) -> Tensor:
    """Set the K targets' coefficients to K samples that still look different when head 0 of `transformer` has aligned them.

    Medoids are found among `candidates` samples; of `tries` starts by K-means++, each refined, that one is taken that leaves the
    least sum of distances. But a template is a sample as it is, not as it was aligned, and a small one would be near to every
    picture. So each medoid stands for a group of `oversampling` times as many samples, and the group's template is the sample
    that the transformer moves least among the quarter that looks most like the medoid.
    Returns the templates' pictures `[K, 3, F, F]`, aligned.
    """
    base = identity_grid(transformer.flow_size, transformer.flow_size, device=target.lat_mean.device)[None]
    drawn, pictures, moves = [], [], []
    for start in range(0, oversampling * candidates, batch):
        found, images = _draw(target, generator, min(batch, oversampling * candidates - start), inject, truncation)
        first = torch.zeros(len(images), dtype=torch.long, device=images.device)
        aligned = transformer(images, warping=warping, assignment=first)
        drawn.append(found)
        pictures.append(aligned.image)
        moves.append((aligned.grid - base).square().sum(3).mean((1, 2)))
    images, move = torch.cat(pictures), torch.cat(moves)
    distances = distance_matrix(perceptual, images[:candidates], images[:candidates], batch=batch)
    options = [central_members(distances, spread_centres(distances.__getitem__, candidates, target.heads)) for _ in range(tries)]
    medoids = min(options, key=lambda centres: float(distances[:, centres].amin(1).sum()))
    nearness, group = distance_matrix(perceptual, images, images[medoids], batch=batch).min(1)
    group[medoids] = torch.arange(target.heads, device=group.device)
    chosen = []
    for k in range(target.heads):
        inside = (group == k).nonzero()[:, 0]
        alike = inside[nearness[inside].argsort()[: math.ceil(len(inside) / 4)]]
        chosen.append(int(alike[move[alike].argmin()]))
    target.coefficients.copy_(torch.cat(drawn)[chosen])
    return images[chosen]
