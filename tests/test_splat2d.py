# SPDX-License-Identifier: Apache-2.0
"""splat2d: values, derivatives, layouts, points that paint nothing."""

from __future__ import annotations

import math

import pytest
import torch
from cases.splat2d import CASES, DIFFERENTIABLE, SMALL, TOLERANCE, Case
from support import (
    assert_close,
    assert_cpu_kernels,
    assert_golden,
    check_compile,
    check_empty_batch,
    check_gradients,
    check_registration,
    check_values,
    golden,
)

from gangealing_fast.ops import splat2d, splat2d_reference


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_reference(case):
    check_values(splat2d, splat2d_reference, case.tensors(), case.kwargs, DIFFERENTIABLE, images=(0,), tolerance=TOLERANCE)


def naive(background, xy, values, sigma, soft):
    """The definition, pixel by pixel and point by point."""
    result = background.clone()
    for n in range(background.shape[0]):
        total = torch.zeros(background.shape[2:], dtype=background.dtype)
        for (x, y), value in zip(xy[n].tolist(), values[n], strict=True):
            s = sigma[n].item()
            if not (0 <= x < background.shape[3] and 0 <= y < background.shape[2]):
                continue
            for row in range(background.shape[2]):
                for column in range(background.shape[3]):
                    low = torch.tensor([x - 2 * s, y - 2 * s], dtype=xy.dtype).floor()
                    high = torch.tensor([x + 2 * s, y + 2 * s], dtype=xy.dtype).ceil()
                    if low[0] <= column <= high[0] and low[1] <= row <= high[1]:
                        weight = math.exp(-((x - column) ** 2 + (y - row) ** 2) / (2 * s * s))
                        result[n, :, row, column] += weight * value
                        total[row, column] += weight
        result[n] /= (total.clamp(min=1) if soft else total) + 1e-8
    return result


@pytest.mark.parametrize("soft", [False, True])
def test_definition(soft):
    background, xy, values, sigma = Case("defined", 2, 2, 6, 7, 9, 0.6, reach=1.4).tensors()
    background = background if soft else torch.zeros_like(background)
    assert_close(splat2d(background, xy, values, sigma, soft=soft), naive(background, xy, values, sigma, soft), 1e-12)


@pytest.mark.parametrize("case", range(2))
def test_golden(case):
    settings_, arrays = golden(f"splat2d_{case}")
    inputs = [arrays[name] for name in ("background", "xy", "values", "sigma")]
    y = splat2d(*inputs, soft=settings_["soft_normalize"])
    assert_golden(y, arrays["y"])
    reached = arrays["y"].abs() < 1e4  # without soft the others, 1e8 times the background, would drown these
    assert reached.float().mean() > 0.4
    assert_golden(y[reached], arrays["y"][reached], what="pixels that a point reaches")


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_derivatives(case):
    check_gradients(splat2d, case.tensors(), case.kwargs, DIFFERENTIABLE, second_order=False)


def test_registration_and_compilation():
    case = SMALL[0]
    check_registration(splat2d, case.tensors(), case.kwargs, DIFFERENTIABLE, second_order=False)
    check_compile(splat2d, CASES[0].tensors(), CASES[0].kwargs, DIFFERENTIABLE)
    check_empty_batch(splat2d, case.tensors(), case.kwargs, DIFFERENTIABLE, DIFFERENTIABLE)


def test_a_second_derivative_is_refused():
    inputs = [t.requires_grad_() for t in SMALL[0].tensors()]
    (grad,) = torch.autograd.grad(splat2d(*inputs, soft=True).square().sum(), inputs[1], create_graph=True)
    with pytest.raises(NotImplementedError, match="first derivatives only"):
        torch.autograd.grad(grad.sum(), inputs[2])


def test_kernels_are_compiled():
    assert_cpu_kernels("splat2d", "splat2d_backward")


def test_points_that_are_not_finite_change_nothing():
    background, xy, values, sigma = CASES[5].tensors()
    expected = splat2d(background, xy, values, sigma, soft=True)
    bad = torch.tensor([[torch.nan, 3.0], [3.0, torch.inf], [-torch.inf, 3.0], [5.0, 5.0], [5.0, 5.0], [5.0, 5.0]])
    xy = torch.cat([xy, bad.double().expand(2, -1, -1)], 1)
    values = torch.cat([values, torch.ones(2, 6, 3, dtype=torch.float64)], 1)
    sigma = torch.cat([sigma, torch.tensor([1, 1, 1, torch.nan, 0, -1]).double().expand(2, -1)], 1)
    inputs = [t.requires_grad_() for t in (background, xy, values, sigma)]
    y = splat2d(*inputs, soft=True)
    assert torch.equal(y, expected)
    grads = torch.autograd.grad(y.sum(), inputs)
    assert all(grad.isfinite().all() for grad in grads) and not any(grad[:, -6:].any() for grad in grads[1:])


def test_extreme_sigmas():
    """Reaches and weights stay bounded, from a sigma whose square is not a float to one that covers everything."""
    inputs = [torch.rand(1, 2, 9, 9), torch.rand(1, 4, 2) * 8, torch.rand(1, 4, 2), torch.tensor([[1e-30, 1e-3, 1e4, 1e30]])]
    inputs = [t.requires_grad_() for t in inputs]
    y = splat2d(*inputs, soft=True)
    grads = torch.autograd.grad(y.sum(), inputs)
    assert y.isfinite().all() and all(grad.isfinite().all() for grad in grads)
    infinite = splat2d(inputs[0], inputs[1], inputs[2], torch.full((1, 4), torch.inf), soft=True)
    assert_close(infinite, splat2d(inputs[0], inputs[1], inputs[2], torch.full((1, 4), 1e15), soft=True), 1e-6)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_value_that_is_not_finite_reaches_its_pixels_alone(layout):
    background, xy, values, sigma = (t.float() for t in CASES[0].tensors())
    clean = splat2d(background, xy, values, sigma, soft=True)
    xy[0, 7] = torch.tensor([9.0625, 11.0625])
    values[0, 7, 1] = torch.nan
    y = splat2d(background.contiguous(memory_format=layout), xy, values, sigma, soft=True)
    bad = y.isnan()
    reach = int(torch.ceil(9.0625 + 2 * sigma[0]) - torch.floor(9.0625 - 2 * sigma[0])) + 1
    assert bad[0, 1].sum() == reach**2 and bad.sum() == reach**2
    assert clean.isfinite().all()


@pytest.mark.parametrize("soft", [False, True])
def test_threads_do_not_change_the_result(soft):
    inputs = [t.requires_grad_() for t in Case("threads", 2, 3, 70, 65, 400, 2.0, soft=soft).tensors(torch.float32)]
    threads, results = torch.get_num_threads(), []
    weight = torch.randn(2, 3, 70, 65)
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        y = splat2d(*inputs, soft=soft)
        results.append((y, *torch.autograd.grad(y, inputs, weight)))
    torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
