# SPDX-License-Identifier: Apache-2.0
"""adain: values, both derivatives, layouts, statistics far from zero."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from cases.adain import CASES, DIFFERENTIABLE, SMALL
from support import (
    assert_close,
    assert_cpu_kernels,
    check_compile,
    check_empty_batch,
    check_gradients,
    check_registration,
    check_values,
)

from gangealing_fast.ops import adain, adain_reference


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_reference(case):
    check_values(adain, adain_reference, case.tensors(), {"eps": case.eps}, DIFFERENTIABLE, images=(0,), tolerance=case.tolerance)


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_derivatives(case):
    check_gradients(adain, case.tensors(), {"eps": case.eps}, DIFFERENTIABLE)


def test_registration_and_compilation():
    inputs = SMALL[0].tensors()
    check_registration(adain, inputs, {}, DIFFERENTIABLE)
    check_compile(adain, CASES[0].tensors(), {}, DIFFERENTIABLE)
    check_empty_batch(adain, inputs, {}, DIFFERENTIABLE, DIFFERENTIABLE)


def test_torch():
    x, scale, shift = CASES[0].tensors()
    expected = F.instance_norm(x) * scale[..., None, None] + shift[..., None, None]
    assert_close(adain(x, scale, shift), expected, 1e-12)


def test_kernels_are_compiled():
    assert_cpu_kernels("adain", "adain_backward")


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_mean_far_from_zero_keeps_the_variance(layout):
    """In one pass over squares a mean of 4000 spreads would leave float32 no digit of the variance."""
    x = torch.randn(2, 70, 40, 50) + 4000
    y = adain(x.contiguous(memory_format=layout), torch.ones(2, 70), torch.zeros(2, 70))
    assert_close(y, adain_reference(x.double(), torch.ones(2, 70).double(), torch.zeros(2, 70).double()), 1e-3)
    assert (y.var((2, 3), correction=0) - 1).abs().max() < 1e-3


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_value_that_is_not_finite_stays_in_its_channel(value, layout):
    x = torch.randn(2, 67, 9, 5)
    x[1, 3, 4, 2] = value
    x = x.contiguous(memory_format=layout).requires_grad_()
    y = adain(x, torch.ones(2, 67), torch.zeros(2, 67))
    (grad,) = torch.autograd.grad(y.nan_to_num().sum(), x)
    for result in (y, grad):
        bad = ~result.isfinite().all((2, 3))
        assert bad.nonzero().tolist() == [[1, 3]]


def test_float32_vectors_beside_half_precision():
    x = torch.randn(2, 3, 4, 4).bfloat16().requires_grad_()
    scale, shift = torch.randn(2, 2, 3).unbind()
    y = adain(x, scale.requires_grad_(), shift.requires_grad_())
    y.sum().backward()
    assert y.dtype == x.grad.dtype == torch.bfloat16 and scale.grad.dtype == shift.grad.dtype == torch.float32


def test_little_is_kept_for_the_backward():
    x, scale, shift = torch.randn(2, 3, 64, 64).requires_grad_(), torch.randn(2, 3), torch.randn(2, 3)
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        adain(x, scale, shift)
    assert sum(tensor.numel() for tensor in kept if tensor.data_ptr() != x.data_ptr()) == 3 * 6


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_threads_do_not_change_the_result(layout):
    x = torch.randn(3, 130, 31, 33).contiguous(memory_format=layout).requires_grad_()
    scale, shift = (t.requires_grad_() for t in torch.randn(2, 3, 130).unbind())
    threads, results = torch.get_num_threads(), []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        y = adain(x, scale, shift)
        results.append((y, *torch.autograd.grad(y.square().sum(), (x, scale, shift))))
    torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
