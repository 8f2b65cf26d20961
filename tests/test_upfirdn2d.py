# SPDX-License-Identifier: Apache-2.0
"""upfirdn2d: values, derivatives of any order, layouts."""

from __future__ import annotations

import pytest
import torch
from cases.upfirdn2d import CASES
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
    y = upfirdn2d(x, arrays["kernel"], up=case_settings["up"], down=case_settings["down"], padding=tuple(case_settings["pad"]))
    assert_golden(y, arrays["y"])
    (grad,) = torch.autograd.grad(y, x, arrays["grad_out"])
    assert_golden(grad, arrays["grad_x"], gradient=True)


def test_kernels_are_compiled():
    assert_cpu_kernels("upfirdn2d")


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
