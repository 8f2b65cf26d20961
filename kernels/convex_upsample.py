# SPDX-License-Identifier: Apache-2.0
"""Softmax over the nine logits and the combination of the neighbours, without an intermediate of nine times the result.

A program holds the logits [9, factor, coarse pixels] of one sample and one fine row of every coarse cell. Backward: the same
program writes the logits' gradients and, for each coarse pixel, what its fine pixels send to each of the nine neighbours; a
second kernel gathers those, in a fixed order instead of by atomics.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from gangealing_fast.kernels._launch import cdiv, check_sample, compute_type, elements, launch, power_of_two
from gangealing_fast.ops.grid_sample import widest_dtype


@triton.jit
def _neighbours(flow, n, p, height, width, COMPUTE: tl.constexpr, BLOCK_P: tl.constexpr):
    """x and y of the flow at the 3x3 neighbours of the pixels `p`, [16, BLOCK_P], zeros outside."""
    k = tl.arange(0, 16)[:, None]
    row = (p // width)[None, :] + k // 3 - 1
    column = (p % width)[None, :] + k % 3 - 1
    mask = (k < 9) & (row >= 0) & (row < height) & (column >= 0) & (column < width)
    first = flow + 2 * (n * height * width + row * width + column)
    return tl.load(first, mask=mask, other=0.0).to(COMPUTE), tl.load(first + 1, mask=mask, other=0.0).to(COMPUTE)


@triton.jit
def _logits(n, i, p, pixels, FACTOR: tl.constexpr, BLOCK_J: tl.constexpr):
    """Offsets and mask of the logits [16, BLOCK_J, BLOCK_P] of row `i` of the cells `p`."""
    k = tl.arange(0, 16)[:, None, None]
    j = tl.arange(0, BLOCK_J)[None, :, None]
    offsets = (((n * 9 + k) * FACTOR + i) * FACTOR + j) * pixels + p[None, None, :]
    return offsets, (k < 9) & (j < FACTOR) & (p < pixels)[None, None, :] & (i < FACTOR)


@triton.jit
def _fine(n, i, p, height, width, FACTOR: tl.constexpr, BLOCK_J: tl.constexpr):
    """Offsets [BLOCK_J, BLOCK_P] of the x of the fine vectors in row `i` of the cells `p`."""
    j = tl.arange(0, BLOCK_J)[:, None]
    row = (n * height + p // width) * FACTOR + i
    return 2 * (row[None, :] * (width * FACTOR) + (p % width)[None, :] * FACTOR + j)


@triton.jit
def convex_upsample_forward_kernel(
    flow, mask, fine, height, width, FACTOR: tl.constexpr, COMPUTE: tl.constexpr, BLOCK_J: tl.constexpr, BLOCK_P: tl.constexpr
):
    tiles = tl.cdiv(height * width, BLOCK_P)
    p = tl.program_id(0) % tiles * BLOCK_P + tl.arange(0, BLOCK_P)
    i = tl.program_id(0) // tiles % FACTOR
    n = (tl.program_id(0) // tiles // FACTOR).to(tl.int64)
    offsets, valid = _logits(n, i, p, height * width, FACTOR, BLOCK_J)
    logits = tl.load(mask + offsets, mask=valid, other=float("-inf")).to(COMPUTE)
    weights = tl.exp(logits - tl.max(logits, 0)[None, :, :])
    scale = FACTOR / tl.sum(weights, 0)
    x, y = _neighbours(flow, n, p, height, width, COMPUTE, BLOCK_P)
    x = tl.sum(weights * x[:, None, :], 0) * scale
    y = tl.sum(weights * y[:, None, :], 0) * scale
    target = fine + _fine(n, i, p, height, width, FACTOR, BLOCK_J)
    inside = (tl.arange(0, BLOCK_J) < FACTOR)[:, None] & (p < height * width)[None, :]
    tl.store(target, x.to(fine.dtype.element_ty), mask=inside)
    tl.store(target + 1, y.to(fine.dtype.element_ty), mask=inside)


@triton.jit
def convex_upsample_backward_kernel(
    grad,
    flow,
    mask,
    grad_mask,
    sums,
    height,
    width,
    FACTOR: tl.constexpr,
    ROWS: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    tiles = tl.cdiv(height * width, BLOCK_P)
    groups: tl.constexpr = (FACTOR + ROWS - 1) // ROWS
    p = tl.program_id(0) % tiles * BLOCK_P + tl.arange(0, BLOCK_P)
    group = tl.program_id(0) // tiles % groups
    n = (tl.program_id(0) // tiles // groups).to(tl.int64)
    x, y = _neighbours(flow, n, p, height, width, COMPUTE, BLOCK_P)
    sum_x = tl.zeros((16, BLOCK_P), COMPUTE)
    sum_y = tl.zeros((16, BLOCK_P), COMPUTE)
    for r in range(ROWS):
        i = group * ROWS + r
        offsets, valid = _logits(n, i, p, height * width, FACTOR, BLOCK_J)
        logits = tl.load(mask + offsets, mask=valid, other=float("-inf")).to(COMPUTE)
        weights = tl.exp(logits - tl.max(logits, 0)[None, :, :])
        weights = weights / tl.sum(weights, 0)[None, :, :]
        inside = (tl.arange(0, BLOCK_J) < FACTOR)[:, None] & (p < height * width)[None, :] & (i < FACTOR)
        source = grad + _fine(n, i, p, height, width, FACTOR, BLOCK_J)
        grad_x = tl.load(source, mask=inside, other=0.0).to(COMPUTE) * FACTOR
        grad_y = tl.load(source + 1, mask=inside, other=0.0).to(COMPUTE) * FACTOR
        towards = weights * (grad_x[None, :, :] * x[:, None, :] + grad_y[None, :, :] * y[:, None, :])
        grad_logits = towards - weights * tl.sum(towards, 0)[None, :, :]
        tl.store(grad_mask + offsets, grad_logits.to(grad_mask.dtype.element_ty), mask=valid)
        # What lies outside has only -inf for logits, hence NaN for weights.
        sum_x += tl.sum(tl.where(valid, weights * grad_x[None, :, :], 0.0), 1)
        sum_y += tl.sum(tl.where(valid, weights * grad_y[None, :, :], 0.0), 1)
    # sums: [N, groups, 9, 2, pixels]
    k = tl.arange(0, 16)[:, None]
    target = sums + ((n * groups + group) * 9 + k) * 2 * (height * width) + p[None, :]
    inside_sums = (k < 9) & (p < height * width)[None, :]
    tl.store(target, sum_x, mask=inside_sums)
    tl.store(target + height * width, sum_y, mask=inside_sums)


@triton.jit
def convex_upsample_gather_kernel(sums, grad_flow, height, width, GROUPS: tl.constexpr, COMPUTE: tl.constexpr, BLOCK: tl.constexpr):
    tiles = tl.cdiv(height * width * 2, BLOCK)
    e = tl.program_id(0) % tiles * BLOCK + tl.arange(0, BLOCK)
    n = (tl.program_id(0) // tiles).to(tl.int64)
    inside = e < height * width * 2
    row = e // 2 // width
    column = e // 2 % width
    total = tl.zeros((BLOCK,), COMPUTE)
    for group in range(GROUPS):
        for k in range(9):
            # The pixel whose k-th neighbour this one is.
            from_row = row - (k // 3 - 1)
            from_column = column - (k % 3 - 1)
            exists = inside & (from_row >= 0) & (from_row < height) & (from_column >= 0) & (from_column < width)
            first = ((n * GROUPS + group) * 9 + k) * 2 + e % 2
            total += tl.load(sums + first * (height * width) + from_row * width + from_column, mask=exists, other=0.0)
    tl.store(grad_flow + n * height * width * 2 + e, total.to(grad_flow.dtype.element_ty), mask=inside)


def _blocks(pixels: int, factor: int) -> tuple[int, int]:
    """Fine columns (all of them) and coarse pixels of a tile, with 16 logits each about 2048 in all."""
    block_j = power_of_two(factor, 64)
    return block_j, power_of_two(pixels, elements(max(128 // block_j, 4)))


def convex_upsample(flow: Tensor, mask: Tensor, factor: int) -> Tensor:
    """The registered operator `convex_upsample`."""
    check_sample("convex_upsample", mask)
    flow, mask = flow.contiguous(), mask.contiguous()
    samples, height, width, _ = flow.shape
    fine = flow.new_empty((samples, height * factor, width * factor, 2))
    block_j, block_p = _blocks(height * width, factor)
    launch(
        convex_upsample_forward_kernel,
        samples * factor * cdiv(height * width, block_p),
        flow,
        mask,
        fine,
        height,
        width,
        FACTOR=factor,
        COMPUTE=compute_type(widest_dtype(flow, mask)),
        BLOCK_J=block_j,
        BLOCK_P=block_p,
    )
    return fine


def convex_upsample_backward(grad: Tensor, flow: Tensor, mask: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """The registered operator `convex_upsample_backward`."""
    check_sample("convex_upsample", mask)
    grad, flow, mask = grad.contiguous(), flow.contiguous(), mask.contiguous()
    samples, height, width, _ = flow.shape
    compute = widest_dtype(flow, mask)
    grad_flow, grad_mask = torch.empty_like(flow), torch.empty_like(mask)
    block_j, block_p = _blocks(height * width, factor)
    rows = min(factor, 4)
    groups = cdiv(factor, rows)
    sums = flow.new_empty((samples, groups, 9, 2, height * width), dtype=compute)
    launch(
        convex_upsample_backward_kernel,
        samples * groups * cdiv(height * width, block_p),
        grad,
        flow,
        mask,
        grad_mask,
        sums,
        height,
        width,
        FACTOR=factor,
        ROWS=rows,
        COMPUTE=compute_type(compute),
        BLOCK_J=block_j,
        BLOCK_P=block_p,
    )
    block = power_of_two(height * width * 2, elements(256))
    launch(
        convex_upsample_gather_kernel,
        samples * cdiv(height * width * 2, block),
        sums,
        grad_flow,
        height,
        width,
        GROUPS=groups,
        COMPUTE=compute_type(compute),
        BLOCK=block,
    )
    return grad_flow, grad_mask
