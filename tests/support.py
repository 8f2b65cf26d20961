# SPDX-License-Identifier: Apache-2.0
"""What operator and model tests share: golden vectors, tolerances, and one thorough check for any operator."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden.recipe import named_state
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gangealing_fast.ops import _extension, _levels
from gangealing_fast.runtime.errors import UserError

SHARED = Path(__file__).resolve().parents[1].parent / "shared"
GOLDEN = Path(__file__).resolve().parent / "golden"

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
# Largest relative error ||a - b|| / ||b|| against the reference; (output, gradient). The narrow types are held to
# `within_twice` instead: they may err by no more than twice what the reference errs in the same dtype.
TOLERANCE = {torch.float64: (1e-12, 1e-12), torch.float32: (2e-6, 1e-5)}
GOLDEN_TOLERANCE = (1e-4, 1e-3)
OPCHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


# ---- shared files


def shared(*parts: str) -> Path:
    """A file beside the repository (`../shared/...`); skips the test where it is absent."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"../shared/{'/'.join(parts)} is not on this machine")
    return path


# ---- golden vectors


@cache
def golden_index() -> dict[str, Any]:
    """The settings of every golden case."""
    return json.loads((GOLDEN / "index.json").read_text())


def golden(name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Settings and arrays (as tensors) of a golden case."""
    with np.load(GOLDEN / f"{name}.npz") as arrays:
        return golden_index()[name], {key: torch.from_numpy(np.array(arrays[key])) for key in arrays.files}


def golden_state(shapes: Mapping[str, Sequence[int]], seed: int = 0) -> dict[str, Tensor]:
    """The state dict a golden case was made with, drawn by name."""
    return {key: torch.from_numpy(value) for key, value in named_state(shapes, seed).items()}


def golden_lpips_state(shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """The weights of LPIPS that a golden case was made with: those of convolutions are multiplied by sqrt(2 / fan_in)."""
    state = golden_state(shapes)
    for key, value in state.items():
        if key.startswith("net.") and key.endswith("weight"):
            value *= (2 / value[0].numel()) ** 0.5
    return state


# ---- comparison


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """||actual - expected|| / ||expected|| in float64; NaN counts as infinite, 0 / 0 as 0."""
    actual, expected = actual.detach().double(), expected.detach().double()
    assert actual.shape == expected.shape, f"shape {list(actual.shape)}, expected {list(expected.shape)}"
    if not torch.isfinite(actual).all():
        return float("inf")
    difference, scale = (actual - expected).norm().item(), expected.norm().item()
    return difference / scale if scale else difference


def assert_close(actual: Tensor, expected: Tensor, tolerance: float, what: str = "result") -> None:
    """Fail unless the relative error is at most `tolerance`."""
    error = relative_error(actual, expected)
    assert error <= tolerance, f"{what}: relative error {error:.3g} exceeds {tolerance:.3g}"


def within_twice(actual: Tensor, narrow: Tensor, wide: Tensor, what: str = "result") -> None:
    """Fail unless `actual` errs against the float32 result by at most twice what torch's own narrow result does."""
    error, own = relative_error(actual, wide), relative_error(narrow, wide)
    floor = torch.finfo(actual.dtype).eps / 4
    assert error <= max(2 * own, floor), f"{what}: error {error:.3g}, torch's own in {actual.dtype} {own:.3g}"


def assert_golden(actual: Tensor, expected: Tensor, *, gradient: bool = False, what: str = "result") -> None:
    """Fail unless a float32 result agrees with its golden vector."""
    assert_close(actual, expected, GOLDEN_TOLERANCE[gradient], what)


# ---- kernels


def assert_cpu_kernels(*operators: str) -> None:
    """Fail unless compiled CPU kernels serve `operators` (names without namespace).

    Skips where the extension is not built, unless GGF_REQUIRE_EXTENSION is set.
    """
    if not _extension.load():
        if os.environ.get("GGF_REQUIRE_EXTENSION", "0") in ("", "0"):
            pytest.skip("the extension is not built")
        pytest.fail("GGF_REQUIRE_EXTENSION is set but there is no compiled library")
    for operator in operators:
        name = f"gangealing_fast::{operator}"
        assert torch._C._dispatch_has_kernel_for_dispatch_key(name, "CPU"), f"{name} has no compiled CPU kernel"


class Recorder(TorchDispatchMode):
    """Keeps one call of every operator of this package, with the arguments as they came."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[Any, tuple[tuple, dict]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "gangealing_fast":
            self.calls.setdefault(func, (args, kwargs or {}))
        return func(*args, **(kwargs or {}))


def _fresh(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone().requires_grad_(value.requires_grad)
    if isinstance(value, list | tuple):
        return type(value)(_fresh(item) for item in value)
    return value


def _outputs(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


def _gradients(function: Callable, tensors: Sequence[Tensor], differentiable: Sequence[int], kwargs: dict) -> tuple:
    """Outputs and gradients of sum(output * fixed noise)."""
    tensors = [t.detach().requires_grad_(i in differentiable) for i, t in enumerate(tensors)]
    outputs = _outputs(function(*tensors, **kwargs))
    if not differentiable:
        return outputs, []
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(o.shape, generator=generator, dtype=torch.float64).to(o.dtype) for o in outputs]
    leaves = [tensors[i] for i in differentiable]
    return outputs, list(torch.autograd.grad(outputs, leaves, weights, allow_unused=True, materialize_grads=True))


def strided(x: Tensor) -> Tensor:
    """The values of `x` in a layout that is neither contiguous nor channels-last."""
    wide = torch.zeros((*x.shape[:-1], 2 * x.shape[-1]), dtype=x.dtype)
    wide[..., ::2] = x.detach()
    return wide[..., ::2]


def check_operator(
    function: Callable[..., Any],
    reference: Callable[..., Any],
    tensors: Sequence[Tensor],
    *,
    kwargs: dict[str, Any] | None = None,
    differentiable: Sequence[int] = (0,),
    batched: Sequence[int] = (0,),
    images: Sequence[int] = (0,),
    dtypes: Sequence[torch.dtype] = DTYPES,
    tolerance: dict[torch.dtype, tuple[float, float]] = TOLERANCE,
    second_order: bool = True,
    small: Sequence[Tensor] | None = None,
    compile: bool = True,
    registration: bool = True,
) -> None:
    """Hold a public operator to everything the design asks: see the parts below.

    Args:
        function, reference: called as `f(*tensors, **kwargs)`; return a tensor or several.
        tensors: float64 inputs.
        differentiable: indices of the tensors that get gradients.
        batched: indices of the tensors whose first axis is the batch (for the empty batch).
        images: indices of the tensors that are also tried channels-last and strided.
        tolerance: relative errors per wide dtype, (output, gradient).
        small: tiny float64 inputs for gradcheck, where `tensors` would take long.
        second_order: whether gradgradcheck applies.
        compile: whether to try torch.compile(fullgraph=True).
        registration: whether to run the opchecks; once per way of calling the operator is enough.
    """
    kwargs = kwargs or {}
    check_values(function, reference, tensors, kwargs, differentiable, images, dtypes, tolerance)
    check_empty_batch(function, tensors, kwargs, differentiable, batched)
    check_gradients(function, small or tensors, kwargs, differentiable, second_order)
    if registration:
        check_registration(function, small or tensors, kwargs, differentiable, second_order)
    if compile:
        check_compile(function, tensors, kwargs, differentiable)


def check_values(function, reference, tensors, kwargs, differentiable=(0,), images=(0,), dtypes=DTYPES, tolerance=TOLERANCE):
    """Outputs and gradients against the reference, in every dtype and layout; the layout must be kept."""
    for dtype in dtypes:
        inputs = [t.to(dtype) if t.is_floating_point() else t for t in tensors]
        wide = [t.to(torch.float32) if t.is_floating_point() else t for t in inputs]
        expected, expected_grads = _gradients(reference, inputs, differentiable, kwargs)
        exact, exact_grads = _gradients(reference, wide, differentiable, kwargs)
        layouts = {"contiguous": inputs}
        if images:
            layouts["strided"] = [strided(t) if i in images else t for i, t in enumerate(inputs)]
            if all(inputs[i].dim() == 4 for i in images):
                layouts["channels-last"] = [
                    t.contiguous(memory_format=torch.channels_last) if i in images else t for i, t in enumerate(inputs)
                ]
        for layout, arguments in layouts.items():
            outputs, grads = _gradients(function, arguments, differentiable, kwargs)
            assert len(outputs) == len(expected)
            for i, output in enumerate(outputs):
                where = f"{layout} {dtype} output {i}"
                assert output.dtype == expected[i].dtype, where
                if dtype in tolerance:
                    assert_close(output, expected[i], tolerance[dtype][0], where)
                else:
                    within_twice(output, expected[i], exact[i], where)
            for i, grad in enumerate(grads):
                where = f"{layout} {dtype} gradient of input {differentiable[i]}"
                assert grad.dtype == inputs[differentiable[i]].dtype, where
                if dtype in tolerance:
                    assert_close(grad, expected_grads[i], tolerance[dtype][1], where)
                else:
                    within_twice(grad, expected_grads[i], exact_grads[i], where)


def check_empty_batch(function, tensors, kwargs, differentiable=(0,), batched=(0,)):
    """A batch of no samples gives an empty output and empty or zero gradients."""
    inputs = [t.float()[:0] if i in batched else t for i, t in enumerate(tensors)]
    inputs = [t.float() if t.is_floating_point() else t for t in inputs]
    outputs, grads = _gradients(function, inputs, differentiable, kwargs)
    full = _outputs(function(*[t.float() if t.is_floating_point() else t for t in tensors], **kwargs))
    for output, other in zip(outputs, full, strict=True):
        assert output.shape == (0, *other.shape[1:]) or output.shape == other.shape
    for i, grad in zip(differentiable, grads, strict=True):
        assert grad.shape == inputs[i].shape and not grad.any()


def check_gradients(function, tensors, kwargs, differentiable=(0,), second_order=True):
    """gradcheck and gradgradcheck in float64."""
    inputs = [
        t.detach().double().clone().requires_grad_(i in differentiable) if t.is_floating_point() else t
        for i, t in enumerate(tensors)
    ]
    if differentiable:
        assert torch.autograd.gradcheck(lambda *a: function(*a, **kwargs), inputs, fast_mode=False)
        if second_order:
            assert torch.autograd.gradgradcheck(lambda *a: function(*a, **kwargs), inputs, fast_mode=False)


def check_registration(function, tensors, kwargs, differentiable=(0,), second_order=True):
    """The four opchecks on every operator of this package that a forward and a differentiable backward call.

    Without second order an operator's backward is checked as one that nothing is to be derived from.
    """
    inputs = [
        t.detach().float().clone().requires_grad_(i in differentiable) if t.is_floating_point() else t
        for i, t in enumerate(tensors)
    ]
    with Recorder() as recorder:
        outputs = _outputs(function(*inputs, **kwargs))
        if differentiable:
            weights = [torch.rand_like(o).requires_grad_() for o in outputs]
            torch.autograd.grad(outputs, [inputs[i] for i in differentiable], weights, create_graph=second_order)
    assert recorder.calls, "no registered operator was called"
    for operator, (args, keywords) in recorder.calls.items():
        if not second_order and "_backward" in operator.name():
            args = tuple(a.detach() if isinstance(a, Tensor) else a for a in args)
        torch.library.opcheck(operator, _fresh(args), {k: _fresh(v) for k, v in keywords.items()}, test_utils=OPCHECKS)


def check_compile(function, tensors, kwargs, differentiable=(0,)):
    """torch.compile(fullgraph=True) changes neither outputs nor gradients."""
    inputs = [t.float() if t.is_floating_point() else t for t in tensors]
    torch._dynamo.reset()
    compiled = torch.compile(lambda *a: function(*a, **kwargs), fullgraph=True, backend="aot_eager")
    outputs, grads = _gradients(compiled, inputs, differentiable, {})
    expected, expected_grads = _gradients(function, inputs, differentiable, kwargs)
    for actual, other in zip([*outputs, *grads], [*expected, *expected_grads], strict=True):
        assert_close(actual, other, 1e-6, "compiled")


@contextlib.contextmanager
def at_level(name: str) -> Iterator[None]:
    """The compiled kernels at a vector level, and then at the one that they had; skips the test where there is no such level."""
    if not _extension.load():
        pytest.skip("the extension is not built")
    before = _levels.in_use()
    try:
        _levels.choose(name)
    except UserError as reason:
        pytest.skip(str(reason))
    try:
        yield
    finally:
        _levels.choose(before)
