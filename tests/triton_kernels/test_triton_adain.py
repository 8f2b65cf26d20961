# SPDX-License-Identifier: Apache-2.0
"""adain's Triton kernels against the references."""

from __future__ import annotations

import pytest
import torch
from cases.adain import CASES
from compare import LAYOUTS, compare, every_dtype_for, kernels, lay_out

from gangealing_fast.ops.adain import adain_backward_reference, adain_reference


@pytest.mark.parametrize(("case", "dtype"), every_dtype_for(CASES, 2))
def test_values(case, dtype):
    adain, adain_backward = kernels("adain", "adain", "adain_backward")
    x, scale, shift = case.tensors(dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    scale, shift = scale.to(wide), shift.to(wide)
    grad = torch.randn(x.shape, dtype=torch.float64).to(dtype)
    loose = case.tolerance.get(dtype)
    for layout in LAYOUTS:
        values, gradient = lay_out(x, layout), lay_out(grad, layout)
        if values is None:
            continue
        y, mean, rstd = adain(values, scale, shift, case.eps)
        compare([y], [adain_reference(values, scale, shift, case.eps)], dtype, layout, loose and loose[0])
        expected = adain_backward_reference(gradient, values, scale, mean, rstd)
        actual = adain_backward(gradient, values, scale, mean, rstd, case.eps)
        compare(actual, expected, dtype, layout, loose and loose[1])


def test_no_tile_too_large_for_a_device(monkeypatch):
    from gangealing_fast.kernels import _launch

    (adain,) = kernels("adain", "adain")
    monkeypatch.setattr(_launch, "ENLARGED", 1)
    case = next(case for case in CASES if case.name == "many-positions")
    x, scale, shift = case.tensors(torch.float32)
    compare(adain(x + 100, scale, shift, 1e-5)[:1], [adain_reference(x + 100, scale, shift)], x.dtype, tolerance=1e-4)
