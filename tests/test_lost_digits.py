# SPDX-License-Identifier: Apache-2.0
"""Gradients that are taken from rounded results: what rounding loses (a sign, the digits beside a large bias) must not matter."""

from __future__ import annotations

import pytest
import torch
from support import DTYPES, relative_error
from torch import Tensor

from gangealing_fast import ops
from gangealing_fast.ops.bias_act import bias_act_backward_reference, bias_act_with_sign
from gangealing_fast.ops.modulated_conv2d import convolution_algorithm


def arguments(dtype: torch.dtype) -> Tensor:
    """Numbers of every magnitude that `dtype` has, both signs of them and of 0, `[2, 48, 5, 3]`."""
    smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    sizes = torch.tensor([0.0, smallest, 3 * smallest, 40 * smallest, 1e-3, 1.0, 3.0], dtype=torch.float64)
    values = torch.cat([sizes, -sizes]).to(dtype)
    return values.repeat(103)[: 2 * 48 * 5 * 3].reshape(2, 48, 5, 3)


@pytest.mark.parametrize("layout", ["contiguous", "channels-last"])
@pytest.mark.parametrize("gain", [1e-4, 2**0.5, 1e3])
@pytest.mark.parametrize("slope", [0.2, 0.0, 1.0, 1e-6])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_sign_of_what_underflows(dtype, slope, gain, layout):
    """The gradient is that of the argument's side, by the kernel and by the operator's body, which serves without one."""
    x = arguments(dtype)
    x = x.contiguous(memory_format=torch.channels_last) if layout == "channels-last" else x
    noise, strength, b = torch.zeros(2, 1, 5, 3).to(dtype), torch.ones(1, dtype=dtype), torch.zeros(48, dtype=dtype)
    for tensors in ((x,), (x, b), (x, b, noise, strength)):
        gradients = []
        for function in (ops.bias_act, ops.bias_act_reference):
            leaves = [t.detach().requires_grad_() for t in tensors]
            added = dict(zip(("noise", "noise_strength"), leaves[2:], strict=False))
            y = function(leaves[0], leaves[1] if len(leaves) > 1 else None, slope=slope, gain=gain, **added)
            gradients.append([y, *torch.autograd.grad(y, leaves, torch.ones_like(y))])
        for actual, expected in zip(*gradients, strict=True):
            # Of the smallest numbers slope times gain is rounded in another order.
            tiny = torch.finfo(dtype).smallest_normal if dtype in (torch.float64, torch.float32) else 0
            torch.testing.assert_close(actual, expected, atol=tiny if actual.dim() == 4 else 1e-2, rtol=1e-2)
    y = bias_act_with_sign(x, None, None, None, slope, gain)
    assert torch.equal(y, ops.bias_act_reference(x, None, slope=slope, gain=gain))
    assert torch.equal(torch.signbit(y), ~(x > 0))
    body = bias_act_backward_reference(torch.ones_like(y), y, slope, gain, False, -1)[0]
    expected = torch.where(x > 0, gain, gain * slope).to(dtype)
    torch.testing.assert_close(body, expected, atol=torch.finfo(dtype).smallest_normal, rtol=1e-2)


def test_not_a_number_was_not_positive():
    x = torch.tensor([torch.nan, -torch.nan, torch.inf, -torch.inf]).reshape(1, 1, 4).requires_grad_()
    for dtype in DTYPES:
        y = ops.bias_act(x.to(dtype), None, gain=1.0)
        gradient = torch.autograd.grad(y, x, torch.ones_like(y))[0].flatten()
        assert torch.allclose(gradient, torch.tensor([0.2, 0.2, 1.0, 0.2]), rtol=1e-2)


def convolution(dtype: torch.dtype, bias: float) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    normal = lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)  # noqa: E731
    tensors = {"x": normal(2, 33, 9, 9), "weight": normal(34, 33, 3, 3) / 17, "style": 1 + 0.3 * normal(2, 33)}
    return {name: t.to(dtype) for name, t in {**tensors, "bias": bias * (1 + 0.1 * normal(34))}.items()}


def gradients(function, tensors: dict[str, Tensor], names: tuple[str, ...], **keywords) -> dict[str, Tensor]:
    leaves = {name: t.detach().requires_grad_(name in names) for name, t in tensors.items()}
    y = function(**leaves, **keywords)
    weight = torch.cos(torch.arange(y.numel(), dtype=torch.float64).square()).reshape(y.shape)
    return dict(zip(names, torch.autograd.grad(y, [leaves[name] for name in names], weight.to(y.dtype)), strict=True))


@pytest.mark.parametrize("resampling", [None, "up", "down"])
@pytest.mark.parametrize("algorithm", ["library", "fused"])
@pytest.mark.parametrize(("slope", "gain"), [(0.2, 2**0.5), (0.2, 1e-3), (1e-3, 1.0), (1e-30, 1.0)])
@pytest.mark.parametrize("bias", [0.1, 300.0, -300.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_style_beside_a_large_bias(dtype, bias, slope, gain, algorithm, resampling):
    """No gradient is worse than the reference's by more than the bias costs float32's last place."""
    tensors, names = convolution(dtype, bias), ("x", "weight", "style", "bias")
    keywords = {"slope": slope, "gain": gain, **({resampling: True} if resampling else {})}
    exact = gradients(ops.modulated_conv2d_reference, {n: t.double() for n, t in tensors.items()}, names, **keywords)
    own = gradients(ops.modulated_conv2d_reference, tensors, names, **keywords)
    with convolution_algorithm(algorithm):
        found = gradients(ops.modulated_conv2d, tensors, names, **keywords)
    wide = torch.finfo(torch.promote_types(dtype, torch.float32)).eps
    for name in names:
        if exact[name].abs().max() < torch.finfo(dtype).smallest_normal:
            continue  # on the negative side with a slope that leaves no number of this dtype
        allowed = 3 * relative_error(own[name], exact[name]) + 8 * wide * (1 + abs(bias)) + torch.finfo(dtype).eps / 4
        error = relative_error(found[name], exact[name])
        assert error <= allowed, f"{name}: error {error:.3g}, the reference's {relative_error(own[name], exact[name]):.3g}"


@pytest.mark.parametrize("algorithm", ["library", "fused"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_sign_of_a_convolution_that_underflows(dtype, algorithm):
    """With a style that has no gradient, as of a frozen network, the activation stays in the convolution in every dtype."""
    tensors = convolution(dtype, 0.0)
    gain = {torch.float16: 3e-8, torch.bfloat16: 1e-40, torch.float32: 1e-45, torch.float64: 1e-323}[dtype]
    results = []
    for function in (ops.modulated_conv2d, ops.modulated_conv2d_reference):
        with convolution_algorithm(algorithm):
            found = gradients(lambda gain=gain, function=function, **given: function(**given, gain=gain), tensors, ("bias",))
            results.append(found["bias"].double() / gain)
    assert (results[0] - results[1]).norm() <= 0.1 * results[1].norm()
