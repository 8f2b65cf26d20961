# SPDX-License-Identifier: Apache-2.0
"""The conventions of matrices and grids: cases worked out by hand, the laws that maps obey, and what pictures show of them."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from gangealing_fast.geometry.warps import (
    compose,
    identity_grid,
    identity_matrix,
    inverse_similarity_matrix,
    invert,
    mirror_grid,
    mirror_matrix,
    mirror_pictures,
    read_grid,
    resize_grid,
    similarity_matrix,
    transform_points,
)

EIGHTH = 2 * math.pi / 8


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def affine(count: int, seed: int) -> Tensor:
    """Matrices `[N, 2, 3]` in float64 that shear and stretch, well away from singular ones."""
    return (
        torch.eye(2, 3, dtype=torch.float64) + 0.6 * torch.rand(count, 2, 3, generator=generator(seed), dtype=torch.float64) - 0.3
    )


def points_of(*shape: int, seed: int = 9) -> Tensor:
    return torch.randn(*shape, 2, generator=generator(seed), dtype=torch.float64)


def square(matrix: Tensor) -> Tensor:
    """`[N, 3, 3]` with the last row (0, 0, 1)."""
    return torch.cat([matrix, matrix.new_tensor([0.0, 0.0, 1.0]).expand(len(matrix), 1, 3)], 1)


def numbers(*values: float) -> list[Tensor]:
    return [torch.tensor([value], dtype=torch.float64) for value in values]


def read(images: Tensor, grid: Tensor) -> Tensor:
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


# ---- by hand


def test_the_identity_reads_pixel_centres():
    grid = identity_grid(2, 4)
    assert grid.shape == (2, 4, 2) and grid.dtype == torch.float32
    assert grid[0, :, 0].tolist() == [-0.75, -0.25, 0.25, 0.75] and grid[:, 0, 1].tolist() == [-0.5, 0.5]
    assert_close(grid[None], F.affine_grid(identity_matrix(1), [1, 1, 2, 4], align_corners=False))
    images = torch.rand(3, 2, 5, 7, generator=generator())
    assert_close(read(images, identity_grid(5, 7).expand(3, -1, -1, -1)), images)


def test_identity_matrices():
    assert identity_matrix(2).tolist() == [[[1, 0, 0], [0, 1, 0]]] * 2
    assert identity_matrix(0).shape == (0, 2, 3)
    assert_close(transform_points(identity_matrix(3, dtype=torch.float64), points_of(3, 4)), points_of(3, 4))


def test_a_similarity_turns_x_towards_y_scales_and_then_shifts():
    matrix = similarity_matrix(*numbers(math.pi / 2, math.log(2), 0.1, 0.2))
    points = torch.tensor([[[0.0, 0], [1, 0], [0, 1]]], dtype=torch.float64)
    expected = torch.tensor([[[0.1, 0.2], [0.1, 2.2], [-1.9, 0.2]]], dtype=torch.float64)
    assert_close(transform_points(matrix, points), expected)
    diagonal = similarity_matrix(*numbers(EIGHTH, 0.5 * math.log(2), 0, 0))
    assert_close(diagonal, torch.tensor([[[1.0, -1, 0], [1, 1, 0]]], dtype=torch.float64))


def test_arguments_of_a_similarity_have_any_shape():
    arguments = torch.randn(4, 5, 3, generator=generator())
    matrix = similarity_matrix(*arguments)
    assert matrix.shape == (5, 3, 2, 3)
    assert torch.equal(matrix[2, 1], similarity_matrix(*arguments[:, 2, 1]))
    assert inverse_similarity_matrix(*arguments).shape == (5, 3, 2, 3)


def test_the_inner_map_comes_first():
    double = similarity_matrix(*numbers(0, math.log(2), 0, 0))
    right = similarity_matrix(*numbers(0, 0, 0.5, 0))
    point = torch.tensor([[[1.0, 1.0]]], dtype=torch.float64)
    assert_close(transform_points(compose(right, double), point), torch.tensor([[[2.5, 2.0]]], dtype=torch.float64))
    assert_close(transform_points(compose(double, right), point), torch.tensor([[[3.0, 2.0]]], dtype=torch.float64))


def test_a_warp_says_where_to_read():
    """Reading a pixel further right shows every pixel one place further left."""
    picture = torch.arange(4.0).expand(1, 1, 4, 4)
    right = similarity_matrix(*torch.tensor([[0.0], [0.0], [2 / 4], [0.0]]))
    shown = read(picture, transform_points(right, identity_grid(4, 4)[None]))
    assert_close(shown[0, 0, 2], torch.tensor([1.0, 2.0, 3.0, 3.0]))


def test_a_grid_between_and_beyond_its_points():
    """Two points along x, at -0.5 and 0.5, that read 10 and 20: half-way 15, and on along the line at the edge and outside."""
    grid = torch.tensor([[[10.0, 0], [20, 0]], [[10, 4], [20, 4]]])[None]
    points = torch.tensor([[[-0.5, -0.5], [0, 0], [0.5, 0.5], [1, -1], [2, 0.5], [-1, 1]]])
    expected = torch.tensor([[[10.0, 0], [15, 2], [20, 4], [25, -2], [35, 4], [5, 6]]])
    assert_close(read_grid(grid, points), expected)


def test_a_resized_grid_keeps_its_points_and_its_ends():
    grid = resize_grid(identity_grid(2, 2)[None], 4)
    assert grid.shape == (1, 4, 4, 2)
    assert_close(grid[0, 0, :, 0], torch.tensor([-0.5, -0.25, 0.25, 0.5]))
    assert_close(resize_grid(identity_grid(8, 8)[None], 16)[0, 1:-1, 1:-1], identity_grid(16, 16)[1:-1, 1:-1])


# ---- laws


def test_composing_is_applying_one_after_the_other():
    a, b, points = affine(6, 1), affine(6, 2), points_of(6, 3)
    assert_close(transform_points(compose(a, b), points), transform_points(a, transform_points(b, points)))
    assert_close(square(compose(a, b)), square(a) @ square(b))
    c = affine(6, 3)
    assert_close(compose(compose(a, b), c), compose(a, compose(b, c)))
    assert torch.equal(compose(a, identity_matrix(6, dtype=torch.float64)), a)


def test_an_inverse_undoes_from_both_sides_and_turns_the_order_round():
    a, b, identity = affine(6, 1), affine(6, 2), identity_matrix(6, dtype=torch.float64)
    assert_close(compose(a, invert(a)), identity)
    assert_close(compose(invert(a), a), identity)
    assert_close(invert(invert(a)), a)
    assert_close(invert(compose(a, b)), compose(invert(b), invert(a)))
    assert invert(a[:0]).shape == (0, 2, 3)


def test_the_inverse_of_a_similarity():
    arguments = torch.randn(4, 20, generator=generator(), dtype=torch.float64)
    assert_close(inverse_similarity_matrix(*arguments), invert(similarity_matrix(*arguments)))


@pytest.mark.parametrize(
    "matrix", [torch.zeros(1, 2, 3), torch.tensor([[[1.0, 2, 0], [0.5, 1, 0]]]), torch.full((1, 2, 3), math.nan)]
)
def test_what_has_no_inverse_is_refused(matrix: Tensor):
    with pytest.raises(ValueError, match="singular or not finite"):
        invert(torch.cat([identity_matrix(2), matrix]))


def test_points_one_by_one_and_in_any_shape():
    matrix, points = affine(3, 4), points_of(3, 2, 5)
    carried = transform_points(matrix, points)
    assert carried.shape == (3, 2, 5, 2)
    for i, j, k in ((0, 0, 0), (1, 1, 3), (2, 0, 4)):
        assert_close(carried[i, j, k], matrix[i, :, :2] @ points[i, j, k] + matrix[i, :, 2])
    assert_close(transform_points(matrix, points[:1]), transform_points(matrix, points[:1].repeat(3, 1, 1, 1)))
    assert transform_points(matrix[:0], points[:1]).shape == (0, 2, 5, 2)


def test_the_grid_of_a_matrix_carries_points_as_the_matrix_does():
    matrix = affine(5, 0)
    points = 2.4 * torch.rand(5, 3, 4, 2, generator=generator(), dtype=torch.float64) - 1.2
    grid = transform_points(matrix, identity_grid(7, 10, dtype=torch.float64)[None])
    assert_close(grid, F.affine_grid(matrix, [5, 1, 7, 10], align_corners=False))
    assert_close(read_grid(grid, points), transform_points(matrix, points))
    assert_close(read_grid(grid, points[:1]), transform_points(matrix, points[:1]))
    other = affine(5, 1)
    assert_close(
        transform_points(other, grid), transform_points(compose(other, matrix), identity_grid(7, 10, dtype=torch.float64)[None])
    )


def test_a_grid_is_read_as_pictures_are_sampled():
    grid = torch.randn(3, 6, 9, 2, generator=generator(), dtype=torch.float64)
    points = (torch.rand(3, 11, 2, generator=generator(1), dtype=torch.float64) * 2 - 1) * 0.8
    expected = F.grid_sample(grid.permute(0, 3, 1, 2), points[:, None], align_corners=False)
    assert_close(read_grid(grid, points), expected[:, :, 0].mT)
    assert_close(read_grid(grid, identity_grid(6, 9, dtype=torch.float64)[None]), grid)


# ---- mirrors


def test_mirrored_pictures_are_read_by_mirrored_grids():
    images, mirrored = torch.rand(3, 1, 8, 8, generator=generator(), dtype=torch.float64), torch.tensor([True, False, True])
    turned = mirror_pictures(images, mirrored)
    assert torch.equal(turned[0], images[0].flip(2)) and torch.equal(turned[1], images[1])
    grid = transform_points(affine(3, 5), identity_grid(6, 6, dtype=torch.float64)[None])
    assert_close(read(images, mirror_grid(grid, mirrored)), read(turned, grid))
    assert torch.equal(mirror_grid(mirror_grid(grid, mirrored), mirrored), grid)


def test_a_mirrored_matrix_does_to_mirrored_pictures_what_it_did_before():
    images, mirrored = torch.rand(3, 1, 8, 8, generator=generator(), dtype=torch.float64), torch.tensor([True, False, True])
    matrix, base = affine(3, 5), identity_grid(8, 8, dtype=torch.float64)[None]
    expected = mirror_pictures(read(images, transform_points(matrix, base)), mirrored)
    turned = mirror_matrix(matrix, mirrored)
    assert_close(read(mirror_pictures(images, mirrored), transform_points(turned, base)), expected)
    flip = torch.diag(torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64))
    assert_close(square(turned[:1]), flip @ square(matrix[:1]) @ flip)
    assert torch.equal(turned[1], matrix[1]) and torch.equal(mirror_matrix(turned, mirrored), matrix)


# ---- dtypes and errors


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtypes_are_kept(dtype: torch.dtype):
    matrix, mirrored = identity_matrix(2, dtype=dtype), torch.tensor([True, False])
    grid = identity_grid(4, 4, dtype=dtype).repeat(2, 1, 1, 1)
    results = [matrix, grid, invert(matrix), compose(matrix, matrix), transform_points(matrix, grid), read_grid(grid, grid)]
    results += [resize_grid(grid, 3), mirror_grid(grid, mirrored), mirror_matrix(matrix, mirrored)]
    results += [make(*torch.zeros(4, 2, dtype=dtype)) for make in (similarity_matrix, inverse_similarity_matrix)]
    assert {result.dtype for result in results} == {dtype}


def test_gradients_reach_matrices_grids_and_points():
    matrix, grid, points = affine(2, 1), points_of(2, 4, 5), points_of(2, 3) * 0.3
    for tensor in (matrix, grid, points):
        tensor.requires_grad_()
    for function, arguments in ((transform_points, (matrix, points)), (read_grid, (grid, points)), (compose, (matrix, matrix))):
        assert torch.autograd.gradcheck(function, arguments)
    assert torch.autograd.gradcheck(invert, (matrix,))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: transform_points(torch.eye(3)[None], torch.zeros(1, 4, 2)), r"matrix must be \[N, 2, 3\]"),
        (lambda: transform_points(identity_matrix(3), torch.zeros(2, 4, 2)), "points must be .* N = 3 or 1"),
        (lambda: transform_points(identity_matrix(3), torch.zeros(3, 4, 3)), "points must be"),
        (lambda: read_grid(torch.zeros(1, 1, 4, 2), torch.zeros(1, 4, 2)), "grid must be"),
        (lambda: read_grid(torch.zeros(2, 4, 4, 2), torch.zeros(3, 4, 2)), "points must be"),
        (lambda: invert(torch.eye(2)[None]), "matrix must be"),
        (lambda: compose(torch.eye(3)[None], identity_matrix(1)), "outer must be"),
        (lambda: compose(identity_matrix(1), torch.eye(3)[None]), "inner must be"),
    ],
)
def test_wrong_shapes_are_named(call: Callable[[], Tensor], words: str):
    with pytest.raises(ValueError, match=words):
        call()
