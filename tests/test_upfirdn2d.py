# SPDX-License-Identifier: Apache-2.0
"""upfirdn2d: values, derivatives of any order, layouts, errors."""

from __future__ import annotations

import pytest
import torch
from cases.upfirdn2d import CASES
from hypothesis import given, settings
from hypothesis import strategies as st
from support import assert_close, assert_cpu_kernels, assert_golden, check_operator, golden

from gangealing_fast.ops import blur_filter, upfirdn2d, upfirdn2d_reference

BLUR = blur_filter()


@pytest.mark.parametrize("name", CASES)
def test_operator(name):
    case = CASES[name]
    f, kwargs = case.filter(), case.keywords
    check_operator(
        lambda x: upfirdn2d(x, f, **kwargs),
        lambda x: upfirdn2d_reference(x, f, **kwargs),
        [case.image()],
        small=[case.image(small=True)],
        compile=name in ("blur", "up"),
        registration=name in ("up", "not separable"),
    )


@pytest.mark.parametrize("case", range(8))
def test_golden(case):
    case_settings, arrays = golden(f"upfirdn2d_{case}")
    x = arrays["x"].requires_grad_()
    y = upfirdn2d(
        x, arrays["kernel"], up=case_settings["up"], down=case_settings["down"], padding=tuple(case_settings["pad"])
    )
    assert_golden(y, arrays["y"])
    (grad,) = torch.autograd.grad(y, x, arrays["grad_out"])
    assert_golden(grad, arrays["grad_x"], gradient=True)


def test_kernels_are_compiled():
    assert_cpu_kernels("upfirdn2d")


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_fuzz(data):
    draw = lambda low, high: data.draw(st.integers(low, high))  # noqa: E731
    fh, fw, up, down = draw(1, 6), draw(1, 6), draw(1, 4), draw(1, 4)
    n, c, h, w = draw(0, 3), draw(0, 20), draw(1, 20), draw(1, 40)
    padding = tuple(draw(-3, 6) for _ in range(4))
    generator = torch.Generator().manual_seed(draw(0, 99))
    f = torch.randn(fh, fw, generator=generator)
    if data.draw(st.booleans()):
        f = torch.outer(f[:, 0], f[0])
    x = torch.randn(n, c, h, w, generator=generator)
    if data.draw(st.booleans()):
        x = x.contiguous(memory_format=torch.channels_last)
    kwargs = {"up": up, "down": down, "padding": padding, "gain": 1.5}
    if h * up + padding[2] + padding[3] < fh or w * up + padding[0] + padding[1] < fw:
        with pytest.raises(ValueError, match="nothing is left"):
            upfirdn2d(x, f, **kwargs)
        return
    x.requires_grad_()
    y, expected = upfirdn2d(x, f, **kwargs), upfirdn2d_reference(x, f, **kwargs)
    assert y.stride() == expected.stride() or y.numel() == 0
    assert_close(y, expected, 5e-6)
    weight = torch.randn(y.shape, generator=generator)
    for actual, other in zip(torch.autograd.grad(y, x, weight), torch.autograd.grad(expected, x, weight), strict=True):
        assert_close(actual, other, 5e-6)


def test_extreme_values_stay_local():
    x = torch.zeros(1, 1, 9, 9)
    x[0, 0, 4, 4] = float("inf")
    y = upfirdn2d(x, BLUR, padding=(2, 1))
    assert torch.isinf(y).sum() == 16 and not torch.isnan(y).any()


@pytest.mark.parametrize("shape", [(1, 512, 67, 65), (1, 33, 131, 517)])
def test_outputs_beyond_the_caches(shape):
    x = torch.randn(shape).contiguous(memory_format=torch.channels_last)
    assert_close(upfirdn2d(x, BLUR, padding=(1, 2)), upfirdn2d_reference(x, BLUR, padding=(1, 2)), 2e-6)


@pytest.mark.parametrize("shape", [(3, 8, 33, 65), (2, 150, 11, 30)])
def test_threads_do_not_change_the_result(shape):
    x = torch.randn(shape).contiguous(memory_format=torch.channels_last)
    threads = torch.get_num_threads()
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        results.append(torch.cat([upfirdn2d(x, BLUR, up=up, padding=(2, 1)).flatten() for up in (1, 2)]))
    torch.set_num_threads(threads)
    assert all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"x": torch.zeros(3, 4, 4)}, ValueError, r"x must have shape \[N, C, H, W\], but it has shape \[3, 4, 4\]"),
        ({"x": torch.zeros(1, 3, 4, 4, dtype=torch.int32)}, TypeError, "x has dtype torch.int32"),
        ({"x": [1.0]}, TypeError, "x must be a tensor"),
        ({"f": torch.zeros(1, 2, 2)}, ValueError, "f must have shape"),
        ({"f": torch.ones(2, 2, requires_grad=True)}, ValueError, "f is a constant filter"),
        ({"up": 0}, ValueError, "up and down must be at least 1, not up=0"),
        ({"down": -2}, ValueError, "down=-2"),
        ({"padding": (1, 2, 3)}, ValueError, "padding must be"),
        ({"padding": (-4, -4)}, ValueError, "nothing is left"),
        ({"x": torch.zeros(1, 1, 0, 5)}, ValueError, "nothing is left"),
    ],
)
def test_errors(arguments, error, message):
    arguments = {"x": torch.zeros(1, 3, 6, 6), "f": BLUR, **arguments}
    x, f = arguments.pop("x"), arguments.pop("f")
    with pytest.raises(error, match=message):
        upfirdn2d(x, f, **arguments)
