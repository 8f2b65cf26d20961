# SPDX-License-Identifier: Apache-2.0
"""How well a transformer aligns held-out real pictures: figures before and after, and pictures to look at."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gangealing_fast import metrics
from gangealing_fast.alignment.clustering import align_assigned
from gangealing_fast.alignment.poses import POSE_NUMBERS, PoseRange, show
from gangealing_fast.congealing.entropy import congeal_stack
from gangealing_fast.data.digits import SIZE as DIGIT_SIZE
from gangealing_fast.data.digits import load_heldout_digits, object_box, random_similarity, warp_digits
from gangealing_fast.data.pictures import Pictures, to_float
from gangealing_fast.geometry.warping import Warping
from gangealing_fast.geometry.warps import invert
from gangealing_fast.metrics.perceptual import Distance
from gangealing_fast.models.spatial_transformer import Alignment, SpatialTransformer

Figures = dict[str, dict[str, Any]]

PAIRS = 1000
NO_POSES = PoseRange()


@dataclass
class Evaluation:
    """figures: see `report.Metrics`. before, after: the pictures `[N, 3, F, F]`. grid: `[N, F, F, 2]`. cluster: `[N]`, all 0 where
    there is but one. what: the pictures in words. posed: pictures in random poses before and after, where these were wanted."""

    figures: Figures
    before: Tensor
    after: Tensor
    grid: Tensor
    baseline: Figures
    cluster: Tensor
    what: str = "held-out pictures"
    posed: tuple[Tensor, Tensor] | None = None


def _look(distance: Distance, before: Tensor, after: Tensor) -> Figures:
    """The figures that need no known warp."""
    pairs = metrics.random_pairs(len(before), min(PAIRS, len(before) * (len(before) - 1) // 2), torch.Generator().manual_seed(0))
    apart = [float(metrics.mean_pairwise_distance(distance, images, pairs)) for images in (before, after)]
    sharp = [float(metrics.sharpness(metrics.average_image(images))) for images in (before, after)]
    return {
        "Mean pairwise perceptual distance": {"before": apart[0], "after": apart[1]},
        "Sharpness of the average": {"before": sharp[0], "after": sharp[1], "note": "higher is sharper"},
    }


def evaluate_pictures(
    transformer: SpatialTransformer,
    images: Tensor,
    distance: Distance,
    *,
    warping: Warping,
    poses: PoseRange = NO_POSES,
) -> Evaluation:
    """Figures on real pictures `[N, 3, H, W]` in [-1, 1] whose true warps nobody knows.

    With `poses` also on each of them in two random poses of that range, which are known: see `evaluate_digits`, with the middle
    half of the picture instead of a digit's box.
    """
    aligned = align_assigned(transformer, images, warping=warping)
    before = transformer.network_input(images)
    figures = _look(distance, before, aligned.image)
    posed = None
    if poses.wanted:
        size = images.shape[-1]
        numbers = torch.randn(2, len(images), POSE_NUMBERS, generator=torch.Generator().manual_seed(7))
        read = [poses.draw(half) for half in numbers]
        pictures = [show(images, pose, warping.padding_mode) for pose in read]
        found = [align_assigned(transformer, half, warping=warping) for half in pictures]
        warps = [invert(pose) for pose in read]
        middle = torch.tensor([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]])
        figures |= _warp_figures(warps, [_matrix_or_grid(record) for record in found], middle, size)
        posed = (transformer.network_input(pictures[0]), found[0].image)
    nothing = torch.zeros(len(images), dtype=torch.long)
    return Evaluation(figures, before, aligned.image, aligned.grid, {}, nothing, posed=posed)


def with_goals(figures: Figures, goals: Mapping[str, Any]) -> Figures:
    """The figures, each with its goal if it has one: the most its ratio may be, or a pair of lowest and highest.

    goals: by the figure's name up to a comma, so that "Pair error" is the goal of every cluster's.
    """
    return {
        name: figure | {"goal": goals[kind]} if (kind := name.partition(",")[0]) in goals else figure
        for name, figure in figures.items()
    }


def held_out(pictures: Pictures, count: int) -> Tensor:
    """The last `count` pictures as `[N, 3, S, S]` in [-1, 1]."""
    return to_float(pictures.batch(range(max(0, len(pictures) - count), len(pictures))))


def evaluate_digits(
    transformer: SpatialTransformer,
    classes: Sequence[int],
    distance: Distance,
    *,
    warping: Warping,
    baseline: bool = True,
) -> Evaluation:
    """Figures on the package's held-out digits of some classes, each under two known random warps.

    The pair error compares A1⁻¹W1 with A2⁻¹W2 for two warps of one picture; the set spread, A⁻¹W over different pictures.
    baseline: also what classical congealing reaches on the same pictures.
    """
    corners, warps, pictures, _ = _warped_pairs(classes)
    aligned = [align_assigned(transformer, images, warping=warping) for images in pictures]
    found = [_matrix_or_grid(record) for record in aligned]
    figures = _warp_figures(warps, found, corners) | _stack_figures(pictures[0], aligned[0].image)
    figures |= _look(distance, pictures[0], aligned[0].image)
    compared: Figures = {}
    if baseline:
        classical, _ = congeal_stack((torch.cat([image[:, :1] for image in pictures]) + 1) / 2)
        parts = list(classical.split(len(corners)))
        compared = _warp_figures(warps, parts, corners) | _stack_figures(pictures[0], show(pictures[0], parts[0], "border"))
    cluster = torch.zeros(len(corners), dtype=torch.long)
    return Evaluation(figures, pictures[0], aligned[0].image, aligned[0].grid, compared, cluster)


def _warped_pairs(classes: Sequence[int]) -> tuple[Tensor, list[Tensor], list[Tensor], Tensor]:
    """Corners of the object boxes, two warps of every held-out digit, the warped pictures, and the classes."""
    digits = load_heldout_digits(classes)
    generator = torch.Generator().manual_seed(7)
    warps = [random_similarity(len(digits.images), generator=generator) for _ in range(2)]
    return object_box(digits.images), warps, [warp_digits(digits.images, warp) for warp in warps], digits.labels


Decision = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Cluster and mirror of pictures `[N, 3, H, W]`, both `[N]`."""


def evaluate_clustered_pictures(
    transformer: SpatialTransformer, decide: Decision, images: Tensor, distance: Distance, *, warping: Warping
) -> Evaluation:
    """Figures on real pictures `[N, 3, H, W]`, each aligned by the head of its cluster."""
    cluster, mirrored = decide(images)
    aligned = align_assigned(transformer, images, cluster, mirrored, warping=warping)
    before = transformer.network_input(images)
    return Evaluation(_look(distance, before, aligned.image), before, aligned.image, aligned.grid, {}, cluster)


def evaluate_clustered_digits(
    transformer: SpatialTransformer, decide: Decision, classes: Sequence[int], distance: Distance, *, warping: Warping
) -> Evaluation:
    """Figures on the package's held-out digits of some classes, each under two known random warps aligned by its cluster's head.

    How pure the clusters are, and in each cluster the pair error over the pictures both of whose warps came into it.
    """
    corners, warps, pictures, labels = _warped_pairs(classes)
    decided = [decide(half) for half in pictures]
    aligned = [align_assigned(transformer, half, *found, warping=warping) for half, found in zip(pictures, decided, strict=True)]
    purity = metrics.cluster_purity(torch.cat([cluster for cluster, _ in decided]), labels.repeat(2))
    together = (decided[0][0] == decided[1][0]) & (decided[0][1] == decided[1][1])
    figures: Figures = {
        "Cluster purity": {"ratio": purity, "note": "of both warps of every picture"},
        "Pairs in one cluster": {"ratio": float(together.float().mean())},
    }
    for k in range(transformer.heads):
        chosen = together & (decided[0][0] == k)
        if not chosen.any():
            figures[f"Pair error, cluster {k}"] = {"ratio": float("nan"), "note": "no pair came into it"}
            continue
        found = [
            record.grid[chosen] if mirror[chosen].any() else _matrix_or_grid(record)[chosen]
            for record, (_, mirror) in zip(aligned, decided, strict=True)
        ]
        pair = metrics.pair_error_ratio(warps[0][chosen], found[0], warps[1][chosen], found[1], corners[chosen], DIGIT_SIZE)
        note = f"{int(chosen.sum())} pictures, most of them {int(labels[chosen].mode().values)}"
        figures[f"Pair error, cluster {k}"] = {**pair, "unit": "px", "note": note}
    figures |= _look(distance, pictures[0], aligned[0].image)
    return Evaluation(figures, pictures[0], aligned[0].image, aligned[0].grid, {}, decided[0][0])


def _matrix_or_grid(record: Alignment) -> Tensor:
    """The exact matrix where the warp is one; else the grid."""
    return record.grid if record.residual_flow is not None or record.matrix is None else record.matrix


def _warp_figures(warps: list[Tensor], found: list[Tensor], corners: Tensor, size: int = DIGIT_SIZE) -> Figures:
    pair = metrics.pair_error_ratio(warps[0], found[0], warps[1], found[1], corners, size)
    spread = metrics.set_spread_ratio(warps[0], found[0], corners, size)
    return {
        "Pair error": {**pair, "unit": "px", "note": "two warps of one picture"},
        "Set spread": {**spread, "unit": "px", "note": "over different pictures; holds their own slant"},
    }


def _stack_figures(before: Tensor, after: Tensor) -> Figures:
    entropy = [float(metrics.stack_entropy(images[:, :1])) for images in (before, after)]
    return {
        "Stack entropy": {"before": entropy[0], "after": entropy[1], "unit": "bit"},
        "Ink kept": {"ratio": float(metrics.ink_kept(before, after))},
    }
