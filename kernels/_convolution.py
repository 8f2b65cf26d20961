# SPDX-License-Identifier: Apache-2.0
"""Implicit matrix product for a convolution whose input and output channels are scaled per sample, in channels-last order.

    y[n, p, o] = act(out_scale[n, o] * sum over taps t and i of weight[o, i, t] * in_scale[n, i] * x[n, p at t, i])

One kernel for the convolution, for its adjoint (`TRANSPOSED`, which is also the transposed convolution), stride 1 or 2. An
adjoint of stride 2 is computed by the four parities of the output's row and column, each of which meets only its own taps.
A program makes BLOCK_M pixels of one sample and parity times BLOCK_N channels; tensor cores multiply, float32 accumulates.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from gangealing_fast.kernels._launch import INTERPRETED, cdiv, contiguous, launch
from gangealing_fast.kernels.bias_act import activated
from gangealing_fast.runtime.precision import tf32_convolutions


@triton.jit
def _pixels(tile, parity_y, parity_x, out_height, out_width, PARITIES: tl.constexpr, BLOCK_M: tl.constexpr):
    """Row and column of the pixels of a tile, counted among those of their parity, and which of them exist."""
    columns = tl.maximum(tl.cdiv(out_width - parity_x, PARITIES), 1)
    rows = tl.cdiv(out_height - parity_y, PARITIES)
    m = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    row = m // columns
    column = m % columns
    return row, column, (m < rows * columns) & (column * PARITIES + parity_x < out_width)


@triton.jit
def _taps(position, parity, PADDING: tl.constexpr, KERNEL: tl.constexpr, STRIDE: tl.constexpr, TRANSPOSED: tl.constexpr):
    """Along one axis the first tap that `parity` meets, how many it meets, and the input position under the first.

    The taps are first, first + STRIDE, ... if TRANSPOSED, the position one less with every tap; else all, the position one more.
    """
    if TRANSPOSED:
        first = (parity + PADDING) % STRIDE
        taps = (KERNEL - first + STRIDE - 1) // STRIDE
        base = position + (parity + PADDING - first) // STRIDE
    else:
        first = 0
        taps = KERNEL
        base = position * STRIDE - PADDING
    return first, taps, base


@triton.jit
def _load_input(x, in_scale, sample, n, i, in_channels, height, width, in_y, in_x, valid):
    """The input [pixels, channels i], scaled, zeros outside."""
    inside = valid & (in_y >= 0) & (in_y < height) & (in_x >= 0) & (in_x < width)
    source = sample + (in_y * width + in_x)[:, None] * in_channels + i[None, :]
    a = tl.load(source, mask=inside[:, None] & (i < in_channels)[None, :], other=0.0)
    if in_scale is not None:
        scale = tl.load(in_scale + n * in_channels + i, mask=i < in_channels, other=0.0)
        a = (a.to(tl.float32) * scale[None, :]).to(x.dtype.element_ty)
    return a


@triton.jit
def _activated(
    total, out_scale, bias, noise, strength, n, o, pixel, valid_m, out_channels, pixels,
    SHARED_NOISE: tl.constexpr, SLOPE: tl.constexpr, GAIN: tl.constexpr,
):  # fmt: skip
    """out_scale, noise and activation, those of them that are not None, applied to the convolution [pixels, channels]."""
    valid_o = o < out_channels
    if out_scale is not None:
        total *= tl.load(out_scale + n * out_channels + o, mask=valid_o, other=0.0)[None, :]
    if noise is not None:
        first = 0 if SHARED_NOISE else n * pixels
        added = tl.load(noise + first + pixel, mask=valid_m, other=0.0).to(tl.float32) * tl.load(strength).to(tl.float32)
        total += added[:, None]
    if bias is not None:
        total += tl.load(bias + o, mask=valid_o, other=0.0).to(tl.float32)[None, :]
        total = activated(total, SLOPE, GAIN)
    return total


@triton.jit
def modulated_convolution_kernel(
    x, weight, in_scale, out_scale, bias, noise, strength, y, original, products,
    in_channels, out_channels, height, width, out_height, out_width,
    weight_sample, weight_in, weight_out, weight_tap,
    PADDING: tl.constexpr, KERNEL: tl.constexpr, STRIDE: tl.constexpr, TRANSPOSED: tl.constexpr,
    SHARED_NOISE: tl.constexpr, SLOPE: tl.constexpr, GAIN: tl.constexpr,
    PRECISION: tl.constexpr, WIDEN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One tile of y, BLOCK_M pixels of one sample and parity times BLOCK_N channels: the formula of this file's head.

    x `[N, height, width, in_channels]`, y and original `[N, out_height, out_width, out_channels]`; in_scale and out_scale
    `[N, channels]`, bias `[out_channels]`, noise `[N, out_height, out_width]` or, if SHARED_NOISE, `[1, ...]`, strength `[1]`: each
    may be None. weight_sample (0: all samples share the weight), weight_in, weight_out and weight_tap are the strides of weight.
    products `[N, parities * tiles, out_channels]`, or None: sums over the tile's pixels of original times the convolution before
    out_scale. WIDEN: multiply in float32.
    """
    PARITIES: tl.constexpr = STRIDE if TRANSPOSED else 1
    tiles_n = tl.cdiv(out_channels, BLOCK_N)
    tiles_m = tl.cdiv(tl.cdiv(out_height, PARITIES) * tl.cdiv(out_width, PARITIES), BLOCK_M)
    # Programs that follow one another share their pixels: the activations are larger than the weight.
    program = tl.program_id(0)
    tile_n = program % tiles_n
    tile_m = program // tiles_n % tiles_m
    parity = program // tiles_n // tiles_m % (PARITIES * PARITIES)
    n = (program // tiles_n // tiles_m // (PARITIES * PARITIES)).to(tl.int64)
    parity_y = parity // PARITIES
    parity_x = parity % PARITIES
    row, column, valid_m = _pixels(tile_m, parity_y, parity_x, out_height, out_width, PARITIES, BLOCK_M)
    o = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    valid_o = o < out_channels

    first_y, taps_y, base_y = _taps(row, parity_y, PADDING, KERNEL, STRIDE, TRANSPOSED)
    first_x, taps_x, base_x = _taps(column, parity_x, PADDING, KERNEL, STRIDE, TRANSPOSED)
    steps = tl.cdiv(in_channels, BLOCK_K)
    sample = x + n * height * width * in_channels
    weight += n * weight_sample
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in range(taps_y * taps_x * steps):
        tap = step // steps
        tap_y = tap // taps_x
        tap_x = tap % taps_x
        i = step % steps * BLOCK_K + tl.arange(0, BLOCK_K)
        if TRANSPOSED:
            in_y = base_y - tap_y
            in_x = base_x - tap_x
            t = (first_y + tap_y * STRIDE) * KERNEL + first_x + tap_x * STRIDE
        else:
            in_y = base_y + tap_y
            in_x = base_x + tap_x
            t = tap_y * KERNEL + tap_x
        a = _load_input(x, in_scale, sample, n, i, in_channels, height, width, in_y, in_x, valid_m)
        w = tl.load(
            weight + i[:, None] * weight_in + o[None, :] * weight_out + t * weight_tap,
            mask=(i < in_channels)[:, None] & valid_o[None, :],
            other=0.0,
        )
        if WIDEN:
            a = a.to(tl.float32)
            w = w.to(tl.float32)
        total = tl.dot(a, w, total, input_precision=PRECISION)

    pixel = (row * PARITIES + parity_y) * out_width + column * PARITIES + parity_x
    target = n * out_height * out_width * out_channels + pixel[:, None] * out_channels + o[None, :]
    mask = valid_m[:, None] & valid_o[None, :]
    if products is not None:
        other = tl.load(original + target, mask=mask, other=0.0).to(tl.float32)
        tl.store(products + (program // tiles_n).to(tl.int64) * out_channels + o, tl.sum(total * other, 0), mask=valid_o)
    total = _activated(
        total, out_scale, bias, noise, strength, n, o, pixel, valid_m, out_channels, out_height * out_width,
        SHARED_NOISE, SLOPE, GAIN,
    )  # fmt: skip
    tl.store(y + target, total.to(y.dtype.element_ty), mask=mask)


@dataclass(frozen=True)
class Blocks:
    """Pixels, output and input channels of a tile, and how a program is run.

    scaled: the weight is scaled for each sample before the launch, instead of each tile of the input within it. The tensor cores
    of a Hopper then read the input from shared memory, where it was copied to, instead of from registers.
    """

    m: int
    n: int
    k: int
    warps: int
    stages: int
    scaled: bool = False

    def __str__(self) -> str:
        how = f"{self.m}x{self.n}x{self.k} warps {self.warps} stages {self.stages}"
        return f"{how}, weight scaled before" if self.scaled else how


@dataclass(frozen=True)
class Card:
    """What the choice of tiles depends on: multiprocessors, bytes of shared memory that a block may have, compute capability."""

    multiprocessors: int
    shared: int
    major: int


# What every card since Ampere has, for tensors that are on none.
ANY_CARD = Card(multiprocessors=100, shared=99 * 1024, major=8)
INTERPRETER = Card(multiprocessors=1, shared=99 * 1024, major=8)


@functools.cache
def card_of(device: torch.device) -> Card:
    """The card behind `device`."""
    if device.type != "cuda":
        return INTERPRETER if INTERPRETED else ANY_CARD
    found = torch.cuda.get_device_properties(device)
    return Card(found.multi_processor_count, found.shared_memory_per_block_optin, found.major)


def _every_tile(dtype: torch.dtype, card: Card) -> list[Blocks]:
    """All tiles that the card has room for."""
    if dtype == torch.float32:
        # A tile of float32 takes twice the shared memory of one of half the width.
        tiles = [Blocks(128, 128, 32, 8, 2), Blocks(128, 64, 32, 8, 3), Blocks(64, 128, 32, 8, 3)]
    else:
        tiles = [Blocks(128, 128, 32, 8, 3), Blocks(128, 64, 32, 8, 3), Blocks(64, 128, 32, 8, 3)]
        tiles += [Blocks(128, 128, 64, 8, 3), Blocks(64, 64, 64, 4, 3)]
        if card.major >= 9:
            # Two groups of four warps multiply 64 x 256 each: the largest product of a Hopper's tensor cores.
            tiles += [Blocks(128, 256, 64, 8, 3), Blocks(256, 128, 64, 8, 3), Blocks(128, 128, 64, 8, 4)]
    few = 3 if dtype == torch.float32 else 4
    tiles += [Blocks(m, n, 32, 4, few) for m, n in ((64, 64), (32, 64), (64, 32), (16, 64))]
    tiles += [Blocks(128, 16, 32, 4, 3), Blocks(16, 16, 32, 2, 3)]
    return [t for t in tiles if t.stages * t.k * (t.m + t.n) * dtype.itemsize <= card.shared]


def _estimate(tile: Blocks, samples: int, pixels: int, channels: int, card: Card) -> float:
    """A number that grows with the time a tile should take; it only decides which tiles are tried.

    The multiprocessors make tiles in rounds. A round is as long as multiplying, and as reading the tile's two sides, take.
    """
    rounds = cdiv(samples * cdiv(pixels, tile.m) * cdiv(channels, tile.n), card.multiprocessors)
    return rounds * (tile.m * tile.n + 32 * (tile.m + tile.n)) * (1.0 if tile.k == 64 else 1.05)


def block_choices(
    samples: int, pixels: int, channels: int, dtype: torch.dtype, card: Card, *, scaled: bool = False, products: bool = False
) -> list[Blocks]:
    """The few tiles worth trying, of different sizes, the one that should do best first.

    pixels, channels: of the result, of one sample. scaled: whether the input is scaled, so that the weight may be instead.
    products: whether sums of products are wanted; they need registers that the largest tiles have not left.
    """
    tiles = [tile for tile in _every_tile(dtype, card) if not products or tile.m * tile.n <= 128 * 128]
    ranked = sorted(tiles, key=lambda tile: _estimate(tile, samples, pixels, channels, card))
    sizes = list({(tile.m, tile.n): tile for tile in reversed(ranked)}.values())[::-1]
    return [*sizes[:2], replace(sizes[0], scaled=True)] if scaled else sizes[:3]


def _precision(dtype: torch.dtype) -> str:
    """What torch's convolutions do with float32: TF32 where allowed; else three products of TF32, which keep float32's digits."""
    return "tf32" if dtype == torch.float32 and tf32_convolutions() else "tf32x3"


def _channels_last(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous(memory_format=torch.channels_last)


def _check_offsets(**tensors: Tensor) -> None:
    """Raise if an offset within a sample, or within the weight, needs more than 32 bits."""
    for name, tensor in tensors.items():
        if tensor.numel() >= 2**31:
            raise ValueError(
                f"modulated_conv2d: {name.replace('_', ' ')} of shape {list(tensor.shape)} has 2^31 elements or more, too many."
            )


def _registers(dtype: torch.dtype, blocks: Blocks) -> int | None:
    """Most registers of a thread. The compiler for sm_100, left to itself, spills some to save others; in float32, held to 128,
    that for sm_86 spills."""
    return None if dtype == torch.float32 else 128 if blocks.m * blocks.n <= 8192 else 255


def _scaled_weight(weight: Tensor, in_scale: Tensor, adjoint: bool) -> Tensor:
    """The weight `[Cout, Cin, k, k]` for each sample, `[N, Cout, k, k, Cin]`, multiplied in float32 and rounded once."""
    out_channels, in_channels, k = weight.shape[:3]
    scaled = weight.new_empty((in_scale.shape[0], out_channels, k, k, in_channels))
    scale = in_scale[:, :, None, None, None] if adjoint else in_scale[:, None, None, None, :]
    return torch.mul(weight.permute(0, 2, 3, 1)[None], scale, out=scaled)


def convolve(
    x: Tensor, weight: Tensor, in_scale: Tensor | None, out_scale: Tensor | None, *,
    output_size: tuple[int, int], blocks: Blocks,
    stride: int = 1, padding: int = 0, transposed: bool = False, adjoint: bool = False,
    bias: Tensor | None = None, noise: Tensor | None = None, noise_strength: Tensor | None = None,
    slope: float = 1.0, gain: float = 1.0, original: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """The scaled convolution of `x` `[N, I, H, W]`, channels-last, and the products asked for.

    weight: `[Cout, Cin, k, k]` of x's dtype, any strides. adjoint: x has Cout channels and the result Cin, else the other way
    round. transposed: each input pixel is spread instead of each output pixel gathered. scales: `[N, channels]`, float32.
    original: `[N, O, *output_size]`; if it is given the second result is `[N, O]`, the sums over pixels of it times the result
    before out_scale. Raises ValueError if a sample or the weight has 2^31 elements or more.
    """
    x = x.contiguous(memory_format=torch.channels_last)
    samples, in_channels, height, width = x.shape
    out_channels, kernel = weight.shape[1 if adjoint else 0], weight.shape[2]
    # One stride for both axes of the taps.
    weight = weight.contiguous(memory_format=torch.channels_last if weight.shape[1] > 1 else torch.contiguous_format)
    by_sample, tap = 0, weight.stride(3)
    by_out, by_in = weight.stride()[:2][:: -1 if adjoint else 1]
    if blocks.scaled and in_scale is not None:
        weight = _scaled_weight(weight, in_scale, adjoint)
        in_scale, by_sample, tap = None, weight.stride(0), weight.stride(3)
        by_out, by_in = (weight.stride(1), weight.stride(4))[:: -1 if adjoint else 1]
    y = torch.empty((samples, out_channels, *output_size), dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    _check_offsets(x=x[:1], weight=weight[:1] if by_sample else weight, the_result=y[:1])
    parities = stride if transposed else 1
    tiles = parities**2 * cdiv(cdiv(output_size[0], parities) * cdiv(output_size[1], parities), blocks.m)
    products = None if original is None else x.new_empty((samples, tiles, out_channels), dtype=torch.float32)
    launch(
        modulated_convolution_kernel, samples * tiles * cdiv(out_channels, blocks.n),
        x, weight, *map(contiguous, (in_scale, out_scale, bias, noise)), noise_strength, y, _channels_last(original), products,
        in_channels, out_channels, height, width, *output_size, by_sample, by_in, by_out, tap,
        PADDING=padding, KERNEL=kernel, STRIDE=stride, TRANSPOSED=transposed,
        SHARED_NOISE=noise is not None and noise.shape[0] == 1, SLOPE=slope, GAIN=gain,
        PRECISION=_precision(x.dtype), WIDEN=INTERPRETED,
        BLOCK_M=blocks.m, BLOCK_N=blocks.n, BLOCK_K=blocks.k,
        warps=blocks.warps, stages=blocks.stages, registers=_registers(x.dtype, blocks),
    )  # fmt: skip
    return y, None if products is None else products.sum(1)
