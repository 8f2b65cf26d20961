# SPDX-License-Identifier: Apache-2.0
"""Normalise, difference, head and spatial mean of one tap, forward and backward each in one pass over the features.

A program holds all channels of a few pixels of one sample in registers; if there are more than 512 it reads those after the first
512 again for each of its sums, from the cache. Partial sums per program are added up afterwards in a fixed order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from gangealing_fast.kernels._launch import cdiv, compute_type, elements, launch, power_of_two
from gangealing_fast.ops._common import compute_dtype, output_format

EPSILON = tl.constexpr(1e-10)
MOST_CHANNELS = 512


@triton.jit
def _offsets(n, c, p, channels, pixels, CHANNELS_LAST: tl.constexpr):
    """Where x[n, c, p] lies, as a tile [channels, pixels]."""
    if CHANNELS_LAST:
        within = p.to(tl.int64)[None, :] * channels + c[:, None]
    else:
        within = c.to(tl.int64)[:, None] * pixels + p[None, :]
    return n * channels * pixels + within


@triton.jit
def _load(x, n, c, p, channels, pixels, CHANNELS_LAST: tl.constexpr, COMPUTE: tl.constexpr):
    """x[n, c, p] as a tile [channels, pixels], zeros outside."""
    mask = (c < channels)[:, None] & (p < pixels)[None, :]
    return tl.load(x + _offsets(n, c, p, channels, pixels, CHANNELS_LAST), mask=mask, other=0.0).to(COMPUTE)


@triton.jit
def _load_both(a, b, n, c, p, channels, pixels, CHANNELS_LAST: tl.constexpr, COMPUTE: tl.constexpr):
    va = _load(a, n, c, p, channels, pixels, CHANNELS_LAST, COMPUTE)
    return va, _load(b, n, c, p, channels, pixels, CHANNELS_LAST, COMPUTE)


@triton.jit
def _inverse_norm(squared):
    """(1 / (norm + epsilon), norm); the inverse is 0 where all channels are 0."""
    norm = tl.sqrt(tl.where(squared > 0, squared, 1.0))
    # A NaN is not 0: it must pass on.
    return tl.where(squared == 0, 0.0, 1.0 / (norm + EPSILON)), norm


@triton.jit
def _inverse_norms(
    va, vb, a, b, n, c, p, channels, pixels, CHANNELS_LAST: tl.constexpr, ONCE: tl.constexpr, COMPUTE: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    """`_inverse_norm` of the pixels of a and of b, over all channels; va and vb are the tiles of the first ones."""
    squared_a = va * va
    squared_b = vb * vb
    if not ONCE:
        for first in range(BLOCK_C, channels, BLOCK_C):
            wa, wb = _load_both(a, b, n, first + c, p, channels, pixels, CHANNELS_LAST, COMPUTE)
            squared_a += wa * wa
            squared_b += wb * wb
    inverse_a, norm_a = _inverse_norm(tl.sum(squared_a, 0))
    inverse_b, norm_b = _inverse_norm(tl.sum(squared_b, 0))
    return inverse_a, norm_a, inverse_b, norm_b


@triton.jit
def _unit_backward(v, g, inverse, norm):
    """The part of the gradient of v / |v| that runs through the norm, per pixel: to be multiplied by v."""
    return tl.sum(v * g, 0) * inverse * inverse / norm


@triton.jit
def _difference(va, vb, inverse_a, inverse_b, head, c, channels, COMPUTE: tl.constexpr):
    """The difference of the normalised features, and the head's weights of the channels c."""
    h = tl.load(head + c, mask=c < channels, other=0.0).to(COMPUTE)
    return va * inverse_a[None, :] - vb * inverse_b[None, :], h


@triton.jit
def _weighted_square(va, vb, inverse_a, inverse_b, head, c, channels, COMPUTE: tl.constexpr):
    difference, h = _difference(va, vb, inverse_a, inverse_b, head, c, channels, COMPUTE)
    return difference * difference * h[:, None]


@triton.jit
def lpips_distance_forward_kernel(
    a,
    b,
    head,
    sums,
    channels,
    pixels,
    CHANNELS_LAST: tl.constexpr,
    ONCE: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """sums[n, tile] = sum over channels c and the tile's pixels p of head[c] (a / |a| - b / |b|)[n, c, p]^2 / pixels.

    a, b: `[N, channels, pixels]`, or with CHANNELS_LAST `[N, pixels, channels]`; head: `[channels]`. ONCE: BLOCK_C is all channels.
    """
    tiles = tl.cdiv(pixels, BLOCK_P)
    n = (tl.program_id(0) // tiles).to(tl.int64)
    p = tl.program_id(0) % tiles * BLOCK_P + tl.arange(0, BLOCK_P)
    c = tl.arange(0, BLOCK_C)
    va, vb = _load_both(a, b, n, c, p, channels, pixels, CHANNELS_LAST, COMPUTE)
    inverse_a, _, inverse_b, _ = _inverse_norms(va, vb, a, b, n, c, p, channels, pixels, CHANNELS_LAST, ONCE, COMPUTE, BLOCK_C)
    total = _weighted_square(va, vb, inverse_a, inverse_b, head, c, channels, COMPUTE)
    if not ONCE:
        for first in range(BLOCK_C, channels, BLOCK_C):
            wa, wb = _load_both(a, b, n, first + c, p, channels, pixels, CHANNELS_LAST, COMPUTE)
            total += _weighted_square(wa, wb, inverse_a, inverse_b, head, first + c, channels, COMPUTE)
    tl.store(sums + tl.program_id(0), tl.sum(tl.sum(total, 0), 0) / pixels)


@triton.jit
def _along(va, vb, inverse_a, norm_a, inverse_b, norm_b, scale, head, c, channels, COMPUTE: tl.constexpr):
    """`_unit_backward` of a and of b, summed over the channels c."""
    difference, h = _difference(va, vb, inverse_a, inverse_b, head, c, channels, COMPUTE)
    g = difference * (2 * scale * h)[:, None]
    return _unit_backward(va, g, inverse_a, norm_a), _unit_backward(vb, g, inverse_b, norm_b)


@triton.jit
def _store_gradients(
    va, vb, inverse_a, inverse_b, along_a, along_b, scale, head, grad_a, grad_b, head_sums,
    n, c, p, channels, pixels, CHANNELS_LAST: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """Write what the backward kernel gives for the channels c."""
    difference, h = _difference(va, vb, inverse_a, inverse_b, head, c, channels, COMPUTE)
    g = difference * (2 * scale * h)[:, None]
    offsets = _offsets(n, c, p, channels, pixels, CHANNELS_LAST)
    mask = (c < channels)[:, None] & (p < pixels)[None, :]
    if grad_a is not None:
        ga = g * inverse_a[None, :] - va * along_a[None, :]
        tl.store(grad_a + offsets, ga.to(grad_a.dtype.element_ty), mask=mask)
    if grad_b is not None:
        gb = vb * along_b[None, :] - g * inverse_b[None, :]
        tl.store(grad_b + offsets, gb.to(grad_b.dtype.element_ty), mask=mask)
    if head_sums is not None:
        row = tl.program_id(0).to(tl.int64) * channels
        tl.store(head_sums + row + c, tl.sum(difference * difference, 1) * scale, mask=c < channels)


@triton.jit
def lpips_distance_backward_kernel(
    a,
    b,
    head,
    grad,
    grad_a,
    grad_b,
    head_sums,
    channels,
    pixels,
    CHANNELS_LAST: tl.constexpr,
    ONCE: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """The gradients of a and b, and of the head in sums over tiles, `[N * tiles, channels]`; each may be None.

    grad: `[N]`. The other arguments are those of the forward.
    """
    tiles = tl.cdiv(pixels, BLOCK_P)
    n = (tl.program_id(0) // tiles).to(tl.int64)
    p = tl.program_id(0) % tiles * BLOCK_P + tl.arange(0, BLOCK_P)
    c = tl.arange(0, BLOCK_C)
    scale = tl.load(grad + n).to(COMPUTE) / pixels
    va, vb = _load_both(a, b, n, c, p, channels, pixels, CHANNELS_LAST, COMPUTE)
    inverse_a, norm_a, inverse_b, norm_b = _inverse_norms(
        va, vb, a, b, n, c, p, channels, pixels, CHANNELS_LAST, ONCE, COMPUTE, BLOCK_C
    )
    along_a, along_b = _along(va, vb, inverse_a, norm_a, inverse_b, norm_b, scale, head, c, channels, COMPUTE)
    if not ONCE:
        for first in range(BLOCK_C, channels, BLOCK_C):
            wa, wb = _load_both(a, b, n, first + c, p, channels, pixels, CHANNELS_LAST, COMPUTE)
            more_a, more_b = _along(wa, wb, inverse_a, norm_a, inverse_b, norm_b, scale, head, first + c, channels, COMPUTE)
            along_a += more_a
            along_b += more_b
    _store_gradients(
        va, vb, inverse_a, inverse_b, along_a, along_b, scale, head, grad_a, grad_b, head_sums,
        n, c, p, channels, pixels, CHANNELS_LAST, COMPUTE,
    )  # fmt: skip
    if not ONCE:
        for first in range(BLOCK_C, channels, BLOCK_C):
            wa, wb = _load_both(a, b, n, first + c, p, channels, pixels, CHANNELS_LAST, COMPUTE)
            _store_gradients(
                wa, wb, inverse_a, inverse_b, along_a, along_b, scale, head, grad_a, grad_b, head_sums,
                n, first + c, p, channels, pixels, CHANNELS_LAST, COMPUTE,
            )  # fmt: skip


def _plan(a: Tensor, size: int) -> tuple[bool, int, int]:
    """Whether the channels of a pixel fit one tile, and the tile's channels and pixels: about `size` elements in all."""
    channels, pixels = a.shape[1], a.shape[2] * a.shape[3]
    block_c = power_of_two(channels, MOST_CHANNELS)
    return channels <= block_c, block_c, power_of_two(pixels, elements(max(size // block_c, 8)))


def lpips_distance(a: Tensor, b: Tensor, head: Tensor) -> Tensor:
    """The registered operator `lpips_distance`."""
    layout = output_format(a)
    a, b = a.contiguous(memory_format=layout), b.contiguous(memory_format=layout)
    samples, channels, height, width = a.shape
    once, block_c, block_p = _plan(a, 4096)
    tiles = cdiv(height * width, block_p)
    sums = a.new_empty((samples, tiles), dtype=compute_dtype(a.dtype))
    launch(
        lpips_distance_forward_kernel,
        samples * tiles,
        a,
        b,
        head.contiguous(),
        sums,
        channels,
        height * width,
        CHANNELS_LAST=layout == torch.channels_last,
        ONCE=once,
        COMPUTE=compute_type(a.dtype),
        BLOCK_C=block_c,
        BLOCK_P=block_p,
        warps=8,
    )
    return sums.sum(1)


def lpips_distance_backward(
    grad: Tensor, a: Tensor, b: Tensor, head: Tensor, need_a: bool, need_b: bool, need_head: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The registered operator `lpips_distance_backward`."""
    layout = output_format(a)
    a, b = a.contiguous(memory_format=layout), b.contiguous(memory_format=layout)
    samples, channels, height, width = a.shape
    once, block_c, block_p = _plan(a, 4096)
    tiles = cdiv(height * width, block_p)
    grad_a = torch.empty_like(a) if need_a else None
    grad_b = torch.empty_like(b) if need_b else None
    head_sums = a.new_empty((samples * tiles, channels), dtype=compute_dtype(a.dtype)) if need_head else None
    launch(
        lpips_distance_backward_kernel,
        samples * tiles,
        a,
        b,
        head.contiguous(),
        grad.contiguous(),
        grad_a,
        grad_b,
        head_sums,
        channels,
        height * width,
        CHANNELS_LAST=layout == torch.channels_last,
        ONCE=once,
        COMPUTE=compute_type(a.dtype),
        BLOCK_C=block_c,
        BLOCK_P=block_p,
        warps=8,
    )
    return (
        a.new_empty(0) if grad_a is None else grad_a,
        b.new_empty(0) if grad_b is None else grad_b,
        head.new_empty(0) if head_sums is None else head_sums.sum(0).to(head.dtype),
    )
