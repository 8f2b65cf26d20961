# SPDX-License-Identifier: Apache-2.0
"""Mutual nearest neighbours without the table of products.

A program takes some rows of one set past all columns. It keeps each row's largest product and where that is, and writes the largest
that each column has among its rows: of the table no more than one in BLOCK_P rows is ever stored. Rows and columns see the same
numbers, so that what is the largest of both is found by comparison.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from gangealing_fast.kernels._launch import INTERPRETED, cdiv, check_sample, launch
from gangealing_fast.ops.mutual_nearest import mutual_nearest_reference, settled

# Rows, columns and components of a tile. Products in float32 are not those of tensor cores: larger tiles spill registers.
WIDE, NARROW = (32, 64, 16), (64, 64, 32)


@triton.jit
def mutual_nearest_kernel(
    first,
    second,
    likeness,
    place,
    columns_largest,
    rows,
    columns,
    depth,
    WIDEN: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    tiles = tl.cdiv(rows, BLOCK_P)
    p = tl.program_id(0) % tiles * BLOCK_P + tl.arange(0, BLOCK_P)
    n = (tl.program_id(0) // tiles).to(tl.int64)
    best = tl.full((BLOCK_P,), float("-inf"), tl.float32)
    where = tl.full((BLOCK_P,), -1, tl.int32)
    for start in range(0, columns, BLOCK_Q):
        q = start + tl.arange(0, BLOCK_Q)
        products = tl.zeros((BLOCK_P, BLOCK_Q), tl.float32)
        for k in range(0, depth, BLOCK_D):
            d = k + tl.arange(0, BLOCK_D)
            own = first + n * rows * depth + p[:, None] * depth + d[None, :]
            other = second + n * columns * depth + q[None, :] * depth + d[:, None]
            a = tl.load(own, mask=(p < rows)[:, None] & (d < depth)[None, :], other=0.0)
            b = tl.load(other, mask=(q < columns)[None, :] & (d < depth)[:, None], other=0.0)
            if WIDEN:
                a = a.to(tl.float32)
                b = b.to(tl.float32)
            products = tl.dot(a, b, products, input_precision="ieee")
        exists = (p < rows)[:, None] & (q < columns)[None, :]
        # NaN is nobody's largest.
        products = tl.where(exists & (products == products), products, float("-inf"))
        value = tl.max(products, 1)
        larger = value > best
        where = tl.where(larger, start + tl.argmax(products, 1), where)
        best = tl.where(larger, value, best)
        tl.store(columns_largest + tl.program_id(0).to(tl.int64) * columns + q, tl.max(products, 0), mask=q < columns)
    tl.store(likeness + n * rows + p, best, mask=p < rows)
    tl.store(place + n * rows + p, where.to(tl.int64), mask=p < rows)


def mutual_nearest(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """The registered operator `mutual_nearest`; its reference if there is nothing to multiply, and in float64."""
    if first.dtype == torch.float64 or not first.numel() or not second.numel():
        return mutual_nearest_reference(first, second)
    check_sample("mutual_nearest", first)
    check_sample("mutual_nearest", second)
    first, second = first.contiguous(), second.contiguous()
    (sets, rows, depth), columns = first.shape, second.shape[1]
    block_p, block_q, block_d = WIDE if first.dtype == torch.float32 else NARROW
    tiles = cdiv(rows, block_p)
    likeness = first.new_empty((sets, rows), dtype=torch.float32)
    place = first.new_empty((sets, rows), dtype=torch.int64)
    largest = first.new_empty((sets, tiles, columns), dtype=torch.float32)
    launch(
        mutual_nearest_kernel,
        sets * tiles,
        first,
        second,
        likeness,
        place,
        largest,
        rows,
        columns,
        depth,
        WIDEN=INTERPRETED,
        BLOCK_P=block_p,
        BLOCK_Q=block_q,
        BLOCK_D=block_d,
    )
    return settled(likeness, place, largest.amax(1)), likeness
