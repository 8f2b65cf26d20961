# SPDX-License-Identifier: Apache-2.0
"""Adam and the running average of all parameters in one launch, driven by a table of addresses.

A row of the table `[T, 12]` holds the five addresses of a run of elements, their number, and six numbers as the bits of float64,
so that the step's schedule compiles nothing anew. A second table says which piece of which row a program updates. Both are copied
from pinned memory without waiting for the device; a CUDA graph would replay the numbers of the step it was captured in.

The compiler knows nothing of an address that it reads from a table, so it would load one element at a time. Rows whose addresses
and number allow it therefore go to a launch that promises as much (`TOGETHER`); what is left of their tensors goes to another.
"""

from __future__ import annotations

import functools
import struct
from collections import defaultdict

import torch
import triton
import triton.language as tl
from torch import Tensor

from gangealing_fast.kernels._launch import cdiv, compute_type, elements, launch
from gangealing_fast.ops.adam_ema import adam_ema_reference

# Elements of which 16 bits each take 16 bytes.
TOGETHER = 8
TRITON_TYPES = {torch.float64: tl.float64, torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


@triton.jit
def _number(row, index, COMPUTE: tl.constexpr):
    return tl.load(row + index).to(tl.float64, bitcast=True).to(COMPUTE)


@triton.jit
def _array(row, index, TYPE: tl.constexpr, ALIGNMENT: tl.constexpr):
    """The array whose address the row holds, a multiple of ALIGNMENT bytes."""
    return tl.multiple_of(tl.load(row + index).to(tl.pointer_type(TYPE)), ALIGNMENT)


@triton.jit
def adam_ema_kernel(
    table, pieces,
    AVERAGES: tl.constexpr, GRADIENT: tl.constexpr, COMPUTE: tl.constexpr, TOGETHER: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Update a piece. TOGETHER: a divisor of every row's number of elements; above 1 all addresses are multiples of 16 bytes."""
    ALIGNMENT: tl.constexpr = 16 if TOGETHER > 1 else 1
    piece = pieces + 2 * tl.program_id(0)
    row = table + tl.load(piece) * 12
    i = tl.load(piece + 1) * BLOCK + tl.arange(0, BLOCK)
    mask = i < tl.multiple_of(tl.load(row + 5), TOGETHER)
    parameters = _array(row, 0, COMPUTE, ALIGNMENT) + i
    gradients = _array(row, 1, GRADIENT, ALIGNMENT) + i
    first_moments = _array(row, 2, COMPUTE, ALIGNMENT) + i
    second_moments = _array(row, 3, COMPUTE, ALIGNMENT) + i
    g = tl.load(gradients, mask=mask, other=0.0).to(COMPUTE)
    m = tl.load(first_moments, mask=mask, other=0.0)
    v = tl.load(second_moments, mask=mask, other=0.0)
    m += (g - m) * _number(row, 6, COMPUTE)
    v += (g * g - v) * _number(row, 7, COMPUTE)
    tl.store(first_moments, m, mask=mask)
    tl.store(second_moments, v, mask=mask)
    deviation = tl.sqrt(v * _number(row, 9, COMPUTE)) + _number(row, 10, COMPUTE)
    theta = tl.load(parameters, mask=mask, other=0.0) - _number(row, 8, COMPUTE) * m / deviation
    tl.store(parameters, theta, mask=mask)
    if AVERAGES:
        averages = _array(row, 4, COMPUTE, ALIGNMENT) + i
        a = tl.load(averages, mask=mask, other=0.0)
        tl.store(averages, a + (theta - a) * _number(row, 11, COMPUTE), mask=mask)


def _bits(value: float) -> int:
    return struct.unpack("q", struct.pack("d", value))[0]


@functools.lru_cache(maxsize=16)
def _pieces(sizes: tuple[int, ...], block: int, device: torch.device) -> Tensor:
    """[(row, piece)] of all programs, int64 `[P, 2]`."""
    rows = [(row, piece) for row, size in enumerate(sizes) for piece in range(cdiv(size, block))]
    return torch.tensor(rows, dtype=torch.int64, device=device).reshape(-1, 2)


def _to_device(rows: list[list[int]], device: torch.device) -> Tensor:
    table = torch.tensor(rows, dtype=torch.int64)
    return table.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else table.to(device)


def _same_memory(tensors: list[Tensor]) -> bool:
    """Whether element i in memory is the same element of all of them, and none has gaps."""
    first = tensors[0]
    dense = first.is_contiguous() or (first.dim() == 4 and first.is_contiguous(memory_format=torch.channels_last))
    return dense and all(t.stride() == first.stride() for t in tensors)


def _runs(arrays: list[Tensor], block: int) -> list[tuple[int, int, int]]:
    """(elements together, first element, number of elements) of the parts of a tensor that take launches of their own."""
    count = arrays[0].numel()
    if any(array.data_ptr() % 16 for array in arrays):
        return [(1, 0, count)]
    whole = count if count % TOGETHER == 0 else count // block * block
    return [run for run in ((TOGETHER, 0, whole), (1, whole, count - whole)) if run[2]]


def adam_ema(
    parameters: list[Tensor],
    gradients: list[Tensor],
    first_moments: list[Tensor],
    second_moments: list[Tensor],
    averages: list[Tensor],
    steps: list[float],
    learning_rate: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    decay: float,
) -> None:
    """The registered operator `adam_ema`. Tensors with gaps, or with state laid out unlike themselves, take the reference."""
    block = elements(2048)
    groups: dict[tuple[torch.dtype, torch.dtype, int], list[list[int]]] = defaultdict(list)
    kept = []  # gradients copied into another layout, until the launch
    for index, (parameter, gradient) in enumerate(zip(parameters, gradients, strict=True)):
        state = [first_moments[index], second_moments[index], *([averages[index]] if averages else [])]
        if not _same_memory([parameter, *state]):
            adam_ema_reference(
                [parameter], [gradient], [state[0]], [state[1]], state[2:], [steps[index]],
                learning_rate=learning_rate, beta1=beta1, beta2=beta2, epsilon=epsilon, decay=decay,
            )  # fmt: skip
            continue
        if gradient.stride() != parameter.stride():
            gradient = torch.empty_like(parameter, dtype=gradient.dtype).copy_(gradient)
            kept.append(gradient)
        arrays = [parameter, gradient, *state]
        t = steps[index]
        numbers = (
            1 - beta1, 1 - beta2, learning_rate / (1 - beta1**t), 1 / (1 - beta2**t), epsilon, 1 - decay
        )  # fmt: skip
        for together, first, count in _runs(arrays, block):
            addresses = [array.data_ptr() + first * array.itemsize for array in arrays] + ([] if averages else [0])
            row = [*addresses, count, *map(_bits, numbers)]
            groups[parameter.dtype, gradient.dtype, together].append(row)
    for (dtype, gradient_dtype, together), rows in groups.items():
        device = parameters[0].device
        pieces = _pieces(tuple(row[5] for row in rows), block, device)
        launch(
            adam_ema_kernel,
            len(pieces),
            _to_device(rows, device),
            pieces,
            AVERAGES=bool(averages),
            GRADIENT=TRITON_TYPES[gradient_dtype],
            COMPUTE=compute_type(dtype),
            TOGETHER=together,
            BLOCK=block,
            warps=8,
        )
