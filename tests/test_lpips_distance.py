# SPDX-License-Identifier: Apache-2.0
"""lpips_distance: values, both derivatives, dead pixels."""

from __future__ import annotations

import pytest
import torch
from cases.lpips_distance import CASES
from support import TOLERANCE, assert_close, assert_cpu_kernels, check_operator, check_values, strided

from gangealing_fast.ops import lpips_distance, lpips_distance_reference

# results are float32 whatever the features; gradients are rounded to the features' type once
NARROW = {torch.bfloat16: (2e-6, 8e-3), torch.float16: (2e-6, 1e-3)}


def test_operator():
    check_operator(
        lambda a, b, h: lpips_distance([a], [b], [h]),
        lpips_distance_reference,
        [torch.randn(3, 5, 4, 7).double(), torch.randn(3, 5, 4, 7).double(), torch.rand(5).double()],
        differentiable=(0, 1, 2),
        batched=(0, 1),
        images=(0, 1),
        tolerance={**TOLERANCE, **NARROW},
        small=[torch.randn(2, 3, 2, 2).double(), torch.randn(2, 3, 2, 2).double(), torch.rand(3).double()],
    )


@pytest.mark.parametrize("name", CASES)
def test_values(name):
    inputs = CASES[name].tensors()
    check_values(
        lambda a, b, h: lpips_distance([a], [b], [h]), lpips_distance_reference, inputs, {}, (0, 1, 2), (0, 1),
        tolerance={**TOLERANCE, **NARROW},
    )  # fmt: skip


def test_compiled_kernels_serve():
    assert_cpu_kernels("lpips_distance", "lpips_distance_backward")


def test_layouts_may_differ():
    a, b, head = CASES["many pixels"].tensors(torch.float32)
    expected = lpips_distance_reference(a, b, head)
    assert_close(lpips_distance([a], [b.contiguous(memory_format=torch.channels_last)], [head]), expected, 1e-6)
    assert_close(lpips_distance([a.contiguous(memory_format=torch.channels_last)], [strided(b)], [head]), expected, 1e-6)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_threads_do_not_change_a_bit(layout):
    a, b, head = (t.requires_grad_() for t in CASES["many pixels"].tensors(torch.float32))
    a, b = (t.detach().contiguous(memory_format=layout).requires_grad_() for t in (a, b))
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            distance = lpips_distance([a], [b], [head])
            results.append([distance, *torch.autograd.grad(distance.sum(), (a, b, head))])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(x, y) for x, y in zip(*results, strict=True))


def test_formula_and_sum_over_taps():
    a, b = torch.rand(2, 3, 4, 4).double(), torch.rand(2, 3, 4, 4).double()
    head = torch.rand(1, 3, 1, 1).double()
    difference = a / (a.norm(dim=1, keepdim=True) + 1e-10) - b / (b.norm(dim=1, keepdim=True) + 1e-10)
    expected = (difference.square() * head).sum(1).mean((1, 2))
    assert_close(lpips_distance([a], [b], [head]), expected, 1e-12)
    plain = lpips_distance([a, a[..., :1]], [b, b[..., :1]])
    assert_close(plain, lpips_distance([a], [b]) + lpips_distance([a[..., :1]], [b[..., :1]]), 1e-12)


def test_equal_features_are_at_distance_zero_and_scale_does_not_count():
    a = torch.rand(2, 8, 3, 3)
    assert not lpips_distance([a], [a]).any()
    assert lpips_distance([a], [7 * a]).max() < 1e-10


def test_dead_pixels_give_finite_gradients():
    a = torch.zeros(1, 4, 2, 2, requires_grad=True)
    b = torch.ones(1, 4, 2, 2, requires_grad=True)
    distance = lpips_distance([a], [b])
    assert_close(distance, torch.ones(1), 1e-6)
    distance.sum().backward()
    assert not a.grad.any() and torch.isfinite(b.grad).all()


def test_frozen_head_gets_no_gradient():
    a, head = torch.rand(1, 3, 2, 2, requires_grad=True), torch.rand(3)
    lpips_distance([a], [torch.rand(1, 3, 2, 2)], [head]).sum().backward()
    assert head.grad is None and a.grad.abs().sum() > 0
