# SPDX-License-Identifier: Apache-2.0
"""modulated_conv2d: values, both derivatives, every way to convolve, layouts, autocast."""

from __future__ import annotations

import sys

import pytest
import torch
from cases.modulated_conv2d import CASES
from support import (
    TOLERANCE,
    assert_close,
    assert_cpu_kernels,
    assert_golden,
    check_compile,
    check_empty_batch,
    check_registration,
    check_values,
    golden,
    golden_state,
)

from gangealing_fast.models.layers import ModulatedConv2d
from gangealing_fast.ops.modulated_conv2d import convolution_algorithm, modulated_conv2d, modulated_conv2d_reference

WIDE = (torch.float64, torch.float32)
# Winograd's transforms amplify rounding (csrc/cpu/winograd.h); (output, gradient).
WINOGRAD = {torch.float32: (1e-5, 2e-5)}


def arrange(case, dtype=torch.float64):
    """The public function and its reference as functions of the tensors that the case has, and those tensors."""
    tensors = case.tensors(dtype)
    names = list(tensors)

    def call(function):
        def of_tensors(*given, **keywords):
            f = case.filter(torch.float64 if given[0].dtype == torch.float64 else torch.float32)
            return function(**dict(zip(names, given, strict=True)), f=f, **keywords)

        return of_tensors

    return call(modulated_conv2d), call(modulated_conv2d_reference), list(tensors.values())


@pytest.mark.parametrize("name", CASES)
def test_values(name):
    function, reference, tensors = arrange(CASES[name])
    check_values(function, reference, tensors, CASES[name].keywords, range(len(tensors)), dtypes=WIDE)


@pytest.mark.parametrize("algorithm", ["library", "fused"])
@pytest.mark.parametrize("name", CASES)
def test_every_algorithm(name, algorithm):
    function, reference, tensors = arrange(CASES[name])
    tolerance = WINOGRAD if algorithm == "fused" else TOLERANCE
    with convolution_algorithm(algorithm):
        every = range(len(tensors))
        check_values(function, reference, tensors, CASES[name].keywords, every, dtypes=[torch.float32], tolerance=tolerance)


def test_compiled_kernels_serve():
    assert_cpu_kernels("modulated_conv2d", "modulated_conv2d_backward")


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name].quick])
def test_derivatives_and_registration(name):
    case = CASES[name]
    function, _, tensors = arrange(case)
    every = range(len(tensors))
    per_sample = ("x", "style", "noise") if case.noise_batch > 1 else ("x", "style")
    batched = [i for i, given in enumerate(case.tensors()) if given in per_sample]
    check_empty_batch(function, tensors, case.keywords, every, batched)
    inputs = [tensor.requires_grad_() for tensor in tensors]
    assert torch.autograd.gradcheck(lambda *a: function(*a, **case.keywords), inputs)
    assert torch.autograd.gradgradcheck(lambda *a: function(*a, **case.keywords), inputs, fast_mode=True)
    check_registration(function, tensors, case.keywords, every)
    check_compile(function, tensors, case.keywords, every)


@pytest.mark.parametrize("name", ["channels of 32", "channels of 32, up", "more channels in than out"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_errs_no_more_than_the_definition(name, dtype):
    function, reference, tensors = arrange(CASES[name])
    # Linear, as a rounded argument may fall on either side of the kink. The strength's gradient, one number, can be right by luck.
    keywords = {**CASES[name].keywords, "slope": 1.0}
    check_values(function, reference, tensors, keywords, range(min(4, len(tensors))), dtypes=[dtype])


@pytest.mark.parametrize(("resampling", "size"), [("up", (5, 1)), ("up", (9, 1)), ("down", (14, 2)), ("down", (17, 3))])
def test_images_of_one_column_in_bfloat16(resampling, size):
    """Torch's own strided convolution leaves elements of such results unwritten."""
    tensors = torch.randn(2, 3, *size).bfloat16(), torch.randn(35, 3, 3, 3), torch.rand(2, 3)
    results = []
    for function, dtype in ((modulated_conv2d, None), (modulated_conv2d_reference, torch.float64)):
        leaves = [t.to(dtype or t.dtype).requires_grad_() for t in tensors]
        y = function(*leaves, **{resampling: True})
        results.append([y, *torch.autograd.grad(y.double().square().sum(), leaves)])
    for actual, expected in zip(*results, strict=True):
        assert_close(actual, expected, 2e-2)


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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["channels of 32", "channels of 32, up", "more channels in than out"])
def test_without_units_for_half_precision_float32_is_computed(monkeypatch, name, dtype):
    monkeypatch.setattr(sys.modules["gangealing_fast.ops.modulated_conv2d"], "EMULATED", frozenset({dtype}))
    function, _, tensors = arrange(CASES[name], torch.float32)
    x, rest = tensors[0].to(dtype), tensors[1:]
    results = []
    for first in (x, x.float()):
        leaves = [first.clone().requires_grad_(), *(tensor.clone().requires_grad_() for tensor in rest)]
        y = function(*leaves, **CASES[name].keywords)
        assert y.dtype == first.dtype
        results.append([y, *torch.autograd.grad(y, leaves, torch.ones_like(y))])
    narrow, wide = results
    assert torch.equal(narrow[0], wide[0].to(dtype)) and torch.equal(narrow[1], wide[1].to(dtype))
    assert all(torch.equal(*pair) for pair in zip(narrow[2:], wide[2:], strict=True))


def test_float32_parameters_beside_half_precision():
    x = torch.randn(2, 8, 5, 5).bfloat16().requires_grad_()
    weight, style, bias = torch.randn(4, 8, 3, 3, requires_grad=True), torch.randn(2, 8), torch.randn(4)
    y = modulated_conv2d(x, weight, style, bias=bias)
    y.float().square().sum().backward()
    assert y.dtype == x.grad.dtype == torch.bfloat16 and weight.grad.dtype == torch.float32
    assert_close(y, modulated_conv2d_reference(x.float(), weight, style, bias=bias), 1e-2)


def test_autocast_applies_as_to_any_convolution():
    x, weight, style = torch.randn(1, 4, 5, 5), torch.randn(4, 4, 3, 3), torch.randn(1, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert modulated_conv2d(x, weight, style).dtype == torch.bfloat16
        assert modulated_conv2d(x.double(), weight.double(), style.double()).dtype == torch.float64


def test_the_backward_keeps_only_input_and_output():
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        x = torch.randn(2, 8, 16, 16, requires_grad=True)
        y = modulated_conv2d(x, torch.randn(8, 8, 3, 3), torch.randn(2, 8), bias=torch.zeros(8))
    large = {t.untyped_storage().data_ptr() for t in kept if t.numel() >= x.numel()}
    assert large == {x.untyped_storage().data_ptr(), y.untyped_storage().data_ptr()}


def test_algorithms_are_named():
    with pytest.raises(ValueError, match="auto"), convolution_algorithm("winograd"):
        pass
