# SPDX-License-Identifier: Apache-2.0
"""Adaptive instance normalisation: statistics per tile, merged per channel in a fixed order, then one elementwise pass.

A tile's mean and sum of squares about that mean are merged by the formula of Chan, Golub and LeVeque (1979), which loses no
digits to a large mean. Nothing but the mean and the reciprocal deviation `[N, C]` is kept for the backward.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from gangealing_fast.kernels._launch import cdiv, compute_type, launch, power_of_two
from gangealing_fast.kernels.bias_act import blocks, dense, tile
from gangealing_fast.ops._common import compute_dtype, output_format


@triton.jit
def adain_statistics_kernel(
    x,
    means,
    squares,
    channels,
    pixels,
    CHANNELS_LAST: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    n, _, pixel_tile, c, _, offsets, mask = tile(channels, pixels, CHANNELS_LAST, BLOCK_C, BLOCK_P)
    v = tl.load(x + offsets, mask=mask, other=0.0).to(COMPUTE)
    count = tl.zeros((1,), COMPUTE) + tl.minimum(pixels - pixel_tile * BLOCK_P, BLOCK_P)
    mean = tl.sum(v, 1) / count
    difference = tl.where(mask, v - mean[:, None], 0.0)
    # [N, pixel tiles, C]
    target = (n * tl.cdiv(pixels, BLOCK_P) + pixel_tile) * channels + c
    tl.store(means + target, mean, mask=c < channels)
    tl.store(squares + target, tl.sum(difference * difference, 1), mask=c < channels)


@triton.jit
def adain_merge_kernel(
    means,
    squares,
    mean,
    rstd,
    channels,
    pixels,
    EPSILON: tl.constexpr,
    SIZE: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    tiles = tl.cdiv(channels, BLOCK)
    n = (tl.program_id(0) // tiles).to(tl.int64)
    c = tl.program_id(0) % tiles * BLOCK + tl.arange(0, BLOCK)
    mask = c < channels
    parts = tl.cdiv(pixels, SIZE)
    source = n * parts * channels + c
    average = tl.load(means + source, mask=mask, other=0.0)
    total = tl.load(squares + source, mask=mask, other=0.0)
    for part in range(1, parts):
        before = tl.zeros((1,), COMPUTE) + part * SIZE
        count = tl.zeros((1,), COMPUTE) + tl.minimum(pixels - part * SIZE, SIZE)
        source += channels
        difference = tl.load(means + source, mask=mask, other=0.0) - average
        share = count / (before + count)
        average += difference * share
        total += tl.load(squares + source, mask=mask, other=0.0) + difference * difference * before * share
    variance = total / pixels + tl.full((1,), EPSILON, COMPUTE)
    tl.store(mean + n * channels + c, average, mask=mask)
    tl.store(rstd + n * channels + c, 1.0 / tl.sqrt(variance), mask=mask)


@triton.jit
def adain_apply_kernel(
    x,
    mean,
    rstd,
    scale,
    shift,
    y,
    channels,
    pixels,
    CHANNELS_LAST: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    n, _, _, c, _, offsets, mask = tile(channels, pixels, CHANNELS_LAST, BLOCK_C, BLOCK_P)
    v = tl.load(x + offsets, mask=mask, other=0.0).to(COMPUTE)
    vector = n * channels + c
    average = tl.load(mean + vector, mask=c < channels, other=0.0)
    factor = tl.load(rstd + vector, mask=c < channels, other=0.0) * tl.load(scale + vector, mask=c < channels, other=0.0)
    added = tl.load(shift + vector, mask=c < channels, other=0.0)
    v = (v - average[:, None]) * factor[:, None] + added[:, None]
    tl.store(y + offsets, v.to(y.dtype.element_ty), mask=mask)


@triton.jit
def adain_sums_kernel(
    grad,
    x,
    mean,
    rstd,
    sums,
    products,
    channels,
    pixels,
    CHANNELS_LAST: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    n, _, pixel_tile, c, _, offsets, mask = tile(channels, pixels, CHANNELS_LAST, BLOCK_C, BLOCK_P)
    g = tl.load(grad + offsets, mask=mask, other=0.0).to(COMPUTE)
    v = tl.load(x + offsets, mask=mask, other=0.0).to(COMPUTE)
    vector = n * channels + c
    v = v - tl.load(mean + vector, mask=c < channels, other=0.0)[:, None]
    v = v * tl.load(rstd + vector, mask=c < channels, other=0.0)[:, None]
    # [N, pixel tiles, C]
    target = (n * tl.cdiv(pixels, BLOCK_P) + pixel_tile) * channels + c
    tl.store(sums + target, tl.sum(g, 1), mask=c < channels)
    tl.store(products + target, tl.sum(g * v, 1), mask=c < channels)


@triton.jit
def adain_backward_kernel(
    grad,
    x,
    mean,
    rstd,
    scale,
    sums,
    products,
    grad_x,
    channels,
    pixels,
    CHANNELS_LAST: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    n, _, _, c, _, offsets, mask = tile(channels, pixels, CHANNELS_LAST, BLOCK_C, BLOCK_P)
    g = tl.load(grad + offsets, mask=mask, other=0.0).to(COMPUTE)
    v = tl.load(x + offsets, mask=mask, other=0.0).to(COMPUTE)
    vector = n * channels + c
    r = tl.load(rstd + vector, mask=c < channels, other=0.0)
    v = (v - tl.load(mean + vector, mask=c < channels, other=0.0)[:, None]) * r[:, None]
    mean_g = tl.load(sums + vector, mask=c < channels, other=0.0) / pixels
    mean_product = tl.load(products + vector, mask=c < channels, other=0.0) / pixels
    factor = tl.load(scale + vector, mask=c < channels, other=0.0) * r
    v = factor[:, None] * (g - mean_g[:, None] - v * mean_product[:, None])
    tl.store(grad_x + offsets, v.to(grad_x.dtype.element_ty), mask=mask)


def adain(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """The registered operator `adain`."""
    x, channels_last, samples, channels, pixels = dense(x)
    compute = compute_dtype(x.dtype)
    y = torch.empty_like(x)
    mean, rstd = (x.new_empty((samples, channels), dtype=compute) for _ in range(2))
    block_c, block_p = blocks(channels, pixels, channels_last, 16)
    tiles = cdiv(pixels, block_p)
    means, squares = (x.new_empty((samples, tiles, channels), dtype=compute) for _ in range(2))
    if y.numel() == 0:
        return y, mean, rstd
    programs = samples * cdiv(channels, block_c) * tiles
    constants = {
        "CHANNELS_LAST": channels_last, "COMPUTE": compute_type(x.dtype), "BLOCK_C": block_c, "BLOCK_P": block_p
    }  # fmt: skip
    launch(adain_statistics_kernel, programs, x, means, squares, channels, pixels, **constants)
    block = power_of_two(channels, 128)
    launch(
        adain_merge_kernel,
        samples * cdiv(channels, block),
        means,
        squares,
        mean,
        rstd,
        channels,
        pixels,
        EPSILON=eps,
        SIZE=block_p,
        COMPUTE=compute_type(x.dtype),
        BLOCK=block,
    )
    scale, shift = scale.contiguous(), shift.contiguous()
    launch(adain_apply_kernel, programs, x, mean, rstd, scale, shift, y, channels, pixels, **constants)
    return y, mean, rstd


def adain_backward(grad: Tensor, x: Tensor, scale: Tensor, mean: Tensor, rstd: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """The registered operator `adain_backward`."""
    layout, compute = output_format(x), compute_dtype(x.dtype)
    x, channels_last, samples, channels, pixels = dense(x)
    grad = grad.contiguous(memory_format=layout)
    grad_x = torch.empty_like(x)
    block_c, block_p = blocks(channels, pixels, channels_last, 16)
    tiles = cdiv(pixels, block_p)
    sums, products = (x.new_empty((samples, tiles, channels), dtype=compute) for _ in range(2))
    programs = samples * cdiv(channels, block_c) * tiles
    constants = {
        "CHANNELS_LAST": channels_last, "COMPUTE": compute_type(x.dtype), "BLOCK_C": block_c, "BLOCK_P": block_p
    }  # fmt: skip
    mean, rstd, scale = mean.contiguous(), rstd.contiguous(), scale.contiguous()
    launch(adain_sums_kernel, programs, grad, x, mean, rstd, sums, products, channels, pixels, **constants)
    sums, products = sums.sum(1), products.sum(1)
    launch(adain_backward_kernel, programs, grad, x, mean, rstd, scale, sums, products, grad_x, channels, pixels, **constants)
    return grad_x, products, sums
