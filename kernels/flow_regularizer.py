# SPDX-License-Identifier: Apache-2.0
"""Huber total variation and mean square of a flow in one pass; its gradient in another, a gather without atomics."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from gangealing_fast.kernels._launch import cdiv, check_sample, compute_type, elements, launch, power_of_two
from gangealing_fast.ops._common import compute_dtype


@triton.jit
def _huber(difference):
    magnitude = tl.abs(difference)
    return tl.where(magnitude <= 1, difference * difference * 0.5, magnitude - 0.5)


@triton.jit
def _huber_slope(difference):
    # A NaN compares false and passes on.
    return tl.where(difference > 1, 1.0, tl.where(difference < -1, -1.0, difference))


@triton.jit
def _element(height, width, BLOCK: tl.constexpr):
    """Sample, tile, position within the sample [H, W, 2], its row and column, and whether it exists."""
    tiles = tl.cdiv(height * width * 2, BLOCK)
    n = (tl.program_id(0) // tiles).to(tl.int64)
    tile = tl.program_id(0) % tiles
    e = tile * BLOCK + tl.arange(0, BLOCK)
    return n, tile, e, e // (2 * width), e % (2 * width), e < height * width * 2


@triton.jit
def _inverse(count, COMPUTE: tl.constexpr):
    """1 / count, of a mean over nothing 1."""
    return 1.0 / tl.maximum(count, 1).to(COMPUTE)


@triton.jit
def flow_regularizer_forward_kernel(flow, sums, samples, height, width, COMPUTE: tl.constexpr, BLOCK: tl.constexpr):
    n, tile, e, row, column, mask = _element(height, width, BLOCK)
    first = flow + n * height * width * 2 + e
    right = mask & (column + 2 < 2 * width)
    below = mask & (row + 1 < height)
    v = tl.load(first, mask=mask, other=0.0).to(COMPUTE)
    dx = tl.load(first + 2, mask=right, other=0.0).to(COMPUTE) - v
    dy = tl.load(first + 2 * width, mask=below, other=0.0).to(COMPUTE) - v
    variation_x = tl.sum(tl.where(right, _huber(dx), 0.0), 0) * _inverse(height * (width - 1) * 2, COMPUTE)
    variation_y = tl.sum(tl.where(below, _huber(dy), 0.0), 0) * _inverse((height - 1) * width * 2, COMPUTE)
    identity = tl.sum(v * v, 0) * _inverse(height * width * 2, COMPUTE)
    # sums: [2, N, tiles]
    tiles = tl.cdiv(height * width * 2, BLOCK)
    tl.store(sums + n * tiles + tile, variation_x + variation_y)
    tl.store(sums + (samples + n) * tiles + tile, identity)


@triton.jit
def flow_regularizer_backward_kernel(
    flow, grad_tv, grad_identity, grad_flow, height, width, COMPUTE: tl.constexpr, BLOCK: tl.constexpr
):
    n, _, e, row, column, mask = _element(height, width, BLOCK)
    first = flow + n * height * width * 2 + e
    v = tl.load(first, mask=mask, other=0.0).to(COMPUTE)
    # A neighbour that does not exist is taken as equal: slope 0.
    left = tl.load(first - 2, mask=mask & (column >= 2), other=0.0).to(COMPUTE)
    right = tl.load(first + 2, mask=mask & (column + 2 < 2 * width), other=0.0).to(COMPUTE)
    above = tl.load(first - 2 * width, mask=mask & (row >= 1), other=0.0).to(COMPUTE)
    below = tl.load(first + 2 * width, mask=mask & (row + 1 < height), other=0.0).to(COMPUTE)
    x = tl.where(column >= 2, _huber_slope(v - left), 0.0) - tl.where(column + 2 < 2 * width, _huber_slope(right - v), 0.0)
    y = tl.where(row >= 1, _huber_slope(v - above), 0.0) - tl.where(row + 1 < height, _huber_slope(below - v), 0.0)
    variation = x * _inverse(height * (width - 1) * 2, COMPUTE) + y * _inverse((height - 1) * width * 2, COMPUTE)
    identity = v * (2 * _inverse(height * width * 2, COMPUTE))
    g = tl.load(grad_tv + n).to(COMPUTE) * variation + tl.load(grad_identity + n).to(COMPUTE) * identity
    tl.store(grad_flow + n * height * width * 2 + e, g.to(grad_flow.dtype.element_ty), mask=mask)


def flow_regularizer(flow: Tensor) -> tuple[Tensor, Tensor]:
    """The registered operator `flow_regularizer`."""
    check_sample("flow_regularizer", flow)
    flow = flow.contiguous()
    samples, height, width, _ = flow.shape
    block = power_of_two(height * width * 2, elements(1024))
    tiles = cdiv(height * width * 2, block)
    sums = flow.new_empty((2, samples, tiles), dtype=compute_dtype(flow.dtype))
    launch(
        flow_regularizer_forward_kernel,
        samples * tiles,
        flow,
        sums,
        samples,
        height,
        width,
        COMPUTE=compute_type(flow.dtype),
        BLOCK=block,
    )
    return sums[0].sum(1), sums[1].sum(1)


def flow_regularizer_backward(grad_tv: Tensor, grad_identity: Tensor, flow: Tensor) -> Tensor:
    """The registered operator `flow_regularizer_backward`."""
    check_sample("flow_regularizer", flow)
    flow = flow.contiguous()
    samples, height, width, _ = flow.shape
    grad_flow = torch.empty_like(flow)
    block = power_of_two(height * width * 2, elements(1024))
    launch(
        flow_regularizer_backward_kernel,
        samples * cdiv(height * width * 2, block),
        flow,
        grad_tv.contiguous(),
        grad_identity.contiguous(),
        grad_flow,
        height,
        width,
        COMPUTE=compute_type(flow.dtype),
        BLOCK=block,
    )
    return grad_flow
