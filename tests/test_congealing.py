# SPDX-License-Identifier: Apache-2.0
"""Congealing lowers the entropy of a stack and undoes known warps."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import affine_grid, grid_sample, interpolate

from gangealing_fast import metrics
from gangealing_fast.congealing.similarity import _recentre, _sweep, congeal, soft_stack_entropy
from gangealing_fast.geometry.warps import compose, invert, similarity_matrix

CORNERS = torch.tensor([[-0.5, -0.6], [0.5, -0.6], [0.5, 0.6], [-0.5, 0.6]])


def letter() -> torch.Tensor:
    """An F, [1, 1, 24, 24] in [0, 1], which no rotation or shift maps to itself."""
    coarse = torch.zeros(1, 1, 12, 12)
    coarse[0, 0, 2:10, 4:6] = 1
    coarse[0, 0, 2:4, 4:9] = 1
    coarse[0, 0, 5:7, 4:8] = 1
    return interpolate(coarse, scale_factor=2, mode="bilinear", align_corners=False)


def warped_letters(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Letters [N, 1, 24, 24] under random similarity warps, and the warps A [N, 2, 3]."""
    draw = torch.rand(count, 4, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    known = similarity_matrix(*(draw * torch.tensor([math.radians(30), 0.2, 0.15, 0.15])).unbind(1))
    grid = affine_grid(invert(known), [count, 1, 24, 24], align_corners=False)
    return grid_sample(letter().expand(count, -1, -1, -1), grid, align_corners=False), known


def warp(images: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
    return grid_sample(images, affine_grid(matrices, list(images.shape), align_corners=False), align_corners=False)


def test_known_warps_are_undone() -> None:
    images, known = warped_letters(40)
    matrices = congeal(images, 5)
    assert matrices.shape == (40, 2, 3)
    aligned = warp(images, matrices)
    scores = metrics.set_spread_ratio(known, matrices, CORNERS, 24)
    assert scores["before"] > 2 and scores["ratio"] < 0.25
    assert metrics.pair_error_ratio(known[:20], matrices[:20], known[20:], matrices[20:], CORNERS, 24)["ratio"] < 0.25
    assert float(soft_stack_entropy(aligned)) < 0.7 * float(soft_stack_entropy(images))
    assert float(metrics.ink_kept(images * 2 - 1, aligned * 2 - 1)) == pytest.approx(1, abs=0.1)


def test_same_input_same_matrices_and_the_mean_transform_is_the_identity() -> None:
    images, _ = warped_letters(12)
    first, second = (congeal(images, 2, blurs=(0.06, 0.0)) for _ in range(2))
    assert torch.equal(first, second)
    rotation, scale = torch.atan2(first[:, 1, 0], first[:, 0, 0]), first[:, :, 0].norm(dim=1).log()
    for mean in (rotation.mean(), scale.mean(), *first[:, :, 2].mean(0)):
        assert float(mean) == pytest.approx(0, abs=1e-5)
    assert torch.equal(congeal(images, 0), torch.eye(2, 3).expand(12, 2, 3))


def test_recentring_changes_the_template_only() -> None:
    parameters = torch.rand(9, 4, generator=torch.Generator().manual_seed(1)) - 0.3
    before, after = (similarity_matrix(*found.unbind(1)) for found in (parameters, _recentre(parameters)))
    change = compose(invert(before), after)
    torch.testing.assert_close(change, change[:1].expand_as(change))


def test_a_sweep_takes_the_best_move_of_a_single_misplaced_image() -> None:
    images = letter().repeat(30, 1, 1, 1)
    images[4] = torch.roll(images[4], 2, -1)
    step = 4 / 24  # two pixels
    moved = _sweep(images, torch.zeros(30, 4), torch.tensor([0.0, 0.0, step, step]), 0.0)
    expected = torch.zeros(30, 4)
    expected[4, 2] = step
    torch.testing.assert_close(moved, expected)


def test_colours_and_odd_sizes() -> None:
    images, _ = warped_letters(6)
    matrices = congeal(images[:, :, :21, :].repeat(1, 3, 1, 1), 2, blurs=(0.05, 0.0))
    assert matrices.shape == (6, 2, 3) and bool(matrices.isfinite().all())
    assert congeal(images[:1], 1).isfinite().all()


@pytest.mark.parametrize(
    ("images", "options", "word"),
    [
        (torch.zeros(0, 1, 8, 8), {}, "non-empty"),
        (torch.zeros(8, 8), {}, "non-empty"),
        (torch.full((2, 1, 8, 8), -1.0), {}, r"\[0, 1\]"),
        (torch.full((2, 1, 8, 8), math.nan), {}, "finite"),
        (torch.zeros(2, 1, 8, 8), {"decay": 0.0}, "decay"),
    ],
)
def test_wrong_arguments_are_named(images: torch.Tensor, options: dict, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        congeal(images, **options)
