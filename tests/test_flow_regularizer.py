# SPDX-License-Identifier: Apache-2.0
"""flow_regularizer: values, derivatives, layouts."""

from __future__ import annotations

import pytest
import torch
from cases.flow_regularizer import CASES, DIFFERENTIABLE, SMALL, TOLERANCE
from support import (
    assert_cpu_kernels,
    assert_golden,
    check_compile,
    check_empty_batch,
    check_gradients,
    check_registration,
    check_values,
    golden,
)

from gangealing_fast.ops import flow_regularizer, flow_regularizer_reference

FIRST = CASES[0]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_values(case):
    check_values(flow_regularizer, flow_regularizer_reference, case.tensors(), {}, DIFFERENTIABLE, (0,), tolerance=TOLERANCE)


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_derivatives(case):
    check_gradients(flow_regularizer, case.tensors(), {}, DIFFERENTIABLE)


def test_registration():
    check_registration(flow_regularizer, FIRST.tensors(), {}, DIFFERENTIABLE)
    check_compile(flow_regularizer, FIRST.tensors(), {}, DIFFERENTIABLE)
    check_empty_batch(flow_regularizer, FIRST.tensors(), {}, DIFFERENTIABLE)


@pytest.mark.parametrize("case", range(3))
def test_golden(case):
    _, arrays = golden(f"flow_regularizer_{case}")
    flow = arrays["flow"].requires_grad_()
    tv, identity = flow_regularizer(flow)
    assert_golden(tv.mean(), arrays["tv"])
    assert_golden(identity.mean(), arrays["identity"])
    assert_golden(tv, arrays["tv_per_sample"])
    for value, name in (
        (tv.mean(), "grad_tv"),
        (identity.mean(), "grad_identity"),
        ((tv * torch.tensor([1.0, 2.0, 3.0])).sum(), "grad_tv_per_sample_weighted_1_2_3"),
    ):
        (grad,) = torch.autograd.grad(value, flow, retain_graph=True)
        assert_golden(grad, arrays[name], gradient=True, what=name)


def test_kernels_are_compiled():
    assert_cpu_kernels("flow_regularizer", "flow_regularizer_backward")


def test_derivative_at_the_kink_is_one():
    flow = torch.tensor([0.0, 0.0, 1.0, -1.0]).view(1, 1, 2, 2).requires_grad_()
    (grad,) = torch.autograd.grad(flow_regularizer(flow)[0].sum(), flow)
    assert grad.flatten().tolist() == [-0.5, 0.5, 0.5, -0.5]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_not_finite_values_reach_their_own_sample_only(value):
    flow = torch.randn(3, 9, 40, 2)
    flow[1, 4, 5, 0] = value
    tv, identity = flow_regularizer(flow)
    assert torch.isfinite(tv).tolist() == torch.isfinite(identity).tolist() == [True, False, True]


def test_threads_do_not_change_the_result():
    assert_cpu_kernels("flow_regularizer", "flow_regularizer_backward")
    flow = torch.randn(2, 129, 65, 2).requires_grad_()
    threads, results = torch.get_num_threads(), []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        tv, identity = flow_regularizer(flow)
        results.append((tv, identity, torch.autograd.grad((tv + identity).sum(), flow)[0]))
    torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
