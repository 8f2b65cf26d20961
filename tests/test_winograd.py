# SPDX-License-Identifier: Apache-2.0
"""The Winograd convolution behind modulated_conv2d: its error, the same bits on any number of threads, kept weights."""

from __future__ import annotations

import pytest
import torch
from support import assert_close, assert_cpu_kernels, relative_error

from gangealing_fast.ops import modulated_conv2d
from gangealing_fast.ops.modulated_conv2d import convolution_algorithm


def winograd(x, weight, style, up=False, count=None):
    """Output and gradients of x and style by this package's own convolution, on `count` threads."""
    x, style = x.detach().requires_grad_(), style.detach().requires_grad_()
    threads = torch.get_num_threads()
    torch.set_num_threads(count or threads)
    try:
        with convolution_algorithm("fused"):
            y = modulated_conv2d(x, weight, style, up=up)
            return y.detach(), *torch.autograd.grad(y.square().sum(), (x, style))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(("channels", "error", "direct"), [(32, 1.4e-6, 3.1e-7), (128, 2.5e-6, 6.0e-7), (512, 4.6e-6, 1.2e-6)])
def test_the_error_is_the_one_stated(channels, error, direct):
    """The figures of `convolution_algorithm` and csrc/cpu/winograd.h: normal inputs, weights and styles, against float64."""
    assert_cpu_kernels("modulated_conv2d")
    x, weight, style = torch.randn(1, channels, 16, 16), torch.randn(channels, channels, 3, 3), torch.randn(1, channels)
    exact = modulated_conv2d(x.double(), weight.double(), style.double())
    for algorithm, stated in (("fused", error), ("library", direct)):
        with convolution_algorithm(algorithm):
            measured = relative_error(modulated_conv2d(x, weight, style), exact)
        assert 0.5 * stated < measured < 1.5 * stated, f"{algorithm}: {measured:.2g}, stated {stated:.2g}"


def test_gradients_err_by_little():
    x, weight, style = torch.randn(2, 128, 18, 13), torch.randn(64, 128, 3, 3) / 34, torch.randn(2, 128)
    exact = [t.double().requires_grad_() for t in (x, style)]
    y = modulated_conv2d(exact[0], weight.double(), exact[1])
    expected = y, *torch.autograd.grad(y.square().sum(), exact)
    for actual, other in zip(winograd(x, weight, style), expected, strict=True):
        assert_close(actual, other, 1e-5)


@pytest.mark.parametrize("up", [False, True])
def test_the_same_bits_on_any_number_of_threads(up):
    x, weight, style = torch.randn(3, 37, 21, 18), torch.randn(40, 37, 3, 3), torch.randn(3, 37)
    results = [winograd(x, weight, style, up, count) for count in (1, 3, 2, 1)]
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("up", [False, True])
def test_kept_weights_are_never_stale(up):
    x, weight, style = torch.randn(1, 32, 8, 8), torch.randn(32, 32, 3, 3), torch.randn(1, 32)

    def check():
        fresh = winograd(x, weight.clone(), style, up)
        for _ in range(4):  # what comes a third time is kept
            assert all(torch.equal(a, b) for a, b in zip(winograd(x, weight, style, up), fresh, strict=True))
        return fresh[0]

    before = check()
    weight.data[17, 5, 1, 2] += 1.0  # which no version counter sees
    after = check()
    weight.numpy()[3, 4, 0, 0] = 2.0
    assert not torch.equal(before, after) and not torch.equal(after, check())
