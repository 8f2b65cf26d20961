# SPDX-License-Identifier: Apache-2.0
"""inverted_residual: values, derivatives, layouts, threads, and the blocks of EfficientNet that it computes."""

from __future__ import annotations

import pytest
import torch
from cases.inverted_residual import CASES, SMALL, TOLERANCE
from support import (
    Recorder,
    assert_close,
    assert_cpu_kernels,
    at_level,
    check_compile,
    check_empty_batch,
    check_gradients,
    check_registration,
    check_values,
)

from gangealing_fast import ops
from gangealing_fast.models import EfficientNetPerceptual
from gangealing_fast.ops import _levels, inverted_residual, inverted_residual_reference

FIRST = CASES[0]
# torch 2.11 cannot trace the second derivative of a convolution whose sizes are symbols ("Cannot call numel() on tensor with
# symbolic sizes").
TRACED_TWICE = tuple(int(part) for part in torch.__version__.split(".")[:2]) > (2, 11)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_values(case):
    function, reference, tensors = case.called(inverted_residual), case.called(inverted_residual_reference), case.tensors()
    check_values(function, reference, tensors, {}, tuple(range(len(tensors))), (0,), tolerance=TOLERANCE)


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_derivatives(case):
    tensors = case.tensors()
    check_gradients(case.called(inverted_residual), tensors, {}, tuple(range(len(tensors))))


@pytest.mark.parametrize("case", [*SMALL, FIRST], ids=lambda case: case.name)
def test_registration(case):
    tensors, function = case.tensors(), case.called(inverted_residual)
    everything = tuple(range(len(tensors)))
    check_registration(function, tensors, {}, everything, second_order=TRACED_TWICE)
    check_compile(function, tensors, {}, everything)
    check_empty_batch(function, tensors, {}, everything)


def test_kernel_is_compiled():
    assert_cpu_kernels("inverted_residual")


def test_by_hand():
    """One channel of ones, tripled, cut off at 6; the sum of nine of them at 6 again; halved."""
    one = torch.ones(1, 1, 1, 1)
    x = torch.full((1, 1, 3, 3), 3.0)
    y = inverted_residual(x, 3 * one, torch.zeros(1), torch.full((1, 1, 3, 3), 0.1), torch.zeros(1), one / 2, torch.ones(1))
    # 6 places of 0.1 times 6 at an edge's middle, 4 at a corner, 9 inside.
    assert_close(y, 1 + torch.tensor([[[[2.4, 3.6, 2.4], [3.6, 5.4, 3.6], [2.4, 3.6, 2.4]]]]) / 2, 1e-6)


@pytest.mark.parametrize("level", _levels.LEVELS)
def test_threads_and_batches_do_not_change_the_result(level):
    case = next(case for case in CASES if case.name == "many-hidden")
    x, *weights = case.tensors(torch.float32)
    x = torch.cat([x, x.flip(3), x.flip(2)])
    function, threads, results = case.called(inverted_residual), torch.get_num_threads(), []
    with at_level(level):
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(function(x, *weights))
        torch.set_num_threads(threads)
        results.append(torch.cat([function(part, *weights) for part in x.split(1)]))
    assert all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("padding", ["zeros", "replicate"])
def test_efficientnet_is_made_of_it(padding):
    """The features without derivatives, by this operator, are those of the layers one by one."""
    network = EfficientNetPerceptual((0, 2, 4, 6), padding=padding, fused=True)
    images = torch.rand(2, 3, 72, 100) * 2 - 1
    with Recorder() as recorder:
        found = network.features(images)
    assert [call.name() for call in recorder.calls] == ["gangealing_fast::inverted_residual"]
    layers = network.features(images.clone().requires_grad_())
    with ops.reference():
        plain = network.features(images)
    for a, b, c in zip(found, layers, plain, strict=True):
        assert a.is_contiguous(memory_format=torch.channels_last)
        assert_close(a, b, 1e-5)
        assert_close(c, b, 1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert all(feature.dtype == torch.bfloat16 for feature in network.features(images))


def test_equal_pictures_have_no_distance_whichever_side_is_derived():
    """Adam makes whole steps of what rounding leaves: a distance that is trained by computes both sides alike."""
    network = EfficientNetPerceptual()
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        target = network.features(images)
    leaf = images.clone().requires_grad_()
    distance = network.distance(network.features(leaf), target)
    (gradient,) = torch.autograd.grad(distance.sum(), leaf)
    assert not distance.any() and not gradient.any()
