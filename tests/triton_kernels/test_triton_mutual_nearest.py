# SPDX-License-Identifier: Apache-2.0
"""mutual_nearest's Triton kernel against the reference."""

from __future__ import annotations

import pytest
import torch
from compare import compare, kernels
from support import DTYPES, strided

from gangealing_fast.ops.mutual_nearest import mutual_nearest_reference

SIZES = ((2, 40, 64, 16), (1, 130, 70, 104), (3, 37, 50, 21), (1, 1, 1, 1), (2, 5, 1, 8), (2, 1, 35, 3))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_values(size, dtype):
    """Of small whole numbers, whose products are exact in every dtype, so that many are equal."""
    (mutual_nearest,) = kernels("mutual_nearest", "mutual_nearest")
    sets, rows, columns, depth = size
    generator = torch.Generator().manual_seed(sum(size))
    first, second = (torch.randint(-2, 3, (sets, count, depth), generator=generator).to(dtype) for count in (rows, columns))
    expected = mutual_nearest_reference(first, second)
    for a, b in ((first, second), (strided(first), strided(second))):
        place, likeness = mutual_nearest(a, b)
        assert torch.equal(place, expected[0])
        compare([likeness], [expected[1]], torch.float32)


def test_random_vectors():
    (mutual_nearest,) = kernels("mutual_nearest", "mutual_nearest")
    first = torch.nn.functional.normalize(torch.randn(2, 100, 40, generator=torch.Generator().manual_seed(0)), dim=-1)
    second = first.roll(1, 1) + 0.1 * torch.randn(2, 100, 40, generator=torch.Generator().manual_seed(1))
    place, likeness = mutual_nearest(first, second)
    expected, most = mutual_nearest_reference(first, second)
    assert torch.equal(place, expected) and (place >= 0).float().mean() > 0.9
    compare([likeness], [most], torch.float32)


def test_nan_is_nobodys_nearest():
    (mutual_nearest,) = kernels("mutual_nearest", "mutual_nearest")
    first, second = (torch.randn(1, count, 5, generator=torch.Generator().manual_seed(count)) for count in (30, 40))
    first[0, 3], second[0, 7], second[0, 9, 0] = torch.nan, torch.nan, torch.inf
    place, likeness = mutual_nearest(first, second)
    expected, most = mutual_nearest_reference(first, second)
    assert torch.equal(place, expected) and place[0, 3] == -1 and likeness[0, 3] == -torch.inf
    compare([likeness.nan_to_num()], [most.nan_to_num()], torch.float32)
