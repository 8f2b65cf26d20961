# SPDX-License-Identifier: Apache-2.0
"""bilinear_downsample: values, derivatives of any order, layouts, errors."""

from __future__ import annotations

import pytest
import torch
from cases.bilinear_downsample import CASES
from hypothesis import given, settings
from hypothesis import strategies as st
from support import assert_close, assert_cpu_kernels, assert_golden, check_operator, golden

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


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.data())
def test_fuzz(data):
    draw = lambda low, high: data.draw(st.integers(low, high))  # noqa: E731
    stride = 2 * draw(1, 4)
    generator = torch.Generator().manual_seed(draw(0, 99))
    x = torch.randn(draw(0, 3), draw(0, 20), stride + draw(0, 20), stride + draw(0, 40), generator=generator)
    if data.draw(st.booleans()):
        x = x.contiguous(memory_format=torch.channels_last)
    x.requires_grad_()
    y, expected = bilinear_downsample(x, stride), bilinear_downsample_reference(x, stride)
    assert y.stride() == expected.stride() or y.numel() == 0
    assert_close(y, expected, 2e-6)
    weight = torch.randn(y.shape, generator=generator)
    for actual, other in zip(torch.autograd.grad(y, x, weight), torch.autograd.grad(expected, x, weight), strict=True):
        assert_close(actual, other, 2e-6)


@pytest.mark.parametrize(
    ("x", "stride", "error", "message"),
    [
        (torch.zeros(3, 8, 8), 2, ValueError, "x must have shape"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), 2, TypeError, "x has dtype torch.uint8"),
        (torch.zeros(1, 3, 8, 8), 3, ValueError, "stride must be even and at least 2, not 3"),
        (torch.zeros(1, 3, 8, 8), 0, ValueError, "not 0"),
        (torch.zeros(1, 3, 8, 8), -2, ValueError, "not -2"),
        (torch.zeros(1, 3, 3, 8), 4, ValueError, "3 x 8 is too small for stride 4"),
    ],
)
def test_errors(x, stride, error, message):
    with pytest.raises(error, match=message):
        bilinear_downsample(x, stride)
