# SPDX-License-Identifier: Apache-2.0
"""Bias, noise, leaky ReLU and gain in one pass; the backward with its sums over channels and over samples in one pass.

A program handles a tile of channels times pixels of one sample, whichever of the two axes lies contiguous. The sums of the
backward are partial sums per tile, added up afterwards: the same order in every run, and no atomics.

`activate` and `activate_backward` also serve modulated_conv2d: a factor per sample and channel before all else, and in the
backward the sum over pixels of gradient times what the activation was given, recovered from its output.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from gangealing_fast.kernels._launch import cdiv, compute_type, contiguous, elements, launch, power_of_two
from gangealing_fast.ops._common import compute_dtype, output_format


@triton.jit
def tile(channels, pixels, CHANNELS_LAST: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr):
    """This program's sample, tile numbers, channels, pixels, and its elements' offsets and mask [BLOCK_C, BLOCK_P]."""
    program = tl.program_id(0)
    channel_tiles = tl.cdiv(channels, BLOCK_C)
    pixel_tiles = tl.cdiv(pixels, BLOCK_P)
    number = program % (channel_tiles * pixel_tiles)
    n = (program // (channel_tiles * pixel_tiles)).to(tl.int64)
    # Neighbouring programs read neighbouring memory.
    if CHANNELS_LAST:
        channel_tile = number % channel_tiles
        pixel_tile = number // channel_tiles
    else:
        channel_tile = number // pixel_tiles
        pixel_tile = number % pixel_tiles
    c = channel_tile * BLOCK_C + tl.arange(0, BLOCK_C)
    p = pixel_tile * BLOCK_P + tl.arange(0, BLOCK_P)
    if CHANNELS_LAST:
        within = c[:, None] + p.to(tl.int64)[None, :] * channels
    else:
        within = c.to(tl.int64)[:, None] * pixels + p[None, :]
    offsets = n * channels * pixels + within
    mask = (c < channels)[:, None] & (p < pixels)[None, :]
    return n, channel_tile, pixel_tile, c, p, offsets, mask


@triton.jit
def _added(b, noise, strength, n, c, p, channels, pixels, SHARED_NOISE: tl.constexpr, COMPUTE: tl.constexpr):
    """Noise [1, BLOCK_P] plus bias [BLOCK_C, 1], each where it is given."""
    added = tl.zeros((1, 1), COMPUTE)
    if noise is not None:
        first = 0 if SHARED_NOISE else n * pixels
        scaled = tl.load(noise + first + p, mask=p < pixels, other=0.0).to(COMPUTE) * tl.load(strength).to(COMPUTE)
        added = added + scaled[None, :]
    if b is not None:
        added = added + tl.load(b + c, mask=c < channels, other=0.0).to(COMPUTE)[:, None]
    return added


@triton.jit
def activated(v, slope, gain):
    """gain * lrelu(v), whose sign bit is clear where v is positive alone: so the backward knows it where v was rounded to 0."""
    return tl.where(v > 0, v, tl.abs(v) * -1.0 * slope) * gain


@triton.jit
def was_positive(y):
    """Whether the argument of `activated` was positive, from its result y, float32 or float64."""
    if y.dtype == tl.float64:
        return (y.to(tl.int64, bitcast=True) >= 0) & (y == y)
    else:
        return (y.to(tl.int32, bitcast=True) >= 0) & (y == y)


@triton.jit
def bias_act_forward_kernel(
    x,
    b,
    noise,
    strength,
    factor,
    y,
    channels,
    pixels,
    SLOPE: tl.constexpr,
    GAIN: tl.constexpr,
    SHARED_NOISE: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    n, _, _, c, p, offsets, mask = tile(channels, pixels, CHANNELS_LAST, BLOCK_C, BLOCK_P)
    v = tl.load(x + offsets, mask=mask).to(COMPUTE)
    if factor is not None:  # [N, C]
        v *= tl.load(factor + n * channels + c, mask=c < channels).to(COMPUTE)[:, None]
    v += _added(b, noise, strength, n, c, p, channels, pixels, SHARED_NOISE, COMPUTE)
    gain = tl.full((1, 1), GAIN, COMPUTE)
    slope = tl.full((1, 1), SLOPE, COMPUTE)
    v = activated(v, slope, gain)
    tl.store(y + offsets, v.to(y.dtype.element_ty), mask=mask)


@triton.jit
def bias_act_backward_kernel(
    grad,
    y,
    b,
    noise,
    strength,
    factor,
    grad_x,
    bias_sums,
    plane_sums,
    products,
    channels,
    pixels,
    SLOPE: tl.constexpr,
    GAIN: tl.constexpr,
    SHARED_NOISE: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    n, channel_tile, pixel_tile, c, p, offsets, mask = tile(channels, pixels, CHANNELS_LAST, BLOCK_C, BLOCK_P)
    g = tl.load(grad + offsets, mask=mask, other=0.0).to(COMPUTE)
    v = tl.load(y + offsets, mask=mask, other=0.0).to(COMPUTE)
    gain = tl.full((1, 1), GAIN, COMPUTE)
    slope = tl.full((1, 1), SLOPE, COMPUTE)
    g = g * gain
    positive = was_positive(v)
    g = tl.where(positive, g, g * slope)
    result = g
    if factor is not None:  # [N, C]
        result = g * tl.load(factor + n * channels + c, mask=c < channels, other=0.0).to(COMPUTE)[:, None]
    tl.store(grad_x + offsets, result.to(grad_x.dtype.element_ty), mask=mask)
    row = n * tl.cdiv(pixels, BLOCK_P) + pixel_tile
    if bias_sums is not None:  # [N, pixel tiles, C]
        tl.store(bias_sums + row * channels + c, tl.sum(g, 1), mask=c < channels)
    if products is not None:  # [N, pixel tiles, C]
        v = v / gain
        v = tl.where(positive, v, v / slope)
        v -= _added(b, noise, strength, n, c, p, channels, pixels, SHARED_NOISE, COMPUTE)
        tl.store(products + row * channels + c, tl.sum(g * v, 1), mask=c < channels)
    if plane_sums is not None:  # [N, channel tiles, pixels]
        row = n * tl.cdiv(channels, BLOCK_C) + channel_tile
        tl.store(plane_sums + row * pixels + p, tl.sum(g, 0), mask=p < pixels)


def dense(x: Tensor) -> tuple[Tensor, bool, int, int, int]:
    """`x` without gaps, whether its channels lie contiguous, samples, channels and pixels."""
    layout = output_format(x)
    pixels = math.prod(x.shape[2:])
    channels_last = layout == torch.channels_last or pixels == 1
    return x.contiguous(memory_format=layout), channels_last, x.shape[0], x.shape[1], pixels


def blocks(channels: int, pixels: int, channels_last: bool, across: int) -> tuple[int, int]:
    """Sizes of a tile (channels, pixels) of about 1024 elements, at least `across` (where there are as many) on the slow axis."""
    size = elements(1024)
    if channels_last:
        block_c = power_of_two(channels, size // across)
        return block_c, power_of_two(pixels, size // block_c)
    block_p = power_of_two(pixels, size // across)
    return power_of_two(channels, size // block_p), block_p


def activate(
    x: Tensor,
    b: Tensor | None,
    noise: Tensor | None,
    noise_strength: Tensor | None,
    factor: Tensor | None,
    slope: float,
    gain: float,
) -> Tensor:
    """gain * lrelu(x * factor + noise * noise_strength + b), factor `[N, C]`, in the dtype and layout of `x`."""
    x, channels_last, samples, channels, pixels = dense(x)
    y = torch.empty_like(x)
    if y.numel() == 0:
        return y
    block_c, block_p = blocks(channels, pixels, channels_last, 1)
    launch(
        bias_act_forward_kernel,
        samples * cdiv(channels, block_c) * cdiv(pixels, block_p),
        x,
        contiguous(b),
        contiguous(noise),
        noise_strength,
        contiguous(factor),
        y,
        channels,
        pixels,
        SLOPE=slope,
        GAIN=gain,
        SHARED_NOISE=noise is not None and noise.shape[0] == 1,
        CHANNELS_LAST=channels_last,
        COMPUTE=compute_type(x.dtype),
        BLOCK_C=block_c,
        BLOCK_P=block_p,
    )
    return y


def activate_backward(
    grad: Tensor, y: Tensor, slope: float, gain: float, *,
    need_bias: bool = False, noise_batch: int = -1, need_products: bool = False,
    added: tuple[Tensor | None, Tensor | None, Tensor | None] = (None, None, None), factor: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradient of the activation's argument, times `factor` `[N, C]`; and without that: its sums over all but channels; over
    channels; its products.

    The products `[N, C]` are its sums over pixels times the argument without `added`, which is bias, noise and strength;
    slope must not be 0 then. What is not needed is `[0]`; a noise_batch of -1 needs no sums over channels.
    """
    layout, compute = output_format(y), compute_dtype(y.dtype)
    y, channels_last, samples, channels, pixels = dense(y)
    grad_x = torch.empty_like(y)
    # A row of partial sums is as long as a tile's side: 16 keeps them to a sixteenth of the activations.
    block_c, block_p = blocks(channels, pixels, channels_last, 16)
    channel_tiles, pixel_tiles = cdiv(channels, block_c), cdiv(pixels, block_p)
    bias, products = (
        y.new_empty((samples, pixel_tiles, channels) if needed else 0, dtype=compute) for needed in (need_bias, need_products)
    )
    plane = y.new_empty((samples, channel_tiles, pixels) if noise_batch >= 0 else 0, dtype=compute)
    if y.numel():
        b, noise, noise_strength = added
        launch(
            bias_act_backward_kernel,
            samples * channel_tiles * pixel_tiles,
            grad.contiguous(memory_format=layout),
            y,
            contiguous(b),
            contiguous(noise),
            noise_strength,
            contiguous(factor),
            grad_x,
            bias if need_bias else None,
            plane if noise_batch >= 0 else None,
            products if need_products else None,
            channels,
            pixels,
            SLOPE=slope,
            GAIN=gain,
            SHARED_NOISE=noise is not None and noise.shape[0] == 1,
            CHANNELS_LAST=channels_last,
            COMPUTE=compute_type(y.dtype),
            BLOCK_C=block_c,
            BLOCK_P=block_p,
        )
    if need_bias:
        bias = bias.sum((0, 1))
    if need_products:
        products = products.sum(1)
    if noise_batch >= 0:
        plane = plane.sum((0, 1), keepdim=True) if noise_batch == 1 else plane.sum(1, keepdim=True)
        plane = plane.reshape(noise_batch, 1, *y.shape[2:])
    return grad_x, bias, plane, products


def bias_act(x: Tensor, b: Tensor | None, noise: Tensor | None, noise_strength: Tensor | None, slope: float, gain: float) -> Tensor:
    """The registered operator `bias_act`."""
    return activate(x, b, noise, noise_strength, None, slope, gain)


def bias_act_backward(
    grad: Tensor, y: Tensor, slope: float, gain: float, need_bias: bool, noise_batch: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The registered operator `bias_act_backward`."""
    return activate_backward(grad, y, slope, gain, need_bias=need_bias, noise_batch=noise_batch)[:3]
