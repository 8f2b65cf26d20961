# SPDX-License-Identifier: Apache-2.0
"""convex_upsample: values, derivatives, layouts."""

from __future__ import annotations

import pytest
import torch
from cases.convex_upsample import CASES, DIFFERENTIABLE, SMALL, TOLERANCE
from support import (
    assert_close,
    assert_cpu_kernels,
    assert_golden,
    at_level,
    check_compile,
    check_empty_batch,
    check_gradients,
    check_registration,
    check_values,
    golden,
)

from gangealing_fast.ops import _levels, convex_upsample, convex_upsample_reference

FIRST = CASES[0]


def inputs(batch, height, width, factor, dtype=torch.float64, scale=2.0):
    flow = torch.randn(batch, height, width, 2, dtype=dtype)
    return [flow, torch.randn(batch, 9 * factor * factor, height, width, dtype=dtype) * scale]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_values(case):
    tensors = case.tensors()
    if tensors[0].numel():
        # A peaked softmax leaves its mask next to no gradient: what there is of it is rounding.
        differentiable = (0,) if case.name == "peaked" else DIFFERENTIABLE
        check_values(convex_upsample, convex_upsample_reference, tensors, case.kwargs, differentiable, (0, 1), tolerance=TOLERANCE)
    else:
        assert convex_upsample(*tensors, **case.kwargs).shape == convex_upsample_reference(*tensors, **case.kwargs).shape


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_derivatives(case):
    check_gradients(convex_upsample, case.tensors(), case.kwargs, DIFFERENTIABLE)


def test_registration():
    check_registration(convex_upsample, SMALL[0].tensors(), SMALL[0].kwargs, DIFFERENTIABLE)
    check_compile(convex_upsample, FIRST.tensors(), FIRST.kwargs, DIFFERENTIABLE)
    check_empty_batch(convex_upsample, FIRST.tensors(), FIRST.kwargs, DIFFERENTIABLE, DIFFERENTIABLE)


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


def test_mixed_precision():
    flow, mask = inputs(2, 4, 5, 8, torch.float32)
    y = convex_upsample(flow, mask.bfloat16())
    assert y.dtype == torch.float32
    assert_close(y, convex_upsample_reference(flow, mask.bfloat16().float()), 2e-6)


def test_a_constant_flow_stays_constant_inside():
    flow, mask = torch.ones(1, 4, 4, 2), torch.randn(1, 576, 4, 4) * 30
    assert_close(convex_upsample(flow, mask)[:, 8:-8, 8:-8], torch.full((1, 16, 16, 2), 8.0), 1e-6)


@pytest.mark.parametrize("level", _levels.LEVELS)
def test_exponential_of_every_size(level):
    """Two logits at a time, from equal to far apart, against float64: the weight is that of a logistic function."""
    distance = torch.linspace(0, 100, 4001)
    mask = torch.full((1, 9, 1, 4001), -1000.0)
    mask[0, 4], mask[0, 3] = 0.0, -distance
    flow = torch.zeros(1, 1, 4001, 2)
    flow[0, 0, ::2] = 1.0
    expected = torch.where(torch.arange(4001) % 2 == 0, 0.0, torch.sigmoid(-distance.double()))[1:]
    with at_level(level):
        actual = convex_upsample(flow, mask, 1)[0, 0, 1:, 0].double()
    odd = torch.arange(1, 4001) % 2 == 1
    error = ((actual - expected).abs() / expected.clamp(min=1e-37))[odd]
    # What csrc/cpu/exponential.h promises of exp, three times as much without fused multiply-adds; then the rounding of the logits'
    # difference, of the sum and of the quotient.
    exponential = (1 + distance[1:][odd] / 5) * (3 if level == "default" else 1)
    # Beyond 65 the other seven, which stop falling at exp(-87), begin to count.
    assert (error <= (exponential + 3 + 0.5 * distance[1:][odd]) * 2.0**-24)[distance[1:][odd] < 65].all()


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
