# SPDX-License-Identifier: Apache-2.0
"""invert_grid: values, confidence, derivatives, folds, outlines, values that are not finite."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from cases.invert_grid import CASES, DIFFERENTIABLE, SMALL, TOLERANCE, Case
from support import (
    OPCHECKS,
    assert_close,
    assert_cpu_kernels,
    check_compile,
    check_empty_batch,
    check_gradients,
    relative_error,
    strided,
)

from gangealing_fast.ops import invert_grid, invert_grid_reference, nearest_grid_point


def sampled(grid, position):
    """The grid, interpolated bilinearly at positions in cells."""
    size = torch.tensor([grid.shape[2], grid.shape[1]], dtype=grid.dtype)
    place = ((2 * position + 1) / size - 1)[:, None]
    return F.grid_sample(grid.permute(0, 3, 1, 2), place, padding_mode="border", align_corners=False)[:, :, 0].mT


def compare(grid, points, tolerance):
    """Position, confidence and gradients against the reference; positions that are not finite in the same places."""
    inputs = [grid.requires_grad_(), points.requires_grad_()]
    (position, confidence), (expected, expected_confidence) = invert_grid(*inputs), invert_grid_reference(*inputs)
    assert torch.equal(confidence, expected_confidence)
    assert torch.equal(position.isnan(), expected.isnan())
    assert_close(position.nan_to_num(), expected.nan_to_num(), tolerance[0])
    weight = torch.randn_like(position)
    grads, others = (torch.autograd.grad((p * weight).nan_to_num().sum(), inputs) for p in (position, expected))
    for grad, other in zip(grads, others, strict=True):
        assert_close(grad, other, tolerance[1], "gradient")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_reference(case):
    for dtype, tolerance in TOLERANCE.items():
        compare(*case.tensors(dtype), tolerance)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_inputs_are_computed_in_float32(dtype):
    grid, points = CASES[0].tensors(dtype)
    position, confidence = invert_grid(grid, points)
    expected, expected_confidence = invert_grid(grid.float(), points.float())
    assert position.dtype == confidence.dtype == torch.float32
    assert torch.equal(position, expected) and torch.equal(confidence, expected_confidence)


def test_strides_do_not_matter():
    grid, points = CASES[1].tensors()
    for actual, expected in zip(invert_grid(strided(grid), strided(points)), invert_grid(grid, points), strict=True):
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("case", [case for case in CASES if case.kind != "broken"], ids=lambda case: case.name)
def test_the_grid_takes_the_point_where_the_confidence_says_so(case):
    grid, points = case.tensors()
    position, confidence = invert_grid(grid, points)
    held = confidence > 0
    assert_close(sampled(grid, position)[held], points[held], 1e-8)
    assert torch.equal(position[~held], nearest_grid_point(grid, points)[~held].double())
    assert ((confidence == 0) | ((1 / confidence - (1 / confidence).round()).abs() < 1e-9)).all()


def test_every_point_inside_a_smooth_grid_is_held_once():
    """No point falls between two cells, on edges and vertices neither: positions that many floats in a row share."""
    grid, _ = Case("dense", 1, 24, 24, 0, strength=0.8).tensors()
    place = torch.rand(1, 3000, 2, dtype=torch.float64) * 23
    place[:, :1000, 0] = place[:, :1000, 0].round()
    place[:, 1000:2000] = place[:, 1000:2000].round()
    position, confidence = invert_grid(grid, sampled(grid, place))
    assert (confidence == 1).all()
    assert_close(position, place, 1e-9)


def test_mirrored_twice_is_itself():
    grid, points = CASES[0].tensors()
    mirror = torch.tensor([-1.0, 1.0], dtype=torch.float64)
    position, confidence = invert_grid(grid * mirror, points * mirror)
    expected, expected_confidence = invert_grid(grid, points)
    assert torch.equal(confidence, expected_confidence)
    assert_close(position, expected, 1e-12)


def test_folds_lower_the_confidence():
    x = torch.tensor([0.0, 2.0, 1.0, 3.0], dtype=torch.float64)  # there, back and there again
    grid = torch.stack(torch.meshgrid(x, torch.arange(3.0, dtype=torch.float64), indexing="xy"), -1)[None]
    points = torch.tensor([[[0.5, 0.5], [1.5, 0.5], [2.5, 1.5], [4.0, 0.5]]], dtype=torch.float64)
    position, confidence = invert_grid(grid, points)
    assert_close(confidence, torch.tensor([[1, 1 / 3, 1, 0]], dtype=torch.float64), 1e-12)
    expected = torch.tensor([[[0.25, 0.5], [0.75, 0.5], [2.75, 1.5], [3.0, 0.0]]], dtype=torch.float64)
    assert_close(position, expected, 1e-12)


def test_values_that_are_not_finite():
    grid, points = CASES[0].tensors()
    clean, _ = invert_grid(grid, points)
    points[0, 0, 0], points[0, 1, 1] = torch.nan, torch.inf
    grid.requires_grad_(), points.requires_grad_()
    position, confidence = invert_grid(grid, points)
    assert position[0, :2].isnan().all() and not confidence[0, :2].any()
    assert torch.equal(position[0, 2:], clean[0, 2:]) and torch.equal(position[1], clean[1])
    grads = torch.autograd.grad(position.nan_to_num().sum(), (grid, points))
    assert all(grad.isfinite().all() for grad in grads) and not grads[1][0, :2].any()


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_derivatives(case):
    check_gradients(lambda *inputs: invert_grid(*inputs)[0], case.tensors(), {}, DIFFERENTIABLE, second_order=False)


def test_registration_and_compilation():
    inputs = SMALL[0].tensors()
    position = lambda *inputs: invert_grid(*inputs)[0]  # noqa: E731
    operators = torch.ops.gangealing_fast
    cell, offset, confidence = operators.invert_grid(*inputs)
    torch.library.opcheck(operators.invert_grid, inputs, test_utils=OPCHECKS)
    torch.library.opcheck(operators.invert_grid_backward, (offset, inputs[0], cell, offset, confidence), test_utils=OPCHECKS)
    # The fourth check adds up all outputs and stumbles over the cells, which are integers; check_compile does what it does.
    leaves = tuple(t.clone().requires_grad_() for t in inputs)
    torch.library.opcheck(operators.invert_grid, leaves, test_utils=OPCHECKS[:3])
    check_compile(position, CASES[0].tensors(), {}, DIFFERENTIABLE)
    check_empty_batch(position, inputs, {}, DIFFERENTIABLE, DIFFERENTIABLE)


def test_a_second_derivative_is_refused():
    grid, points = (t.requires_grad_() for t in SMALL[0].tensors())
    (grad,) = torch.autograd.grad(invert_grid(grid, points)[0].square().sum(), points, create_graph=True)
    with pytest.raises(NotImplementedError, match="first derivatives only"):
        torch.autograd.grad(grad.sum(), grid)


def test_kernels_are_compiled():
    assert_cpu_kernels("invert_grid", "invert_grid_backward")


def test_threads_do_not_change_the_result():
    grid, points = (t.requires_grad_() for t in CASES[3].tensors(torch.float32))
    threads, results = torch.get_num_threads(), []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        position, confidence = invert_grid(grid, points)
        results.append((position, confidence, *torch.autograd.grad(position.square().sum(), (grid, points))))
    torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_float32_knows_a_cell_to_a_ten_thousandth():
    grid, points = Case("fine", 1, 128, 128, 200, strength=1.0).tensors()
    position, _ = invert_grid(grid.float(), points.float())
    assert relative_error(position, invert_grid(grid.float().double(), points.float().double())[0]) < 1e-5
    assert (position - invert_grid(grid, points)[0]).abs().max() < 1e-4
