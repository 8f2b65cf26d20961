# SPDX-License-Identifier: Apache-2.0
"""convex_upsample's Triton kernels against the reference."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from cases.convex_upsample import CASES
from compare import compare, every_dtype_for, kernels
from support import strided

from gangealing_fast.ops._reference import reference_vjp
from gangealing_fast.ops.convex_upsample import convex_upsample_reference


@pytest.mark.parametrize(("case", "dtype"), every_dtype_for(CASES, 1))
def test_values(case, dtype):
    convex_upsample, convex_upsample_backward = kernels("convex_upsample", "convex_upsample", "convex_upsample_backward")
    flow, mask = case.tensors(dtype)
    expected = convex_upsample_reference(flow, mask, case.factor).contiguous()
    grad = torch.randn(expected.shape, dtype=torch.float64).to(dtype)
    expected_grads = reference_vjp(partial(convex_upsample_reference, factor=case.factor), (flow, mask), grad)
    for f, m, g in ((flow, mask, grad), (strided(flow), strided(mask), strided(grad))):
        compare([convex_upsample(f, m, case.factor)], [expected], dtype)
        compare(convex_upsample_backward(g, f, m, case.factor), expected_grads, dtype)


def test_flow_and_mask_may_differ_in_dtype():
    convex_upsample, convex_upsample_backward = kernels("convex_upsample", "convex_upsample", "convex_upsample_backward")
    flow, mask = CASES[0].tensors(torch.float32)
    mask = mask.half()
    expected = convex_upsample_reference(flow, mask, 2).contiguous()
    compare([convex_upsample(flow, mask, 2)], [expected], torch.float32)
    expected_grads = reference_vjp(partial(convex_upsample_reference, factor=2), (flow, mask), expected)
    compare(convex_upsample_backward(expected, flow, mask, 2), expected_grads, torch.float16)


def test_infinite_logits():
    (convex_upsample,) = kernels("convex_upsample", "convex_upsample")
    flow, mask = CASES[0].tensors(torch.float32)
    mask.view(2, 9, 4, 5, 7)[:, 3:] = float("-inf")
    mask[0, 0, 0, 0] = float("nan")
    expected = convex_upsample_reference(flow, mask, 2)
    actual = convex_upsample(flow, mask, 2)
    assert torch.equal(actual.isnan(), expected.isnan())
    compare([actual.nan_to_num()], [expected.nan_to_num().contiguous()], torch.float32)
