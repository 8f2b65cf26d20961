# SPDX-License-Identifier: Apache-2.0
"""Figures on held-out pictures: alignment, resemblance, distance between sets, the health of warps, correct key points."""

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
from gangealing_fast.metrics.keypoints import (
    Expected,
    Shares,
    bootstrap,
    correct_points,
    expected_points,
    interval,
    keypoint_box_size,
    per_image,
    per_point,
)
from gangealing_fast.metrics.perceptual import average_image, laplacian_variance, mean_pairwise_distance, random_pairs, sharpness

__all__ = [
    "Expected",
    "FeatureStatistics",
    "Shares",
    "WarpHealth",
    "average_image",
    "batch_diversity",
    "before_after",
    "binary_entropy",
    "bootstrap",
    "cluster_purity",
    "correct_points",
    "expected_points",
    "fid",
    "folded_share",
    "frechet_distance",
    "gather_features",
    "gather_statistics",
    "ink_kept",
    "inspect_warps",
    "interval",
    "kernel_distance",
    "keypoint_box_size",
    "laplacian_variance",
    "mean_pairwise_distance",
    "object_frame_points",
    "pair_error",
    "pair_error_ratio",
    "per_image",
    "per_point",
    "precision_recall",
    "random_pairs",
    "relative_areas",
    "set_spread",
    "set_spread_ratio",
    "sharpness",
    "stack_entropy",
]
