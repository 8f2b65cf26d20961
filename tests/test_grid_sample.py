# SPDX-License-Identifier: Apache-2.0
"""grid_sample: values, derivatives, layouts, points that are not finite, errors."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from support import TOLERANCE, assert_close, assert_cpu_kernels, check_operator

from gangealing_fast.ops import grid_sample, grid_sample_reference

MODES = ("zeros", "border", "reflection")
# A coordinate of float32 is known to 1e-7 of the whole image only, which the slope of noise turns into 1e-6 of a texel.
LOOSE = {**TOLERANCE, torch.float32: (1e-5, 5e-5)}


def inputs(batch, channels, size, out, dtype=torch.float64, reach=1.7):
    x = torch.randn(batch, channels, *size, dtype=dtype)
    return [x, (torch.rand(batch, *out, 2, dtype=torch.float64) * 2 - 1).mul(reach).to(dtype)]


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("padding_mode", MODES)
def test_operator(padding_mode, align_corners):
    check_operator(
        grid_sample,
        grid_sample_reference,
        inputs(2, 3, (11, 8), (9, 17)),
        kwargs={"padding_mode": padding_mode, "align_corners": align_corners},
        differentiable=(0, 1),
        batched=(0, 1),
        images=(0, 1),
        tolerance=LOOSE,
        small=inputs(1, 2, (4, 5), (2, 3)),
        compile=padding_mode == "border" and not align_corners,
        registration=padding_mode == "border" and not align_corners,
    )


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("padding_mode", MODES)
@pytest.mark.parametrize("size", [(7, 9), (1, 5), (1, 1), (6, 1)])
def test_torch(padding_mode, align_corners, size):
    """Agreement with torch's own operator, of values and both gradients."""
    x, grid = (t.requires_grad_() for t in inputs(2, 5, size, (6, 30), reach=4))
    kwargs = {"padding_mode": padding_mode, "align_corners": align_corners}
    y, expected = grid_sample(x, grid, **kwargs), F.grid_sample(x, grid, **kwargs)
    assert_close(y, expected, 1e-12)
    weight = torch.randn_like(y)
    actual, other = (torch.autograd.grad(result, (x, grid), weight) for result in (y, expected))
    assert_close(actual[0], other[0], 1e-12)
    assert_close(actual[1], other[1], 1e-12)


def test_kernels_are_compiled():
    assert_cpu_kernels("grid_sample", "grid_sample_backward")


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.data())
def test_fuzz(data):
    draw = lambda low, high: data.draw(st.integers(low, high))  # noqa: E731
    torch.manual_seed(draw(0, 99))
    size, out = (draw(1, 24), draw(1, 24)), (draw(0, 24), draw(0, 200))
    reach = data.draw(st.sampled_from((0.5, 1.5, 100.0)))
    x, grid = (t.requires_grad_() for t in inputs(draw(0, 3), draw(0, 6), size, out, reach=reach))
    kwargs = {"padding_mode": data.draw(st.sampled_from(MODES)), "align_corners": data.draw(st.booleans())}
    y, expected = grid_sample(x, grid, **kwargs), grid_sample_reference(x, grid, **kwargs)
    assert_close(y, expected, 1e-10)
    weight = torch.randn_like(y)
    actual, other = (torch.autograd.grad(result, (x, grid), weight) for result in (y, expected))
    for a, b in zip(actual, other, strict=True):
        assert_close(a, b, 1e-9)


def test_mixed_precision():
    x, grid = inputs(2, 3, (8, 8), (8, 8), torch.float32)
    x = x.bfloat16()
    y = grid_sample(x, grid, padding_mode="border")
    assert y.dtype == torch.bfloat16
    assert_close(y, grid_sample(x.float(), grid, padding_mode="border"), 4e-3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("padding_mode", MODES)
def test_points_that_are_not_finite(padding_mode, dtype):
    """NaN where the point is not finite, no gradient from there, and everything else as without it."""
    x, grid = inputs(1, 2, (6, 7), (3, 5), dtype)
    grid[0, 0, 0, 0], grid[0, 1, 2, 1], grid[0, 2, 4] = float("nan"), float("inf"), float("-inf")
    x.requires_grad_(), grid.requires_grad_()
    bad = ~torch.isfinite(grid).all(-1)
    y = grid_sample(x, grid, padding_mode=padding_mode)
    assert torch.isnan(y[:, :, bad[0]]).all() and torch.isfinite(y[:, :, ~bad[0]]).all()
    grads = torch.autograd.grad(y, (x, grid), torch.ones_like(y))
    expected = torch.autograd.grad(grid_sample_reference(x, grid, padding_mode=padding_mode), (x, grid), torch.ones_like(y))
    assert not grads[1][bad].any()
    for actual, other in zip(grads, expected, strict=True):
        assert_close(actual, other, 1e-5)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("padding_mode", MODES)
def test_far_away_points_are_bounded(padding_mode, align_corners):
    x = torch.rand(1, 1, 5, 5)
    values = torch.tensor([1e4, -1e7, 2.0**31, 1e20, -3e38, 3e38, 1e-38])
    grid = torch.stack(torch.meshgrid(values, values, indexing="ij"), -1)[None].requires_grad_()
    y = grid_sample(x.requires_grad_(), grid, padding_mode=padding_mode, align_corners=align_corners)
    grads = torch.autograd.grad(y.nan_to_num().sum(), (x, grid))
    assert ((y.isnan()) | (y >= -1e-5) & (y <= 1 + 1e-5)).all()
    assert all(not grad.isnan().any() for grad in grads)


def test_threads_do_not_change_the_result():
    assert_cpu_kernels("grid_sample", "grid_sample_backward")
    x, grid = (t.requires_grad_() for t in inputs(2, 3, (33, 40), (41, 37), torch.float32))
    threads, results, weight = torch.get_num_threads(), [], torch.randn(2, 3, 41, 37)
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        y = grid_sample(x, grid, padding_mode="reflection")
        results.append((y, *torch.autograd.grad(y, (x, grid), weight)))
    torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_a_grid_made_from_the_image_gets_partial_derivatives():
    """Second derivatives where the grid itself depends on the image."""
    x = torch.randn(1, 1, 4, 4, dtype=torch.float64).requires_grad_()

    def energy(x):
        grid = x.tanh().view(1, 4, 2, 2) * 0.7
        return grid_sample(x, grid, padding_mode="border")

    assert torch.autograd.gradgradcheck(energy, x)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"x": 1}, TypeError, "x must be a tensor"),
        ({"grid": torch.zeros(1, 2, 2, 2, dtype=torch.int32)}, TypeError, "grid has dtype torch.int32"),
        ({"x": torch.zeros(3, 4, 4)}, ValueError, r"x must have shape \[N, C, H, W\]"),
        ({"grid": torch.zeros(1, 2, 2)}, ValueError, r"grid must have shape \[N, h, w, 2\]"),
        ({"grid": torch.zeros(1, 2, 2, 3)}, ValueError, "last axis of grid must be 2"),
        ({"grid": torch.zeros(2, 2, 2, 2)}, ValueError, "x has batch size 1 and grid 2"),
        ({"x": torch.zeros(1, 3, 0, 4)}, ValueError, "x has no pixels"),
        ({"padding_mode": "mirror"}, ValueError, "padding_mode must be one of zeros, border, reflection, not 'mirror'"),
        ({"grid": torch.zeros(1, 2, 2, 2, device="meta")}, ValueError, "grid is on meta but x is on cpu"),
    ],
)
def test_errors(arguments, error, message):
    arguments = {"x": torch.zeros(1, 3, 4, 4), "grid": torch.zeros(1, 2, 2, 2), **arguments}
    x, grid = arguments.pop("x"), arguments.pop("grid")
    with pytest.raises(error, match=message):
        grid_sample(x, grid, **arguments)
