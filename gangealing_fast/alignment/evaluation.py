# SPDX-License-Identifier: Apache-2.0
"""How well a transformer aligns held-out real pictures: figures before and after, and pictures to look at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gangealing_fast import metrics
from gangealing_fast.congealing.similarity import congeal
from gangealing_fast.data.digits import SIZE as DIGIT_SIZE
from gangealing_fast.data.digits import load_heldout_digits, object_box, random_similarity, warp_digits
from gangealing_fast.data.pictures import Pictures, to_float
from gangealing_fast.metrics.alignment import transform_points
from gangealing_fast.models.spatial_transformer import Alignment, SpatialTransformer
from gangealing_fast.ops import mipmap_warp

Figures = dict[str, dict[str, Any]]
Distance = Callable[[Tensor, Tensor], Tensor]

# What the digits preset is held to: the most each ratio may be, after over before.
PAIR_ERROR_GOAL, SET_SPREAD_GOAL, ENTROPY_GOAL, INK_GOAL = 0.35, 0.60, 0.70, (0.9, 1.1)
PAIRS = 1000


@dataclass
class Evaluation:
    """figures: see `report.Metrics`. before, after: the pictures `[N, 3, F, F]`. grid: `[N, F, F, 2]`."""

    figures: Figures
    before: Tensor
    after: Tensor
    grid: Tensor
    baseline: Figures


@torch.no_grad()
def align_batches(
    transformer: SpatialTransformer, images: Tensor, *, padding_mode: str, iters: int = 1, batch: int = 64
) -> Alignment:
    """`transformer(images)` in batches; one record for all of `images` `[N, 3, H, W]`."""
    parts = [transformer(chunk, padding_mode=padding_mode, iters=iters) for chunk in images.split(batch)]
    joined = [None if values[0] is None else torch.cat(values) for values in zip(*parts, strict=True)]
    return Alignment(*joined)


def _look(distance: Distance, before: Tensor, after: Tensor) -> Figures:
    """The figures that need no known warp."""
    pairs = metrics.random_pairs(len(before), min(PAIRS, len(before) * (len(before) - 1) // 2), torch.Generator().manual_seed(0))
    apart = [float(metrics.mean_pairwise_distance(distance, images, pairs)) for images in (before, after)]
    sharp = [float(metrics.sharpness(metrics.average_image(images))) for images in (before, after)]
    return {
        "Mean pairwise perceptual distance": {"before": apart[0], "after": apart[1], "goal": 1.0},
        "Sharpness of the average": {"before": sharp[0], "after": sharp[1], "note": "higher is sharper"},
    }


def evaluate_pictures(
    transformer: SpatialTransformer, images: Tensor, distance: Distance, *, padding_mode: str, iters: int = 1
) -> Evaluation:
    """Figures on real pictures `[N, 3, H, W]` in [-1, 1] whose true warps nobody knows."""
    aligned = align_batches(transformer, images, padding_mode=padding_mode, iters=iters)
    before = transformer.network_input(images)
    return Evaluation(_look(distance, before, aligned.image), before, aligned.image, aligned.grid, {})


def held_out(pictures: Pictures, count: int) -> Tensor:
    """The last `count` pictures as `[N, 3, S, S]` in [-1, 1]."""
    return to_float(pictures.batch(range(max(0, len(pictures) - count), len(pictures))))


def evaluate_digits(
    transformer: SpatialTransformer,
    digit: int,
    distance: Distance,
    *,
    padding_mode: str,
    iters: int = 1,
    baseline: bool = True,
) -> Evaluation:
    """Figures on the package's held-out digits of one class, each under two known random warps.

    The pair error compares A1⁻¹W1 with A2⁻¹W2 for two warps of one picture; the set spread, A⁻¹W over different pictures.
    baseline: also what classical congealing reaches on the same pictures.
    """
    digits = load_heldout_digits(digit)
    corners = object_box(digits.images)
    generator = torch.Generator().manual_seed(7)
    warps = [random_similarity(len(corners), generator=generator) for _ in range(2)]
    pictures = [warp_digits(digits.images, warp) for warp in warps]
    aligned = [align_batches(transformer, images, padding_mode=padding_mode, iters=iters) for images in pictures]
    found = [_matrix_or_grid(record) for record in aligned]
    figures = _warp_figures(warps, found, corners) | _stack_figures(pictures[0], aligned[0].image)
    figures |= _look(distance, pictures[0], aligned[0].image)
    compared: Figures = {}
    if baseline:
        classical = congeal((torch.cat([image[:, :1] for image in pictures]) + 1) / 2)
        parts = list(classical.split(len(corners)))
        compared = _warp_figures(warps, parts, corners) | _stack_figures(pictures[0], _apply(pictures[0], parts[0]))
    return Evaluation(figures, pictures[0], aligned[0].image, aligned[0].grid, compared)


def _matrix_or_grid(record: Alignment) -> Tensor:
    """The exact matrix where the warp is one; else the grid."""
    return record.grid if record.residual_flow is not None or record.matrix is None else record.matrix


def _apply(images: Tensor, matrix: Tensor) -> Tensor:
    height, width = images.shape[2:]
    grid = transform_points(matrix, metrics.identity_grid(height, width).reshape(1, -1, 2).expand(len(images), -1, -1))
    return mipmap_warp(images, grid.reshape(-1, height, width, 2), padding_mode="border")


def _warp_figures(warps: list[Tensor], found: list[Tensor], corners: Tensor) -> Figures:
    pair = metrics.pair_error_ratio(warps[0], found[0], warps[1], found[1], corners, DIGIT_SIZE)
    spread = metrics.set_spread_ratio(warps[0], found[0], corners, DIGIT_SIZE)
    return {
        "Pair error": {**pair, "unit": "px", "goal": PAIR_ERROR_GOAL, "note": "two warps of one picture"},
        "Set spread": {**spread, "unit": "px", "goal": SET_SPREAD_GOAL, "note": "over different pictures; holds their own slant"},
    }


def _stack_figures(before: Tensor, after: Tensor) -> Figures:
    entropy = [float(metrics.stack_entropy(images[:, :1])) for images in (before, after)]
    return {
        "Stack entropy": {"before": entropy[0], "after": entropy[1], "unit": "bit", "goal": ENTROPY_GOAL},
        "Ink kept": {"ratio": float(metrics.ink_kept(before, after)), "goal": INK_GOAL},
    }
