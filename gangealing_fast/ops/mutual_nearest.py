# SPDX-License-Identifier: Apache-2.0
"""Mutual nearest neighbours of two sets of vectors (as Lowe, IJCV 2004, matches and as most matchers since begin).

    s(p, q) = first[p] . second[q]
    q is p's neighbour if s(p, q) is the largest of row p; of several the first one
    place[p] = q if s(p, q) is the largest of column q too; of several such p the first one; else -1

The likenesses s are never stored. A likeness that is NaN is nobody's largest.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gangealing_fast.ops._common import check_tensor, compute_dtype
from gangealing_fast.ops._dispatch import reference_wanted, run_reference
from gangealing_fast.ops._triton import serve_cuda


def mutual_nearest_reference(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Plain torch version of `mutual_nearest`; holds the likeness of every two vectors."""
    dtype = compute_dtype(first.dtype)
    table = first.detach().to(dtype) @ second.detach().to(dtype).mT
    table = torch.where(table.isnan(), -math.inf, table)
    count, rows, columns = table.shape
    if rows == 0 or columns == 0:
        none = table.new_full((count, rows), -math.inf)
        return torch.full_like(none, -1, dtype=torch.int64), none
    likeness = table.amax(2)
    # torch does not say which of several largest it finds.
    place = (table == likeness[..., None]).int().argmax(2)
    return settled(likeness, place, table.amax(1)), likeness


def settled(likeness: Tensor, place: Tensor, largest: Tensor) -> Tensor:
    """`[N, P]`: of the place of each row's largest product those that are their column's largest too, the first row's, else -1.

    likeness, place: `[N, P]`. largest: `[N, Q]`, of each column. There is at least one of each.
    """
    count, rows = place.shape
    place = place.clamp_min(0)
    mutual = (likeness > -math.inf) & (likeness == largest.gather(1, place))
    number = torch.arange(rows, device=place.device).expand(count, rows)
    owner = torch.full(largest.shape, rows, device=place.device)
    owner = owner.scatter_reduce(1, place, torch.where(mutual, number, rows), "amin")
    return torch.where(mutual & (owner.gather(1, place) == number), place, -1)


@torch.library.custom_op("gangealing_fast::mutual_nearest", mutates_args=())
def _mutual_nearest(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    return mutual_nearest_reference(first, second)


@_mutual_nearest.register_fake
def _(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    size = first.shape[:2]
    return first.new_empty(size, dtype=torch.int64), first.new_empty(size, dtype=compute_dtype(first.dtype))


serve_cuda("mutual_nearest", _mutual_nearest)


def mutual_nearest(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Which vectors of two sets are each other's nearest by their products, for N pairs of sets.

    first: `[N, P, D]`, second: `[N, Q, D]`, float64, float32, bfloat16 or float16, of one dtype, any strides. For unit vectors
    the product is the cosine.
    Returns place, `[N, P]` int64: the number of the vector of the second that each of the first is matched with, -1 for none; and
    likeness, `[N, P]` in the dtype computed in (float64 for float64, else float32): the largest product of each of the first,
    -inf if there is none. Each of the second has at most one match. Results are bit-identical between runs and numbers of threads
    on a CPU. Has no derivative. On CUDA float64 is computed by the reference.
    Raises TypeError or ValueError for inputs that do not fit together.
    """
    check_tensor("mutual_nearest", "first", first, 3, "[N, P, D]")
    check_tensor("mutual_nearest", "second", second, 3, "[N, Q, D]")
    if second.device != first.device:
        raise ValueError(f"mutual_nearest: second is on {second.device} but first is on {first.device}; move one of them.")
    if second.dtype != first.dtype:
        raise TypeError(f"mutual_nearest: second is {second.dtype} but first is {first.dtype}; convert one of them.")
    if first.shape[0] != second.shape[0]:
        raise ValueError(f"mutual_nearest: first has {first.shape[0]} sets and second {second.shape[0]}; there must be as many.")
    if first.shape[2] != second.shape[2]:
        raise ValueError(
            f"mutual_nearest: the vectors of first have {first.shape[2]} components and those of second {second.shape[2]}; "
            "they must have as many."
        )
    if reference_wanted():
        return run_reference(mutual_nearest_reference, first, second)
    return _mutual_nearest(first.detach(), second.detach())
