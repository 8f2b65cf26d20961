# SPDX-License-Identifier: Apache-2.0
"""grid_sample: values, derivatives, layouts, points that are not finite."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from cases.grid_sample import CASES, DIFFERENTIABLE, MODES, SMALL, TOLERANCE, Case
from support import (
    assert_close,
    assert_cpu_kernels,
    check_compile,
    check_empty_batch,
    check_gradients,
    check_registration,
    check_values,
)

from gangealing_fast.ops import grid_sample, grid_sample_reference

FIRST = CASES[0]


def inputs(batch, channels, size, out, dtype=torch.float64, reach=1.7):
    x = torch.randn(batch, channels, *size, dtype=dtype)
    return [x, (torch.rand(batch, *out, 2, dtype=torch.float64) * 2 - 1).mul(reach).to(dtype)]


def both(x, grid, function=grid_sample, **kwargs):
    """Output and both gradients, for a fixed gradient of the output."""
    x, grid = (t.detach().requires_grad_() for t in (x, grid))
    y = function(x, grid, **kwargs)
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y)
    return y, *torch.autograd.grad(y, (x, grid), weight, allow_unused=True, materialize_grads=True)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_values(case):
    tensors = case.tensors()
    if all(tensor.numel() for tensor in tensors):
        check_values(grid_sample, grid_sample_reference, tensors, case.kwargs, DIFFERENTIABLE, DIFFERENTIABLE, tolerance=TOLERANCE)
    else:
        results = (both(*tensors, function, **case.kwargs) for function in (grid_sample, grid_sample_reference))
        assert all(torch.equal(actual, expected) for actual, expected in zip(*results, strict=True))


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_derivatives(case):
    check_gradients(grid_sample, case.tensors(), case.kwargs, DIFFERENTIABLE)


def test_registration():
    check_registration(grid_sample, SMALL[0].tensors(), SMALL[0].kwargs, DIFFERENTIABLE)
    check_compile(grid_sample, FIRST.tensors(), FIRST.kwargs, DIFFERENTIABLE)
    check_empty_batch(grid_sample, FIRST.tensors(), FIRST.kwargs, DIFFERENTIABLE, DIFFERENTIABLE)


@pytest.mark.parametrize("channels", [1, 3, 7, 8, 16, 21])
@pytest.mark.parametrize("size", [(9, 12), (1, 6), (6, 1)])
def test_layouts_agree(size, channels):
    """The same to rounding from every layout, each of which has its own way of reading."""
    case = Case("layouts", 2, channels, size, (11, 30), "zeros")
    x, grid = case.tensors(torch.float32)
    expected = both(x, grid)
    layouts = {
        "channels-last": x.contiguous(memory_format=torch.channels_last),
        "rows apart": torch.cat((x, x), 3)[..., : size[1]],
        "columns apart": x.repeat_interleave(2, 3)[..., ::2],
        "transposed": x.transpose(2, 3).contiguous().transpose(2, 3),
        "channels reversed in memory": x.transpose(0, 1).contiguous().transpose(0, 1),
    }
    for layout, image in layouts.items():
        for actual, other in zip(both(image, grid), expected, strict=True):
            assert_close(actual, other, 1e-6, layout)
    constant = torch.ones(2, channels, 1, 1).expand(-1, -1, *size)
    for actual, other in zip(both(constant, grid), both(constant.contiguous(), grid), strict=True):
        assert_close(actual, other, 1e-6, "expanded")


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("channels", [1, 3, 5, 17])
def test_one_gradient_at_a_time(channels, channels_last):
    x, grid = inputs(2, channels, (9, 10), (7, 41))
    x = x.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    weight = torch.randn(2, channels, 7, 41, dtype=torch.float64)
    together = torch.autograd.grad(grid_sample(x.requires_grad_(), grid.requires_grad_()), (x, grid), weight)
    (grad_x,) = torch.autograd.grad(grid_sample(x, grid.detach()), x, weight)
    (grad_grid,) = torch.autograd.grad(grid_sample(x.detach(), grid), grid, weight)
    assert torch.equal(together[0], grad_x) and torch.equal(together[1], grad_grid)


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


def test_sizes_beyond_32_bits():
    """Shapes alone, on the meta device; and a real image of more than 2^31 elements whose memory is one of 16 texels."""
    y = grid_sample(torch.empty(2, 1 << 20, 64, 64, device="meta"), torch.empty(2, 1 << 10, 1 << 10, 2, device="meta"))
    assert y.shape == (2, 1 << 20, 1 << 10, 1 << 10)
    assert_cpu_kernels("grid_sample")
    x = torch.arange(16.0).view(1, 1, 16, 1).expand(1, 1 << 14, 16, 1 << 14)
    y = grid_sample(x, torch.tensor([[[[0.5, 0.0], [-0.99, 0.5]]]]))
    assert y.shape == (1, 1 << 14, 1, 2) and torch.allclose(y, torch.tensor([7.5, 11.5]))
