# SPDX-License-Identifier: Apache-2.0
"""K templates for data with several modes: which of them suits a sample (arXiv 2112.05143, section 3.4).

Classes of a sample are numbered cluster fastest, mirror slowest: class c + K means that the mirrored sample belongs to cluster c.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gangealing_fast.geometry.warping import DEFAULT, Warping
from gangealing_fast.geometry.warps import mirror_grid, mirror_matrix, mirror_pictures
from gangealing_fast.metrics.perceptual import Distance
from gangealing_fast.models.spatial_transformer import Alignment, SpatialTransformer


class Assignment(NamedTuple):
    """cluster `[N]` int64, mirrored `[N]` bool, distance `[N]` of the chosen class."""

    cluster: Tensor
    mirrored: Tensor
    distance: Tensor


@torch.no_grad()
def cluster_distances(
    transformer: SpatialTransformer,
    perceptual: Distance,
    unaligned: Tensor,
    targets: Tensor,
    *,
    flips: bool = False,
    warping: Warping = DEFAULT,
) -> Tensor:
    """Perceptual distances of samples `[N, 3, S, S]`, aligned by each of K heads, to their K targets `[N * K, 3, F, F]`.

    Returns `[N, K]`, with flips `[N, 2K]` (the mirrored samples' after the others), cluster fastest.
    """
    rows = []
    for images in (unaligned, unaligned.flip(3)) if flips else (unaligned,):
        aligned = transformer(images, warping=warping).image
        rows.append(perceptual(aligned, targets).reshape(unaligned.shape[0], -1))
    return torch.cat(rows, 1)


def assign(distances: Tensor, clusters: int) -> Assignment:
    """The class of least distance for each row of `[N, K]` or `[N, 2K]`."""
    if distances.ndim != 2 or distances.shape[1] not in (clusters, 2 * clusters):
        raise ValueError(f"distances must be [N, {clusters}] or [N, {2 * clusters}], got {list(distances.shape)}.")
    distance, best = distances.min(1)
    return Assignment(best % clusters, best >= clusters, distance)


@torch.no_grad()
def assign_to_templates(
    transformer: SpatialTransformer,
    perceptual: Distance,
    images: Tensor,
    templates: Tensor,
    *,
    flips: bool = False,
    warping: Warping = DEFAULT,
    batch: int = 32,
) -> Assignment:
    """The cluster of real pictures `[N, 3, H, W]` by their distance to the K templates' own pictures `[K, 3, F, F]`.

    For want of a classifier: a template's picture looks like one sample, a real picture like another.
    """
    rows = [
        cluster_distances(transformer, perceptual, chunk, templates.repeat(len(chunk), 1, 1, 1), flips=flips, warping=warping)
        for chunk in images.split(batch)
    ]
    return assign(torch.cat(rows), len(templates))


@torch.no_grad()
def align_assigned(
    transformer: SpatialTransformer,
    images: Tensor,
    cluster: Tensor | None = None,
    mirrored: Tensor | None = None,
    *,
    warping: Warping = DEFAULT,
    output_resolution: int | None = None,
    alpha: float = 1.0,
    base_warp: Tensor | None = None,
    batch: int = 64,
) -> Alignment:
    """Align pictures `[N, 3, H, W]`, each by the head of its cluster `[N]`, those of `mirrored` `[N]` as their mirror images.

    base_warp: matrices `[N, 2, 3]` that were found before, of the pictures as given; see `SpatialTransformer`.
    In batches of bounded memory. The grid reads the pictures as given (a mirrored warp's x is negated); residual flow and matrix
    are those of the picture that the network saw.
    """
    if mirrored is not None:
        images = mirror_pictures(images, mirrored)
        base_warp = None if base_warp is None else mirror_matrix(base_warp, mirrored)
    parts = []
    for start in range(0, len(images), batch):
        chunk = slice(start, start + batch)
        head, base = (None if tensor is None else tensor[chunk] for tensor in (cluster, base_warp))
        parts.append(
            transformer(
                images[chunk],
                warping=warping,
                alpha=alpha,
                output_resolution=output_resolution,
                assignment=head,
                base_warp=base,
            )
        )
    record = Alignment(
        torch.cat([part.image for part in parts]),
        torch.cat([part.grid for part in parts]),
        _joined([part.residual_flow for part in parts]),
        _joined([part.matrix for part in parts]),
    )
    if mirrored is None:
        return record
    return record._replace(grid=mirror_grid(record.grid, mirrored))


def _joined(parts: list[Tensor | None]) -> Tensor | None:
    """All parts in one; None if there are none, as all batches come from one transformer."""
    there = [part for part in parts if part is not None]
    return torch.cat(there) if there else None
