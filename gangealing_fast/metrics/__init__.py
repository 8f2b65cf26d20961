# SPDX-License-Identifier: Apache-2.0
"""Figures on held-out pictures: alignment, resemblance, distance between sets, and the health of warps."""

from __future__ import annotations

from gangealing_fast.metrics.alignment import (
    before_after,
    binary_entropy,
    ink_kept,
    object_frame_points,
    pair_error,
    pair_error_ratio,
    set_spread,
    set_spread_ratio,
    stack_entropy,
)
from gangealing_fast.metrics.clusters import cluster_purity
from gangealing_fast.metrics.distribution import (
    FeatureStatistics,
    batch_diversity,
    fid,
    frechet_distance,
    gather_features,
    gather_statistics,
    kernel_distance,
    precision_recall,
)
from gangealing_fast.metrics.health import WarpHealth, folded_share, inspect_warps, relative_areas
from gangealing_fast.metrics.perceptual import average_image, laplacian_variance, mean_pairwise_distance, random_pairs, sharpness

__all__ = [
    "FeatureStatistics",
    "WarpHealth",
    "average_image",
    "batch_diversity",
    "before_after",
    "binary_entropy",
    "cluster_purity",
    "fid",
    "folded_share",
    "frechet_distance",
    "gather_features",
    "gather_statistics",
    "ink_kept",
    "inspect_warps",
    "kernel_distance",
    "laplacian_variance",
    "mean_pairwise_distance",
    "object_frame_points",
    "pair_error",
    "pair_error_ratio",
    "precision_recall",
    "random_pairs",
    "relative_areas",
    "set_spread",
    "set_spread_ratio",
    "sharpness",
    "stack_entropy",
]
