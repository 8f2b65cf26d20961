# SPDX-License-Identifier: Apache-2.0
"""mutual_nearest: matches by hand, ties, values that are not finite, levels, threads."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support import DTYPES, assert_cpu_kernels, at_level, check_compile, check_registration

from gangealing_fast.ops import _levels, mutual_nearest, mutual_nearest_reference

SIZES = ((2, 40, 64, 16), (1, 1024, 1024, 104), (3, 37, 50, 21), (1, 1, 1, 1), (2, 5, 1, 8), (2, 1, 35, 3), (4, 7, 3, 0))


def drawn(sets, rows, columns, depth, dtype=torch.float32):
    generator = torch.Generator().manual_seed(rows * columns + depth)
    first, second = (torch.randn(sets, count, depth, generator=generator, dtype=torch.float64) for count in (rows, columns))
    return F.normalize(first, dim=-1).to(dtype), F.normalize(second, dim=-1).to(dtype)


@pytest.mark.parametrize("level", _levels.LEVELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_values(size, dtype, level):
    first, second = drawn(*size, dtype)
    with at_level(level):
        place, likeness = mutual_nearest(first, second)
    expected, most = mutual_nearest_reference(first, second)
    assert torch.equal(place, expected) and place.dtype == torch.int64
    assert likeness.dtype == most.dtype
    torch.testing.assert_close(likeness, most, rtol=0, atol=1e-12 if dtype == torch.float64 else 1e-6)


def test_by_hand():
    """Two vectors are each other's nearest, the third's nearest is taken, the fourth is opposite to all."""
    first = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.9, 0.1], [-1.0, -1.0]]])
    second = torch.tensor([[[0.1, 1.0], [1.0, 0.0]]])
    place, likeness = mutual_nearest(first, second)
    assert place.tolist() == [[1, 0, -1, -1]]
    torch.testing.assert_close(likeness, torch.tensor([[1.0, 1.0, 0.9, -1.0]]))


def test_of_equals_the_first_ones():
    first, second = torch.ones(1, 40, 3), torch.ones(1, 33, 3)
    place, _ = mutual_nearest(first, second)
    assert place.tolist() == [[0] + [-1] * 39]
    first[0, :2] = 0.0
    place, _ = mutual_nearest(first, second)
    # Rows of zeros are as near to all, but not the nearest of any.
    assert place.tolist() == [[-1, -1, 0] + [-1] * 37]


def test_nan_is_nobodys_nearest():
    first, second = drawn(1, 30, 40, 5)
    first[0, 3], second[0, 7] = torch.nan, torch.nan
    place, likeness = mutual_nearest(first, second)
    assert place[0, 3] == -1 and likeness[0, 3] == -torch.inf and not (place == 7).any()
    others = [row for row in range(30) if row != 3]
    kept = mutual_nearest(first[:, others], second)[0]
    assert torch.equal(place[:, others], kept)


def test_nothing_to_be_near_to():
    place, likeness = mutual_nearest(torch.ones(2, 3, 4), torch.ones(2, 0, 4))
    assert (place == -1).all() and (likeness == -torch.inf).all()


def test_registration():
    tensors = list(drawn(2, 9, 20, 6))
    check_registration(mutual_nearest, tensors, {}, ())
    check_compile(mutual_nearest, tensors, {}, ())
    assert_cpu_kernels("mutual_nearest")


def test_threads_and_batches_do_not_change_the_result():
    first, second = drawn(5, 100, 90, 40)
    threads, results = torch.get_num_threads(), []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        results.append(mutual_nearest(first, second))
    torch.set_num_threads(threads)
    parts = [mutual_nearest(a, b) for a, b in zip(first.split(1), second.split(1), strict=True)]
    results.append(tuple(torch.cat(found) for found in zip(*parts, strict=True)))
    for place, likeness in results[1:]:
        assert torch.equal(place, results[0][0]) and torch.equal(likeness, results[0][1])
