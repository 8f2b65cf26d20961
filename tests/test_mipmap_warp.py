# SPDX-License-Identifier: Apache-2.0
"""mipmap_warp: values, derivatives, odd sizes, layouts, points that are not finite."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from cases.mipmap_warp import CASES, DIFFERENTIABLE, MODES, SMALL, TOLERANCE
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
    relative_error,
)

from gangealing_fast.ops import grid_sample, mipmap_warp, mipmap_warp_reference
from gangealing_fast.ops.mipmap_warp import mipmap_levels

FIRST = CASES[0]


def inputs(batch, channels, size, out, zoom=1.0, dtype=torch.float64):
    """Noise, and a jittered similarity that reads every `zoom` x (size / out) pixels: no ties, no whole levels."""
    matrix = torch.tensor([[1.0, 0.2, 0.05], [-0.2, 0.9, -0.1]], dtype=torch.float64) * zoom
    grid = F.affine_grid(matrix[None], [1, 1, *out], align_corners=False)
    jitter = torch.randn(batch, *out, 2, dtype=torch.float64) * (0.3 * zoom / max(out))
    return [torch.randn(batch, channels, *size, dtype=dtype), (grid + jitter).to(dtype)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_values(case):
    tensors = case.tensors()
    if all(tensor.numel() for tensor in tensors):
        wide = (torch.float64, torch.float32)
        check_values(mipmap_warp, mipmap_warp_reference, tensors, case.kwargs, DIFFERENTIABLE, DIFFERENTIABLE, wide, TOLERANCE)
    else:
        x, grid = (tensor.requires_grad_() for tensor in tensors)
        y = mipmap_warp(x, grid, **case.kwargs)
        assert torch.equal(y, mipmap_warp_reference(x, grid, **case.kwargs))
        assert not any(grad.any() for grad in torch.autograd.grad(y, (x, grid), torch.ones_like(y)))


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_derivatives(case):
    check_gradients(mipmap_warp, case.tensors(), case.kwargs, DIFFERENTIABLE, second_order=case.size == (6, 5))


def test_registration():
    check_registration(mipmap_warp, SMALL[0].tensors(), SMALL[0].kwargs, DIFFERENTIABLE)
    check_compile(mipmap_warp, FIRST.tensors(), FIRST.kwargs, DIFFERENTIABLE)
    check_empty_batch(mipmap_warp, FIRST.tensors(), FIRST.kwargs, DIFFERENTIABLE, DIFFERENTIABLE)


@pytest.mark.parametrize("zoom", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("channels", [3, 9])
def test_layouts_agree(channels, zoom):
    """The same to rounding from every layout of the image."""
    x, grid = inputs(2, channels, (16, 16), (11, 9), zoom, torch.float32)
    weight = torch.randn(2, channels, 11, 9)

    def run(image):
        image, points = image.detach().requires_grad_(), grid.detach().requires_grad_()
        y = mipmap_warp(image, points)
        return y, *torch.autograd.grad(y, (image, points), weight)

    expected = run(x)
    for image in (x.contiguous(memory_format=torch.channels_last), x.transpose(2, 3).contiguous().transpose(2, 3)):
        for actual, other in zip(run(image), expected, strict=True):
            assert_close(actual, other, 1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_images(dtype):
    """Half-precision images at a float32 grid; a half-precision grid is full of ties, on which the gradient depends."""
    x, grid = inputs(2, 5, (24, 24), (9, 7), dtype=torch.float32)
    check_values(lambda x: mipmap_warp(x, grid), lambda x: mipmap_warp_reference(x, grid), [x], {}, dtypes=(dtype,))
    x, grid = x.to(dtype), grid.requires_grad_()
    weight = torch.randn(2, 5, 9, 7)
    actual, expected = (
        torch.autograd.grad(function(x, grid), grid, weight.to(dtype))[0] for function in (mipmap_warp, mipmap_warp_reference)
    )
    assert_close(actual, expected, 1e-4)
    assert_close(mipmap_warp(x, grid.to(dtype)), mipmap_warp_reference(x, grid.to(dtype)), 4e-3)


@pytest.mark.parametrize("case", range(4))
def test_golden(case):
    case_settings, arrays = golden(f"mipmap_warp_{case}")
    x, grid = arrays["x"].requires_grad_(), arrays["grid"].requires_grad_()
    y = mipmap_warp(x, grid, padding_mode=case_settings["padding_mode"])
    assert_golden(y, arrays["y"])
    assert_golden(mipmap_levels(grid, x.shape[2:], 3.5), arrays["levels"])
    grad_x, grad_grid = torch.autograd.grad(y, (x, grid), arrays["grad_out"])
    assert_golden(grad_x, arrays["grad_x"], gradient=True)
    assert_golden(grad_grid, arrays["grad_grid"], gradient=True)


def test_kernels_are_compiled():
    assert_cpu_kernels("mipmap_warp", "mipmap_warp_backward")


@pytest.mark.parametrize("padding_mode", MODES)
def test_a_dense_grid_is_plain_sampling(padding_mode):
    x, grid = inputs(1, 3, (16, 16), (32, 32), 0.3)
    assert_close(mipmap_warp(x, grid, padding_mode=padding_mode), grid_sample(x, grid, padding_mode=padding_mode), 1e-12)


@pytest.mark.parametrize("zoom", [0.5, 1.0, 2.0, 4.0])
def test_regular_grids_full_of_ties(zoom):
    """Values do not depend on which of two equally far neighbours is taken, nor on the side of a whole level."""
    grid = F.affine_grid(torch.eye(2, 3)[None] * zoom, [1, 1, 32, 32], align_corners=False)
    x = F.interpolate(torch.randn(1, 3, 8, 8), (32, 32), mode="bilinear")
    assert relative_error(mipmap_warp(x, grid), mipmap_warp_reference(x, grid)) < 1e-4
    gradient = torch.autograd.grad(mipmap_warp(x, grid.requires_grad_()).sum(), grid)[0]
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("padding_mode", MODES)
def test_points_that_are_not_finite(padding_mode):
    """NaN at and beside a point that is not finite, no gradient from there, and everything else as the reference has it."""
    x, grid = inputs(1, 2, (12, 12), (6, 7))
    grid[0, 0, 0, 0], grid[0, 3, 2, 1] = float("nan"), float("inf")
    x.requires_grad_(), grid.requires_grad_()
    y, expected = (f(x, grid, padding_mode=padding_mode) for f in (mipmap_warp, mipmap_warp_reference))
    broken = torch.zeros(6, 7, dtype=torch.bool)
    broken[:2, 0] = broken[0, 1] = broken[2:5, 2] = broken[3, 1:4] = True
    assert torch.equal(torch.isnan(y), broken.expand_as(y)) and torch.equal(torch.isnan(expected), broken.expand_as(y))
    assert_close(y[..., ~broken], expected[..., ~broken], 1e-12)
    weight = torch.randn_like(y)
    actual, other = (torch.autograd.grad(result, (x, grid), weight) for result in (y, expected))
    for a, b in zip(actual, other, strict=True):
        assert_close(a, b, 1e-10)


@pytest.mark.parametrize("padding_mode", MODES)
def test_far_away_points_are_bounded(padding_mode):
    x, grid = torch.rand(1, 4, 9, 9), torch.randn(1, 8, 8, 2)
    grid *= torch.tensor([1.0, 1e4, 1e9, 1e15, 1e18, 1e20, 1e30, 3e38]).view(1, 8, 1, 1)
    x.requires_grad_(), grid.requires_grad_()
    y = mipmap_warp(x, grid, padding_mode=padding_mode)
    assert (y.isnan() | (y >= -1e-5) & (y <= 1 + 1e-5)).all()
    assert torch.isfinite(y[:, :, :3]).all()
    assert all(not grad.isnan().any() for grad in torch.autograd.grad(y.nan_to_num().sum(), (x, grid)))


def test_one_gradient_at_a_time():
    x, grid = inputs(2, 3, (16, 16), (9, 9))
    weight = torch.randn(2, 3, 9, 9, dtype=torch.float64)
    both = torch.autograd.grad(mipmap_warp(x.requires_grad_(), grid.requires_grad_()), (x, grid), weight)
    (grad_x,) = torch.autograd.grad(mipmap_warp(x, grid.detach()), x, weight)
    (grad_grid,) = torch.autograd.grad(mipmap_warp(x.detach(), grid), grid, weight)
    assert torch.equal(both[0], grad_x) and torch.equal(both[1], grad_grid)


@pytest.mark.parametrize("batch", [1, 3])
def test_threads_do_not_change_the_result(batch):
    assert_cpu_kernels("mipmap_warp", "mipmap_warp_backward")
    x, grid = (t.requires_grad_() for t in inputs(batch, 3, (33, 33), (21, 30), 1.5, torch.float32))
    threads, results, weight = torch.get_num_threads(), [], torch.randn(batch, 3, 21, 30)
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        y = mipmap_warp(x, grid)
        alone = torch.autograd.grad(mipmap_warp(x.detach(), grid), grid, weight)
        results.append((y, *alone, *torch.autograd.grad(y, (x, grid), weight)))
    torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_sizes_beyond_32_bits():
    y = mipmap_warp(torch.empty(2, 1 << 20, 64, 64, device="meta"), torch.empty(2, 1 << 10, 1 << 10, 2, device="meta"))
    assert y.shape == (2, 1 << 20, 1 << 10, 1 << 10)
    assert_cpu_kernels("mipmap_warp")
    # More than 2^31 elements on the memory of 16 texels.
    x = torch.arange(16.0).view(1, 1, 16, 1).expand(1, 1 << 14, 16, 1 << 14)
    y = mipmap_warp(x, torch.zeros(1, 1, 2, 2))
    assert y.shape == (1, 1 << 14, 1, 2) and torch.allclose(y, torch.tensor(7.5))
