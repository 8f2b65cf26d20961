# SPDX-License-Identifier: Apache-2.0
"""Every CUDA kernel, run thread for thread on the CPU, against the references over the cases that all kernels share."""

from __future__ import annotations

import importlib
import os

import emulation
import pytest
import sanitizers
import torch
from cases import invert_grid, nearest_grid_point
from emptied import emptied, made, run
from problems import problems
from support import assert_close

from gangealing_fast import ops

ORDERS = ("forward", "reverse", "random:1")
OPERATORS = ("upfirdn2d", "bilinear_downsample", "grid_sample", "mipmap_warp", "splat2d")


def in_some_order(monkeypatch, name: str) -> None:
    """Threads and blocks run in an order that differs from case to case; no result may depend on it."""
    monkeypatch.setenv("EMULATION_ORDER", ORDERS[len(name) % len(ORDERS)])


def gradients_of(function, tensors, orders=ORDERS):
    """Outputs and gradients of the emulated kernels, once for every order."""
    results = []
    for order in orders:
        os.environ["EMULATION_ORDER"] = order
        leaves = [t.detach().requires_grad_() for t in tensors]
        with emulation.active():
            y = function(*leaves)
            results.append((y, *torch.autograd.grad(y.square().sum(), leaves)))
    return results


@pytest.mark.parametrize("problem", problems(*OPERATORS), ids=str)
def test_values(problem, monkeypatch):
    """Outputs and gradients in every dtype and layout; every kernel of the operator must have run."""
    in_some_order(monkeypatch, problem.name)
    with emulation.active() as served:
        problem.check()
    assert served == problem.kernels


@pytest.mark.parametrize("case", nearest_grid_point.CASES, ids=lambda case: case.name)
def test_nearest_grid_point(case, monkeypatch):
    in_some_order(monkeypatch, case.name)
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        tensors = case.tensors(dtype)
        with emulation.active() as served:
            found = ops.nearest_grid_point(*tensors)
        assert served == {"nearest_grid_point"}
        assert torch.equal(found, ops.nearest_grid_point_reference(*tensors))


@pytest.mark.parametrize("case", invert_grid.CASES, ids=lambda case: case.name)
def test_invert_grid(case, monkeypatch):
    in_some_order(monkeypatch, case.name)
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


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("case", invert_grid.CASES, ids=lambda case: case.name)
def test_invert_grid_gives_the_bits_of_the_cpu(case, dtype):
    """Both include csrc/invert_grid.h; only the gradient of the grid is summed in another way."""

    def run() -> tuple[torch.Tensor, ...]:
        grid, points = (t.requires_grad_() for t in case.tensors(dtype))
        position, confidence = ops.invert_grid(grid, points)
        return position, confidence, *torch.autograd.grad(position.nansum(), points)

    with emulation.active():
        emulated = run()
    for actual, expected in zip(emulated, run(), strict=True):
        assert torch.equal(actual.nan_to_num(-7), expected.nan_to_num(-7))


@pytest.mark.parametrize(
    ("operator", "axes"),
    emptied(*OPERATORS, "nearest_grid_point", "invert_grid"),
    ids=lambda v: v if isinstance(v, str) else "-".join(v),
)
def test_empty_axes(operator, axes):
    """No points, no channels, no samples: what the kernels of the CPU give, forward and backward; or their sentence."""
    tensors = made(operator, axes, torch.float32)
    try:
        expected = run(operator, tensors)
    except (ValueError, TypeError) as error:
        with emulation.active(), pytest.raises(type(error), match=f"^{operator}: "):
            run(operator, tensors)
        return
    with emulation.active():
        found = run(operator, tensors)
    for a, e in zip(found, expected, strict=True):
        assert a.shape == e.shape and a.dtype == e.dtype
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-5)


def test_every_cuda_source_is_emulated():
    kernels = emulation.load()
    sources = {source.stem for source in (emulation.SOURCES / "cuda").glob("*.cu")}
    assert sources == {name.removesuffix("_backward") for name in kernels}
    assert all(name in kernels for problem in problems(*sources) for name in problem.kernels)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("operator", ["grid_sample", "mipmap_warp"])
def test_sums_of_many_threads_do_not_depend_on_their_order(operator, dtype, monkeypatch):
    """Bit by bit: hundreds of points add to the same few texels."""
    monkeypatch.setenv("EMULATION_ORDER", "forward")
    x = torch.randn(2, 3, 9, 10).to(dtype)
    grid = (torch.rand(2, 25, 23, 2) * 0.3).to(torch.promote_types(dtype, torch.float32))
    first, *others = gradients_of(getattr(ops, operator), [x, grid])
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("magnitude", [1e-30, 1e-3, 1e30])
@pytest.mark.parametrize("operator", ["grid_sample", "mipmap_warp"])
def test_gradients_of_any_magnitude(operator, magnitude):
    """The integers that gradients are added in are scaled to them, sample by sample; a gradient of zeros stays so."""
    x, grid = torch.randn(3, 2, 8, 8, requires_grad=True), torch.rand(3, 9, 9, 2) * 2 - 1
    weight = torch.randn(3, 2, 9, 9) * torch.tensor([magnitude, 1.0, 0.0]).view(3, 1, 1, 1)
    function = getattr(ops, operator)
    with emulation.active():
        (actual,) = torch.autograd.grad(function(x, grid), x, weight)
    (expected,) = torch.autograd.grad(getattr(ops, f"{operator}_reference")(x, grid), x, weight)
    for sample in range(3):
        scale = max(expected[sample].abs().max().item(), 1e-38)
        assert_close(actual[sample].double() / scale, expected[sample].double() / scale, 1e-5)


@pytest.mark.parametrize("operator", ["grid_sample", "mipmap_warp"])
def test_a_gradient_that_is_not_finite_spoils_its_sample_alone(operator):
    x, grid = torch.randn(3, 2, 8, 8, requires_grad=True), torch.rand(3, 9, 9, 2) * 2 - 1
    weight = torch.randn(3, 2, 9, 9)
    weight[0, 1, 2, 3], weight[2, 0, 0, 0] = torch.inf, torch.nan
    with emulation.active():
        (grad,) = torch.autograd.grad(getattr(ops, operator)(x, grid), x, weight)
    assert grad[0].isnan().all() and grad[2].isnan().all() and grad[1].isfinite().all()


@pytest.mark.parametrize("operator", ["grid_sample", "mipmap_warp"])
def test_points_that_are_not_finite_or_far_away(operator):
    x, grid = torch.rand(1, 3, 12, 12, requires_grad=True), torch.rand(1, 6, 7, 2) * 2 - 1
    grid[0, 0, 0, 0], grid[0, 3, 2, 1], grid[0, 5] = torch.nan, torch.inf, grid[0, 5] * 1e30
    for mode in ("zeros", "border", "reflection"):
        leaves = (x, grid.clone().requires_grad_())
        expected = getattr(ops, f"{operator}_reference")(*leaves, padding_mode=mode)
        weight = torch.randn_like(expected)
        reference = torch.autograd.grad(expected, leaves, weight)
        with emulation.active():
            y = getattr(ops, operator)(*leaves, padding_mode=mode)
            gradients = torch.autograd.grad(y, leaves, weight)
        near = (slice(None), slice(None), slice(0, 4))  # far away float32 knows no position any more
        assert torch.equal(y.isnan(), expected.isnan())
        assert_close(y[near].nan_to_num(), expected[near].nan_to_num(), 1e-5)
        assert all(gradient.isfinite().all() for gradient in (*gradients, *reference))


@pytest.mark.parametrize("size", [(12, 12), (16, 32), (9, 1)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
def test_the_backward_of_mipmap_warp_reads_the_pyramid_that_the_forward_made(dtype, size):
    """Of the size that is promised to torch.compile; without it the backward makes it anew."""
    sizes = importlib.import_module("gangealing_fast.ops.mipmap_warp")._pyramid_size
    emulation.load()
    operators = getattr(torch.ops, emulation.NAMESPACE)
    x = torch.randn(2, 3, *size).to(dtype)
    grid = (torch.rand(2, 6, 7, 2) * 2 - 1).to(torch.promote_types(dtype, torch.float32))
    y, pyramid = operators.mipmap_warp(x, grid, 1, 3.5)
    assert tuple(pyramid.shape) == sizes(x, 3.5) and pyramid.dtype == grid.dtype
    grad = torch.randn_like(y)
    by_x, by_grid = operators.mipmap_warp_backward(grad, x, grid, 1, 3.5, pyramid, True, True)
    nothing = operators.mipmap_warp_backward(grad, x, grid, 1, 3.5, x.new_empty(0), True, True)
    assert torch.equal(by_x, nothing[0]) and torch.equal(by_grid, nothing[1])
    spoilt = operators.mipmap_warp_backward(grad, x, grid, 1, 3.5, torch.full_like(pyramid, torch.nan), True, True)
    assert torch.equal(by_x, spoilt[0]) and spoilt[1].isnan().any()
    with pytest.raises(RuntimeError, match="the pyramid does not fit x"):
        operators.mipmap_warp_backward(grad, x, grid, 1, 3.5, pyramid[:1].contiguous(), True, True)


EVERY_CASE = """
import torch, emulation
from problems import problems
from cases import invert_grid
from gangealing_fast import ops
torch.use_deterministic_algorithms(True, warn_only=True)
torch.utils.deterministic.fill_uninitialized_memory = True
done = 0
with emulation.active() as served:
    for problem in problems(*{operators!r}):
        leaves = [t.requires_grad_(i in problem.differentiable) for i, t in enumerate(problem.tensors(torch.float32))]
        y = problem.function(*leaves)
        torch.autograd.grad(y.square().sum(), [leaves[i] for i in problem.differentiable])
        done += 1
    for case in invert_grid.CASES:
        leaves = [t.requires_grad_() for t in case.tensors(torch.float32)]
        torch.autograd.grad(ops.invert_grid(*leaves)[0].nansum(), leaves)
        ops.nearest_grid_point(*leaves)
        done += 1
assert served == emulation.load(), served
print(done, "cases")
"""


@pytest.mark.slow
def test_no_access_is_out_of_bounds():
    """AddressSanitizer and UndefinedBehaviorSanitizer over every case, forward and backward."""
    result = sanitizers.run(EVERY_CASE.format(operators=OPERATORS), EMULATION_SANITIZE="1")
    assert result.returncode == 0, result.stderr[-6000:]
    assert result.stdout.strip().endswith("cases")
