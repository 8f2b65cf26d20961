# SPDX-License-Identifier: Apache-2.0
"""convex_upsample: values, derivatives, layouts, errors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import assert_close, assert_cpu_kernels, assert_golden, check_operator, golden

from gangealing_fast.ops import convex_upsample, convex_upsample_reference


def inputs(batch, height, width, factor, dtype=torch.float64, scale=2.0):
    flow = torch.randn(batch, height, width, 2, dtype=dtype)
    return [flow, torch.randn(batch, 9 * factor * factor, height, width, dtype=dtype) * scale]


@pytest.mark.parametrize(("height", "width", "factor"), [(5, 7, 2), (16, 17, 8), (1, 3, 3), (4, 1, 1)])
def test_operator(height, width, factor):
    check_operator(
        convex_upsample,
        convex_upsample_reference,
        inputs(2, height, width, factor),
        kwargs={"factor": factor},
        differentiable=(0, 1),
        batched=(0, 1),
        images=(0, 1),
        small=inputs(1, min(height, 2), min(width, 3), min(factor, 2))[:1]
        + inputs(1, min(height, 2), min(width, 3), min(factor, 8))[1:],
        compile=factor == 2,
        registration=factor == 2,
    ) if factor <= 3 else check_large(height, width, factor)


def check_large(height, width, factor):
    flow, mask = (t.requires_grad_() for t in inputs(2, height, width, factor, torch.float32))
    y, expected = convex_upsample(flow, mask, factor), convex_upsample_reference(flow, mask, factor)
    assert_close(y, expected, 2e-6)
    weight = torch.randn_like(y)
    actual, other = (torch.autograd.grad(result, (flow, mask), weight) for result in (y, expected))
    for a, b in zip(actual, other, strict=True):
        assert_close(a, b, 1e-5)


def test_golden():
    _, arrays = golden("convex_upsample")
    flow, mask = arrays["flow"].requires_grad_(), arrays["mask"].requires_grad_()
    y = convex_upsample(flow, mask)
    assert_golden(y, arrays["y"])
    grad_flow, grad_mask = torch.autograd.grad(y, (flow, mask), arrays["grad_out"])
    assert_golden(grad_flow, arrays["grad_flow"], gradient=True)
    assert_golden(grad_mask, arrays["grad_mask"], gradient=True)


def test_kernels_are_compiled():
    assert_cpu_kernels("convex_upsample", "convex_upsample_backward")


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(0, 2), st.integers(0, 20), st.integers(0, 20), st.integers(1, 9), st.floats(0, 200), st.integers(0, 99))
def test_fuzz(batch, height, width, factor, scale, seed):
    torch.manual_seed(seed)
    flow, mask = (t.requires_grad_() for t in inputs(batch, height, width, factor, torch.float32, scale))
    y, expected = convex_upsample(flow, mask, factor), convex_upsample_reference(flow, mask, factor)
    assert_close(y, expected, 1e-5)
    weight = torch.randn_like(y)
    actual, other = (torch.autograd.grad(result, (flow, mask), weight) for result in (y, expected))
    # The mask's gradient is a difference that may vanish: it is measured against what it is a difference of.
    assert_close(actual[0], other[0], 1e-5)
    scale = (weight.norm() * flow.norm() * factor).item()
    assert (actual[1] - other[1]).norm().item() <= 1e-5 * scale + 1e-30


def test_mixed_precision():
    flow, mask = inputs(2, 4, 5, 8, torch.float32)
    y = convex_upsample(flow, mask.bfloat16())
    assert y.dtype == torch.float32
    assert_close(y, convex_upsample_reference(flow, mask.bfloat16().float()), 2e-6)


def test_a_constant_flow_stays_constant_inside():
    flow, mask = torch.ones(1, 4, 4, 2), torch.randn(1, 576, 4, 4) * 30
    assert_close(convex_upsample(flow, mask)[:, 8:-8, 8:-8], torch.full((1, 16, 16, 2), 8.0), 1e-6)


def test_infinite_logits_choose_and_nan_stays_local():
    flow, mask = inputs(1, 3, 3, 2, torch.float32)
    mask.view(1, 9, 2, 2, 3, 3)[:, 1:] = float("-inf")
    expected = convex_upsample_reference(flow, mask, 2)
    assert_close(convex_upsample(flow, mask, 2), expected, 1e-6)
    mask[0, 0, 1, 1] = float("nan")
    assert torch.isnan(convex_upsample(flow, mask, 2)).sum() == 2


def test_threads_do_not_change_the_result():
    assert_cpu_kernels("convex_upsample", "convex_upsample_backward")
    flow, mask = (t.requires_grad_() for t in inputs(2, 16, 19, 8, torch.float32))
    weight, threads, results = torch.randn(2, 128, 152, 2), torch.get_num_threads(), []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        y = convex_upsample(flow, mask)
        results.append((y, *torch.autograd.grad(y, (flow, mask), weight)))
    torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"flow": 3}, TypeError, "flow must be a tensor"),
        ({"mask": torch.zeros(1, 576, 2, 3, dtype=torch.int64)}, TypeError, "mask has dtype torch.int64"),
        ({"flow": torch.zeros(2, 3, 2)}, ValueError, r"flow must have shape \[N, h, w, 2\]"),
        ({"flow": torch.zeros(1, 2, 2, 3)}, ValueError, "last axis of flow must be 2"),
        ({"mask": torch.zeros(1, 576, 3, 2)}, ValueError, r"mask must be of shape \[1, 576, 2, 3\]"),
        ({"factor": 4}, ValueError, r"factor 4 mask must be of shape \[1, 144, 2, 3\]"),
        ({"factor": 0}, ValueError, "factor must be a whole number from 1 to 64"),
        ({"factor": 2.0}, ValueError, "factor must be a whole number"),
    ],
)
def test_errors(arguments, error, message):
    arguments = {"flow": torch.zeros(1, 2, 3, 2), "mask": torch.zeros(1, 576, 2, 3), **arguments}
    with pytest.raises(error, match=message):
        convex_upsample(**arguments)
