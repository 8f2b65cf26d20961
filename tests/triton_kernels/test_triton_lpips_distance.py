# SPDX-License-Identifier: Apache-2.0
"""lpips_distance's Triton kernels against the reference."""

from __future__ import annotations

import pytest
import torch
from cases.lpips_distance import CASES, Case
from compare import LAYOUTS, compare, every_dtype_for, kernels, lay_out

from gangealing_fast.ops.lpips_distance import lpips_distance_backward_reference, lpips_distance_reference

# Beside the shared ones: more channels than a tile holds, and nothing at all.
MORE = {"two tiles of channels": Case((2, 600, 2, 3), dead=0.3), "no samples": Case((0, 3, 2, 2))}
NEEDS = ((True, True, True), (True, False, False), (False, True, False))


@pytest.mark.parametrize(("name", "dtype"), every_dtype_for([*CASES, *MORE], 2))
def test_values(name, dtype):
    lpips_distance, lpips_distance_backward = kernels("lpips_distance", "lpips_distance", "lpips_distance_backward")
    a, b, head = (CASES | MORE)[name].tensors(dtype)
    expected = lpips_distance_reference(a, b, head)
    grad = torch.randn_like(expected)
    for layout in LAYOUTS:
        values_a, values_b = lay_out(a, layout), lay_out(b, "contiguous" if layout == "strided" else layout)
        # Sums are float32 even for narrow features.
        tolerance = 1e-13 if dtype == torch.float64 else 2e-6
        compare([lpips_distance(values_a, values_b, head)], [expected], dtype, layout, tolerance)
        for needs in NEEDS if layout == "contiguous" else NEEDS[:1]:
            actual = lpips_distance_backward(grad, values_a, values_b, head, *needs)
            expected_grads = lpips_distance_backward_reference(grad, values_a, values_b, head, *needs)
            # Of few channels little may be left of the gradient beside what runs along the feature itself.
            compare(actual, expected_grads, dtype, layout, 1e-5 if dtype == torch.float32 else None)


def test_no_cancellation_where_features_are_parallel():
    (lpips_distance,) = kernels("lpips_distance", "lpips_distance")
    a = torch.rand(2, 8, 3, 3)
    assert lpips_distance(a, 7 * a, torch.ones(8)).max() < 1e-10


def test_nan_reaches_its_own_sample_only():
    (lpips_distance,) = kernels("lpips_distance", "lpips_distance")
    a = torch.rand(3, 8, 3, 3)
    a[1, 2, 0, 0] = float("nan")
    assert torch.isfinite(lpips_distance(a, torch.rand(3, 8, 3, 3), torch.ones(8))).tolist() == [True, False, True]
