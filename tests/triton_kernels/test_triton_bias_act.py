# SPDX-License-Identifier: Apache-2.0
"""bias_act's Triton kernels against the references."""

from __future__ import annotations

import pytest
import torch
from cases.bias_act import CASES
from compare import LAYOUTS, compare, every_dtype_for, kernels, lay_out

from gangealing_fast.ops.bias_act import bias_act_backward_reference, bias_act_reference


@pytest.mark.parametrize(("name", "dtype"), every_dtype_for(list(CASES), 4))
def test_values(name, dtype):
    bias_act, bias_act_backward = kernels("bias_act", "bias_act", "bias_act_backward")
    case = CASES[name]
    slope, gain = case.keywords.get("slope", 0.2), case.keywords.get("gain", 2**0.5)
    x, b, noise, strength = case.tensors(dtype)
    grad = torch.randn(x.shape, dtype=torch.float64).to(dtype)
    for layout in LAYOUTS:
        values, gradient = lay_out(x, layout), lay_out(grad, layout)
        if values is None:
            continue
        y = bias_act(values, b, noise, strength, slope, gain)
        expected = bias_act_reference(values, b, slope=slope, gain=gain, noise=noise, noise_strength=strength)
        compare([y], [expected], dtype, layout)
        for need_bias, noise_batch in ((True, case.noise_batch or -1), (False, 1), (False, -1)):
            settings = (slope, gain, need_bias, noise_batch)
            actual = bias_act_backward(gradient, expected, *settings)
            compare(actual, bias_act_backward_reference(gradient, expected, *settings), dtype, layout)


def test_nothing_to_do():
    bias_act, bias_act_backward = kernels("bias_act", "bias_act", "bias_act_backward")
    for shape in ((0, 3, 4, 4), (2, 0, 4, 4), (2, 3, 0, 4)):
        x = torch.zeros(shape)
        assert bias_act(x, torch.zeros(shape[1]), None, None, 0.2, 1.0).shape == shape
        grads = bias_act_backward(x, x, 0.2, 1.0, True, shape[0])
        assert [tuple(g.shape) for g in grads] == [shape, (shape[1],), (shape[0], 1, *shape[2:])]
        assert not any(g.any() for g in grads)


def test_runs_agree_bit_for_bit():
    (bias_act_backward,) = kernels("bias_act", "bias_act_backward")
    y, grad = torch.randn(2, 2, 67, 33, 31)
    first, second = (bias_act_backward(grad, y, 0.2, 1.4, True, 1) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
