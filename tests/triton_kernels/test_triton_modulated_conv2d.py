# SPDX-License-Identifier: Apache-2.0
"""modulated_conv2d's two routes on CUDA, the fused kernel in the interpreter, against the operator's reference."""

from __future__ import annotations

import pytest
import torch
from cases.modulated_conv2d import CASES
from compare import DEVICE, kernels
from support import relative_error

from gangealing_fast.ops._reference import reference_vjp
from gangealing_fast.ops.modulated_conv2d import demodulation_of, operator_reference
from gangealing_fast.ops.upfirdn2d import blur_filter

GRADIENTS = ("x", "weight", "style", "demodulation", "bias", "noise", "noise_strength")
# Half types round the scaled activations before the product, and the interpreter cuts bfloat16 off.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3, torch.float64: 1e-12}
FEW = ("activation and noise", "channels of 32, up", "down, odd size")


def arguments(case, dtype: torch.dtype, channels_last: bool):
    """Of the registered operator, up to the algorithm."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    tensors = {name: t.to(wide) for name, t in case.tensors().items()}
    x, weight, style = tensors["x"].to(dtype), tensors["weight"].to(dtype), tensors["style"]
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    demodulation = demodulation_of(weight, style) if case.keywords.get("demodulate", True) else None
    f = case.filter(wide)
    f = blur_filter().to(wide) if f is None else f
    activated = case.bias and case.keywords.get("slope", 0.2) > 0
    added = [tensors.get(name) if activated else None for name in GRADIENTS[4:]]
    slope, gain = (case.keywords.get("slope", 0.2), case.keywords.get("gain", 2**0.5)) if activated else (1.0, 1.0)
    return [x, weight, style, demodulation, f, *added], [bool(case.keywords.get(m)) for m in ("up", "down")] + [slope, gain]


def close(actual: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype, what: str) -> None:
    assert actual.shape == expected.shape and actual.dtype == expected.dtype, what
    error = relative_error(actual, expected)
    assert error <= TOLERANCE[dtype], f"{what} in {dtype}: relative error {error:.3g}"


def check(case, dtype: torch.dtype, algorithm: str, channels_last: bool) -> None:
    modulated_conv2d, modulated_conv2d_backward = kernels("modulated_conv2d", "modulated_conv2d", "modulated_conv2d_backward")
    tensors, options = arguments(case, dtype, channels_last)
    exact = [t if t is None else t.double() for t in tensors]
    y = modulated_conv2d(*tensors, *options, algorithm)
    expected = operator_reference(*exact, *options).to(dtype)
    close(y, expected, dtype, "y")
    assert y.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    grad = torch.randn_like(expected)
    wanted = [i for i, t in enumerate(exact) if t is not None and i != 4]

    def function(*leaves: torch.Tensor) -> torch.Tensor:
        values = list(exact)
        for i, leaf in zip(wanted, leaves, strict=True):
            values[i] = leaf
        return operator_reference(*values, *options)

    gradients = dict(zip(wanted, reference_vjp(function, tuple(exact[i] for i in wanted), grad.double()), strict=True))
    found = modulated_conv2d_backward(grad, *tensors, expected, *options, algorithm, *[True] * 5)
    for name, i, actual in zip(GRADIENTS, (0, 1, 2, 3, 5, 6, 7), found, strict=True):
        if i in gradients:
            close(actual, gradients[i].to(tensors[i].dtype), dtype, f"gradient of {name}")
        else:
            assert actual.numel() == 0
    frozen = modulated_conv2d_backward(grad, *tensors, expected, *options, algorithm, True, False, True, False, False)
    close(frozen[0], gradients[0].to(dtype), dtype, "gradient of x, weight frozen")
    assert [g.numel() > 0 for g in frozen] == [True, False, True, False, False, False, False]


@pytest.mark.parametrize("name", CASES)
def test_fused(name):
    check(CASES[name], torch.float32, "fused", channels_last=True)


@pytest.mark.parametrize("name", FEW)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_fused_in_half_precision(name, dtype):
    check(CASES[name], dtype, "fused", channels_last=name == FEW[0])


@pytest.mark.parametrize("name", [*FEW, "to colour", "up, activation and noise"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_library(name, dtype):
    check(CASES[name], dtype, "library", channels_last=False)


def test_float64_takes_the_library_whatever_is_asked_for():
    check(CASES["activation"], torch.float64, "fused", channels_last=False)


@pytest.mark.parametrize("blocks", [(16, 16, 16), (64, 32, 32)], ids=str)
def test_tiles_of_any_size(blocks):
    from gangealing_fast.kernels._convolution import Blocks, convolve

    x, weight = torch.randn(2, 20, 6, 9).to(DEVICE), torch.randn(18, 20, 3, 3).to(DEVICE)
    blocks = Blocks(*blocks, 4, 2)
    y, _ = convolve(x, weight, None, None, output_size=(6, 9), blocks=blocks, padding=1)
    close(y, torch.nn.functional.conv2d(x, weight, padding=1), torch.float32, "stride 1")
    y, _ = convolve(x, weight, None, None, output_size=(2, 4), blocks=blocks, stride=2)
    close(y, torch.nn.functional.conv2d(x, weight, stride=2), torch.float32, "stride 2")
    y, _ = convolve(x, weight, None, None, output_size=(13, 19), blocks=blocks, stride=2, transposed=True)
    close(y, torch.nn.functional.conv_transpose2d(x, weight.transpose(0, 1), stride=2), torch.float32, "transposed")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("scaled", [False, True], ids=["input scaled", "weight scaled before"])
def test_the_input_or_the_weight_is_scaled(scaled, dtype):
    """Forwards, and as the adjoint, whose scale is that of the output channels."""
    from gangealing_fast.kernels._convolution import Blocks, convolve

    x, weight = torch.randn(2, 20, 6, 9).to(DEVICE, dtype), torch.randn(18, 20, 3, 3).to(DEVICE, dtype)
    scale, other = torch.rand(2, 20).to(DEVICE) + 0.5, torch.rand(2, 18).to(DEVICE) + 0.5
    blocks = Blocks(64, 32, 32, 4, 2, scaled)
    y, _ = convolve(x, weight, scale, other, output_size=(6, 9), blocks=blocks, padding=1)
    expected = torch.nn.functional.conv2d(x.float() * scale[:, :, None, None], weight.float(), padding=1)
    close(y, (expected * other[:, :, None, None]).to(dtype), dtype, "forwards")
    grad = torch.randn(2, 18, 6, 9).to(DEVICE, dtype)
    original = torch.randn(2, 20, 6, 9).to(DEVICE, dtype)
    y, products = convolve(
        grad, weight, other, scale, output_size=(6, 9), blocks=blocks, padding=1, transposed=True, adjoint=True, original=original
    )
    inner = torch.nn.functional.conv_transpose2d(grad.float() * other[:, :, None, None], weight.float(), padding=1)
    close(y, (inner * scale[:, :, None, None]).to(dtype), dtype, "adjoint")
    assert relative_error(products, (inner * original.float()).sum((2, 3))) <= TOLERANCE[dtype]


def test_no_samples():
    modulated_conv2d, modulated_conv2d_backward = kernels("modulated_conv2d", "modulated_conv2d", "modulated_conv2d_backward")
    tensors, options = arguments(CASES["activation and noise"], torch.float32, False)
    tensors = [t if i in (1, 4, 5, 7) else t[:0] for i, t in enumerate(tensors)]
    y = modulated_conv2d(*tensors, *options, "auto")
    assert y.shape == (0, 2, 2, 3)
    found = modulated_conv2d_backward(y, *tensors, y, *options, "auto", *[True] * 5)
    assert [list(g.shape) for g in found] == [list(tensors[i].shape) for i in (0, 1, 2, 3, 5, 6, 7)]
