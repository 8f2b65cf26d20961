# SPDX-License-Identifier: Apache-2.0
"""Layouts and tolerances of the comparison of a kernel with its reference."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from support import DTYPES, relative_error, strided
from torch import Tensor

pytest.importorskip("triton")

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
LAYOUTS = ("contiguous", "channels-last", "strided")
# Both compute in float32 (float64) and round once; sums are added up in another order. The interpreter cuts bfloat16 off
# instead of rounding it.
TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-6, torch.bfloat16: 8e-3, torch.float16: 5e-4}


def _moved(value: Any, device: str) -> Any:
    """Tensors and lists of tensors on `device`, strides kept."""
    if isinstance(value, Tensor) and value.device.type != device:
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=device).copy_(value)
    if isinstance(value, list | tuple):
        return type(value)(_moved(item, device) for item in value)
    return value


def kernels(module: str, *names: str) -> list[Callable[..., Any]]:
    """Functions of gangealing_fast.kernels.<module> that take and return CPU tensors, wherever they compute."""

    def one(name: str) -> Callable[..., Any]:
        function = getattr(importlib.import_module(f"gangealing_fast.kernels.{module}"), name)
        return lambda *arguments: _moved(function(*_moved(arguments, DEVICE)), "cpu")

    return [one(name) for name in names]


def every_dtype_for(cases: Sequence[Any], few: int = 3) -> list[Any]:
    """(case, dtype) for parametrize: all cases in float32, the first `few` in the other dtypes too (the interpreter is slow)."""
    others = [(case, dtype) for dtype in DTYPES if dtype != torch.float32 for case in cases[:few]]
    return [
        pytest.param(case, dtype, id=f"{getattr(case, 'name', case)}-{str(dtype).removeprefix('torch.')}")
        for case, dtype in [(case, torch.float32) for case in cases] + others
    ]


def lay_out(x: Tensor, layout: str) -> Tensor | None:
    """`x` in that layout, None where its rank has none."""
    if layout == "contiguous":
        return x.contiguous()
    if layout == "strided":
        return strided(x)
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else None


def compare(
    actual: Sequence[Tensor], expected: Sequence[Tensor], dtype: torch.dtype, what: str = "", tolerance: float | None = None
) -> None:
    """Fail unless shapes, dtypes and strides agree, and the values to the tolerance of inputs of `dtype`."""
    assert len(actual) == len(expected)
    for i, (a, b) in enumerate(zip(actual, expected, strict=True)):
        assert a.dtype == b.dtype, f"{what} {i}: {a.dtype}, expected {b.dtype}"
        assert a.shape == b.shape, f"{what} {i}: {list(a.shape)}, expected {list(b.shape)}"
        assert a.stride() == b.stride() or a.numel() <= 1, f"{what} {i}: strides {a.stride()}, expected {b.stride()}"
        error = relative_error(a, b) if a.numel() else 0.0
        assert error <= (tolerance or TOLERANCE[dtype]), f"{what} {i} in {dtype}: relative error {error:.3g}"
