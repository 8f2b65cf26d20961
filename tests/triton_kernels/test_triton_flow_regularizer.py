# SPDX-License-Identifier: Apache-2.0
"""flow_regularizer's Triton kernels against the reference."""

from __future__ import annotations

import pytest
import torch
from cases.flow_regularizer import CASES
from compare import compare, every_dtype_for, kernels
from support import strided

from gangealing_fast.ops._reference import reference_vjp
from gangealing_fast.ops.flow_regularizer import flow_regularizer_reference


@pytest.mark.parametrize(("case", "dtype"), every_dtype_for(CASES))
def test_values(case, dtype):
    flow_regularizer, flow_regularizer_backward = kernels("flow_regularizer", "flow_regularizer", "flow_regularizer_backward")
    (flow,) = case.tensors(dtype)
    expected = flow_regularizer_reference(flow)
    grads = [torch.randn_like(value) for value in expected]
    (expected_grad,) = reference_vjp(flow_regularizer_reference, (flow,), grads)
    for values in (flow, strided(flow)):
        # Sums are float32 even for narrow flows.
        compare(flow_regularizer(values), expected, dtype, tolerance=1e-13 if dtype == torch.float64 else 2e-6)
        compare([flow_regularizer_backward(*grads, values)], [expected_grad], dtype)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_not_finite_values_reach_their_own_sample_only(value):
    (flow_regularizer,) = kernels("flow_regularizer", "flow_regularizer")
    flow = torch.randn(3, 9, 40, 2)
    flow[1, 4, 5, 0] = value
    for sums in flow_regularizer(flow):
        assert torch.isfinite(sums).tolist() == [True, False, True]
