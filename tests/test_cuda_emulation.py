# SPDX-License-Identifier: Apache-2.0
"""Every CUDA kernel, run thread for thread on the CPU, against the references over the cases that the CPU kernels share."""

from __future__ import annotations

import emulation
import pytest
import torch
from cases import bilinear_downsample, grid_sample, invert_grid, mipmap_warp, nearest_grid_point, splat2d, upfirdn2d
from support import TOLERANCE, assert_close, check_values

from gangealing_fast import ops

ORDERS = ("forward", "reverse", "random:1")


def check(operators, function, reference, tensors, **arguments):
    """As `support.check_values`, by emulated kernels; all `operators` must have been served by them."""
    with emulation.active() as served:
        check_values(function, reference, tensors, {}, **arguments)
    assert served == set(operators)


def random_order(name: str) -> str:
    return ORDERS[len(name) % len(ORDERS)]


@pytest.mark.parametrize("name", upfirdn2d.CASES)
def test_upfirdn2d(name, monkeypatch):
    monkeypatch.setenv("EMULATION_ORDER", random_order(name))
    case = upfirdn2d.CASES[name]
    f = case.filter()
    check(
        {"upfirdn2d"},
        lambda x: ops.upfirdn2d(x, f, **case.keywords),
        lambda x: ops.upfirdn2d_reference(x, f, **case.keywords),
        [case.image()],
    )


@pytest.mark.parametrize("name", bilinear_downsample.CASES)
def test_bilinear_downsample(name, monkeypatch):
    monkeypatch.setenv("EMULATION_ORDER", random_order(name))
    case = bilinear_downsample.CASES[name]
    check(
        {"bilinear_downsample", "bilinear_downsample_backward"},
        lambda x: ops.bilinear_downsample(x, case.stride),
        lambda x: ops.bilinear_downsample_reference(x, case.stride),
        [case.image()],
    )


# On a single texel with corners aligned the reference does not know the grid.
@pytest.mark.parametrize(
    "case", [c for c in grid_sample.CASES if c.name != "one-texel-reflection-True"], ids=lambda case: case.name
)
def test_grid_sample(case, monkeypatch):
    monkeypatch.setenv("EMULATION_ORDER", random_order(case.name))
    check(
        {"grid_sample", "grid_sample_backward"},
        lambda x, grid: ops.grid_sample(x, grid, **case.kwargs),
        lambda x, grid: ops.grid_sample_reference(x, grid, **case.kwargs),
        case.tensors(),
        differentiable=(0, 1),
        images=(0, 1),
        tolerance={**TOLERANCE, **grid_sample.TOLERANCE},
    )


@pytest.mark.parametrize("case", mipmap_warp.CASES, ids=lambda case: case.name)
def test_mipmap_warp(case, monkeypatch):
    monkeypatch.setenv("EMULATION_ORDER", random_order(case.name))
    check(
        {"mipmap_warp", "mipmap_warp_backward"},
        lambda x, grid: ops.mipmap_warp(x, grid, **case.kwargs),
        lambda x, grid: ops.mipmap_warp_reference(x, grid, **case.kwargs),
        case.tensors(),
        differentiable=(0, 1),
        images=(0, 1),
        dtypes=(torch.float64, torch.float32),
        tolerance={**TOLERANCE, **mipmap_warp.TOLERANCE},
    )


@pytest.mark.parametrize("case", splat2d.CASES, ids=lambda case: case.name)
def test_splat2d(case, monkeypatch):
    monkeypatch.setenv("EMULATION_ORDER", random_order(case.name))
    check(
        {"splat2d", "splat2d_backward"},
        lambda *tensors: ops.splat2d(*tensors, **case.kwargs),
        lambda *tensors: ops.splat2d_reference(*tensors, **case.kwargs),
        case.tensors(),
        differentiable=(0, 1, 2, 3),
        dtypes=(torch.float64, torch.float32),
        tolerance={**TOLERANCE, **splat2d.TOLERANCE},
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", nearest_grid_point.CASES, ids=lambda case: case.name)
def test_nearest_grid_point(case, dtype, monkeypatch):
    monkeypatch.setenv("EMULATION_ORDER", random_order(case.name))
    tensors = case.tensors(dtype)
    with emulation.active() as served:
        found = ops.nearest_grid_point(*tensors)
    assert served == {"nearest_grid_point"}
    assert torch.equal(found, ops.nearest_grid_point_reference(*tensors))


@pytest.mark.parametrize("case", invert_grid.CASES, ids=lambda case: case.name)
def test_invert_grid(case, monkeypatch):
    monkeypatch.setenv("EMULATION_ORDER", random_order(case.name))
    for dtype in (torch.float64, torch.float32):
        tensors = [t.requires_grad_() for t in case.tensors(dtype)]
        with emulation.active() as served:
            position, confidence = ops.invert_grid(*tensors)
            held = confidence > 0
            gradients = torch.autograd.grad(position[held].square().sum(), tensors)
        assert served == {"invert_grid", "invert_grid_backward"}
        expected, expected_confidence = ops.invert_grid_reference(*tensors)
        assert_close(confidence, expected_confidence, 1e-6)
        assert_close(position.nan_to_num(-7), expected.nan_to_num(-7), invert_grid.TOLERANCE[dtype][0])
        for actual, other in zip(gradients, torch.autograd.grad(expected[held].square().sum(), tensors), strict=True):
            assert_close(actual, other, invert_grid.TOLERANCE[dtype][1])
