# SPDX-License-Identifier: Apache-2.0
"""bilinear_downsample: values, derivatives of any order, layouts."""

from __future__ import annotations

import pytest
import torch
from cases.bilinear_downsample import CASES
from support import assert_cpu_kernels, assert_golden, check_operator, golden

from gangealing_fast.ops import bilinear_downsample, bilinear_downsample_reference


@pytest.mark.parametrize("name", CASES)
def test_operator(name):
    case = CASES[name]
    check_operator(
        lambda x: bilinear_downsample(x, case.stride),
        lambda x: bilinear_downsample_reference(x, case.stride),
        [case.image()],
        small=[case.image(small=True)],
        compile=name == "quarter",
        registration=name == "quarter",
    )


@pytest.mark.parametrize("case", range(2))
def test_golden(case):
    case_settings, arrays = golden(f"bilinear_downsample_{case}")
    x = arrays["x"].requires_grad_()
    y = bilinear_downsample(x, case_settings["stride"])
    assert_golden(y, arrays["y"])
    (grad,) = torch.autograd.grad(y, x, arrays["grad_out"])
    assert_golden(grad, arrays["grad_x"], gradient=True)


def test_constant_images_stay_constant():
    y = bilinear_downsample(torch.full((1, 3, 32, 24), 0.7), 4)
    assert y.shape == (1, 3, 8, 6)
    assert torch.allclose(y, torch.tensor(0.7), atol=1e-6)


def test_kernels_are_compiled():
    assert_cpu_kernels("bilinear_downsample", "bilinear_downsample_backward")
