# SPDX-License-Identifier: Apache-2.0
"""Axes of no length, of every operator, in every combination: the reference's result (an empty sum is 0), or one sentence."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from calls import CALLS
from emptied import AXES, emptied, made, run
from torch import Tensor

from gangealing_fast import ops
from gangealing_fast.ops.modulated_conv2d import convolution_algorithm


def spoil_memory() -> None:
    """What is handed out next without being written holds NaN."""
    for size in (8, 64, 400, 4000):
        for _ in range(4):
            torch.full((size,), torch.nan)


def agrees(operator: str, axes: tuple[str, ...], dtype: torch.dtype = torch.float32, **keywords: Any) -> None:
    """Fail unless kernels and reference give the same, or the same sentence."""
    tensors = made(operator, axes, dtype)
    results: list[list[Tensor] | str] = []
    for kind in (ops.fused, ops.reference):
        spoil_memory()
        try:
            with kind():
                results.append(run(operator, tensors, **keywords))
        except (ValueError, TypeError) as error:
            results.append(str(error))
    actual, expected = results
    if isinstance(expected, str):
        assert actual == expected and re.fullmatch(rf"{operator}: .*\.", expected)
        return
    assert not isinstance(actual, str), actual
    for a, e in zip(actual, expected, strict=True):
        assert a.shape == e.shape and a.dtype == e.dtype
        torch.testing.assert_close(a, e, rtol=2e-2 if dtype == torch.bfloat16 else 1e-4, atol=1e-5)


def test_every_axis_is_named():
    assert set(AXES) == set(CALLS)
    for operator, tensors in AXES.items():
        assert {name: len(axes) for name, axes in tensors.items()} == {n: len(s) for n, s in CALLS[operator].tensors.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("operator", "axes"), emptied(), ids=lambda value: value if isinstance(value, str) else "-".join(value))
def test_empty_axes(operator, axes, dtype):
    agrees(operator, axes, dtype)


@pytest.mark.parametrize("axes", [("C",), ("O",), ("N",), ("C", "O"), ("C", "N")], ids="-".join)
@pytest.mark.parametrize("algorithm", ["library", "fused", "auto"])
@pytest.mark.parametrize("resampling", ["up", "down", None])
@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_every_route_of_the_convolution(axes, algorithm, resampling, kernel):
    """By Winograd, by torch's convolution, as one pass to few channels; none of them reads what nothing has written."""
    shapes = {"x": [2, 3, 8, 8], "weight": [4, 3, kernel, kernel], "style": [2, 3]}
    names = {"x": ("N", "C"), "weight": ("O", "C"), "style": ("N", "C")}
    for name, axis in names.items():
        for position, letter in enumerate(axis):
            shapes[name][position] *= letter not in axes
    for activated in (False, True):
        tensors = {name: torch.full(shape, 0.5) for name, shape in shapes.items()}
        if activated:
            tensors["bias"] = torch.linspace(-1, 1, shapes["weight"][0])
        keywords = {resampling: True} if resampling else {}
        results = []
        for kind in (ops.fused, ops.reference):
            spoil_memory()
            leaves = [t.requires_grad_() for t in tensors.values()]
            with kind(), convolution_algorithm(algorithm):
                y = ops.modulated_conv2d(**dict(zip(tensors, leaves, strict=True)), **keywords)
                results.append([y, *torch.autograd.grad(y.sum(), leaves, allow_unused=True, materialize_grads=True)])
        for a, e in zip(*results, strict=True):
            assert a.shape == e.shape
            torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-5)
