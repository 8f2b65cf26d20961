# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from support import assert_close, assert_golden, golden, golden_state

from gangealing_fast.models.layers import ModulatedConv2d
from gangealing_fast.ops.modulated_conv2d import modulated_conv2d, modulated_conv2d_reference

MODES = [{}, {"up": True}, {"down": True}, {"demodulate": False}]


@pytest.mark.parametrize("case", range(5))
def test_agrees_with_the_published_layer(case):
    settings, arrays = golden(f"modulated_conv_{case}")
    layer = ModulatedConv2d(
        8,
        5,
        settings["kernel_size"],
        7,
        demodulate=settings["demodulate"],
        up=settings["upsample"],
        down=settings["downsample"],
        normalize=settings["normalize"],
    )
    layer.load_state_dict(golden_state(settings["state"]))
    x, style = arrays["x"].requires_grad_(), arrays["style"].requires_grad_()
    y = layer(x, style)
    assert_golden(y, arrays["y"])
    inputs = (x, style, layer.weight, layer.modulation.weight, layer.modulation.bias)
    names = ("grad_x", "grad_style", "grad_weight", "grad_mod_weight", "grad_mod_bias")
    for name, gradient in zip(names, torch.autograd.grad(y, inputs, arrays["grad_out"]), strict=True):
        assert_golden(gradient, arrays[name], gradient=True, what=name)


@pytest.mark.parametrize("kwargs", MODES)
@pytest.mark.parametrize("shape", [(2, 3, 5, 8), (1, 1, 4, 7)])
def test_agrees_with_the_definition(kwargs, shape):
    x = torch.randn(shape, dtype=torch.float64)
    weight, style = torch.randn(4, shape[1], 3, 3, dtype=torch.float64), torch.randn(shape[:2], dtype=torch.float64)
    assert_close(modulated_conv2d(x, weight, style, **kwargs), modulated_conv2d_reference(x, weight, style, **kwargs), 1e-10)


@pytest.mark.parametrize("kwargs", MODES)
def test_empty_batch(kwargs):
    weight = torch.randn(4, 3, 3, 3, requires_grad=True)
    y = modulated_conv2d(torch.randn(0, 3, 4, 4), weight, torch.randn(0, 3), **kwargs)
    assert y.shape == (0, 4, *modulated_conv2d(torch.randn(1, 3, 4, 4), weight, torch.randn(1, 3), **kwargs).shape[2:])
    assert not torch.autograd.grad(y.sum(), weight)[0].any()


@pytest.mark.parametrize("kwargs", MODES)
def test_derivatives(kwargs):
    x, weight, style = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((2, 2, 4, 4), (2, 2, 3, 3), (2, 2)))
    assert torch.autograd.gradcheck(lambda *a: modulated_conv2d(*a, **kwargs), (x, weight, style))
    assert torch.autograd.gradgradcheck(lambda *a: modulated_conv2d(*a, **kwargs), (x, weight, style))


def test_low_precision_errs_no_more_than_the_definition():
    x, weight, style = torch.randn(2, 8, 9, 9), torch.randn(8, 8, 3, 3) / 8, torch.randn(2, 8)
    exact = modulated_conv2d_reference(x, weight, style)
    for dtype in (torch.bfloat16, torch.float16):
        ours = modulated_conv2d(x.to(dtype), weight.to(dtype), style.to(dtype)).float()
        theirs = modulated_conv2d_reference(x.to(dtype), weight.to(dtype), style.to(dtype)).float()
        assert (ours - exact).norm() <= 2 * (theirs - exact).norm()


@pytest.mark.parametrize(
    ("x", "weight", "style", "kwargs", "words"),
    [
        ((2, 3, 4), (4, 3, 3, 3), (2, 3), {}, "x must be"),
        ((2, 3, 4, 4), (4, 3, 3, 1), (2, 3), {}, "weight must be"),
        ((2, 3, 4, 4), (4, 5, 3, 3), (2, 3), {}, "5 input channels"),
        ((2, 3, 4, 4), (4, 3, 3, 3), (2, 4), {}, "style must be"),
        ((2, 3, 4, 4), (4, 3, 3, 3), (2, 3), {"up": True, "down": True}, "exclude"),
    ],
)
def test_wrong_arguments_are_named(x, weight, style, kwargs, words):
    with pytest.raises(ValueError, match=words):
        modulated_conv2d(torch.zeros(x), torch.zeros(weight), torch.zeros(style), **kwargs)
