# SPDX-License-Identifier: Apache-2.0
"""nearest_grid_point: the very index of the reference, ties, values that are not finite."""

from __future__ import annotations

import pytest
import torch
from cases.nearest_grid_point import CASES
from support import DTYPES, assert_cpu_kernels, check_compile, check_registration, strided

from gangealing_fast.ops import nearest_grid_point, nearest_grid_point_reference


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_reference(case):
    for dtype in DTYPES:
        grid, points = case.tensors(dtype)
        found = nearest_grid_point(grid, points)
        assert found.dtype == torch.int64 and found.shape == points.shape
        assert torch.equal(found, nearest_grid_point_reference(grid, points)), dtype
        assert torch.equal(found, nearest_grid_point(strided(grid), strided(points))), dtype


def test_found_by_hand():
    grid = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [1.0, 1.0], [2.0, 1.0]]])[None]
    points = torch.tensor([[[0.9, 0.1], [0.5, 0.0], [0.5, 0.5], [5.0, 5.0], [0.0, 0.7]]])
    assert nearest_grid_point(grid, points)[0].tolist() == [[1, 0], [0, 0], [0, 0], [2, 1], [0, 1]]


def test_kernels_are_compiled():
    assert_cpu_kernels("nearest_grid_point")


def test_registration_and_compilation():
    inputs = CASES[0].tensors()
    check_registration(nearest_grid_point, inputs, {}, ())
    check_compile(nearest_grid_point, inputs, {}, ())


def test_no_gradient_is_promised():
    grid, points = (t.requires_grad_() for t in CASES[0].tensors())
    assert not nearest_grid_point(grid, points).requires_grad


def test_mixed_precision():
    grid, points = CASES[1].tensors()
    assert torch.equal(nearest_grid_point(grid.float(), points), nearest_grid_point_reference(grid.float().double(), points))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_vertex_is_nearest_where_no_distance_is_finite(dtype):
    grid, points = CASES[0].tensors(dtype)
    points[0, 0], points[0, 1, 1], points[0, 2, 0] = torch.nan, torch.inf, -torch.inf
    points[0, 3] = torch.finfo(dtype).max
    found = nearest_grid_point(grid, points)
    assert (found[0, :4] == -1).all() and (found[0, 4:] >= 0).all() and (found[1] >= 0).all()
    assert (nearest_grid_point(torch.full_like(grid, torch.nan), points) == -1).all()


def test_threads_do_not_change_the_result():
    grid, points = CASES[3].tensors(torch.float32)
    threads, results = torch.get_num_threads(), []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        results.append(nearest_grid_point(grid, points))
    torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])
