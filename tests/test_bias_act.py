# SPDX-License-Identifier: Apache-2.0
"""bias_act: values, both derivatives with bias and noise, layouts."""

from __future__ import annotations

import pytest
import torch
from cases.bias_act import CASES
from support import assert_close, assert_cpu_kernels, check_operator

from gangealing_fast.ops import bias_act, bias_act_reference


def arrange(function, tensors):
    """`function` as one of the tensors that there are alone, and those tensors."""
    present = [i for i, tensor in enumerate(tensors) if tensor is not None]

    def call(*given, **kwargs):
        x, b, noise, strength = (given[present.index(i)] if i in present else None for i in range(4))
        return function(x, b, noise=noise, noise_strength=strength, **kwargs)

    return call, [tensors[i] for i in present]


@pytest.mark.parametrize("name", CASES)
def test_operator(name):
    case = CASES[name]
    function, tensors = arrange(bias_act, case.tensors())
    batched_noise = (1 + case.bias,) if case.noise_batch > 1 else ()
    check_operator(
        function,
        arrange(bias_act_reference, case.tensors())[0],
        tensors,
        kwargs=case.keywords,
        differentiable=range(len(tensors)),
        batched=(0, *batched_noise),
        small=arrange(bias_act, case.tensors(small=True))[1],
        compile=name in ("bias", "shared noise"),
        registration=name in ("bias", "shared noise"),
    )


def test_float32_bias_beside_half_precision():
    x = torch.randn(2, 3, 4, 4).bfloat16().requires_grad_()
    b = torch.randn(3, requires_grad=True)
    y = bias_act(x, b)
    y.sum().backward()
    assert y.dtype == x.grad.dtype == torch.bfloat16 and b.grad.dtype == torch.float32


def test_no_reference_cycle_keeps_the_output_alive():
    import gc
    import weakref

    gc.disable()
    try:
        y = bias_act(torch.randn(2, 3, 4, 4, requires_grad=True), torch.zeros(3))
        alive = weakref.ref(y.untyped_storage())
        y.sum().backward()
        watcher = weakref.ref(y)
        del y
        assert watcher() is None
        del alive
    finally:
        gc.enable()


def test_kernels_are_compiled():
    assert_cpu_kernels("bias_act", "bias_act_backward")


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_outputs_beyond_the_caches(layout, dtype):
    x = torch.randn(3, 37, 211, 199).to(dtype).contiguous(memory_format=layout).requires_grad_()
    b, noise, strength = torch.randn(37, requires_grad=True), torch.randn(3, 1, 211, 199), torch.tensor(0.3)
    y = bias_act(x, b, noise=noise, noise_strength=strength)
    expected = bias_act_reference(x, b, noise=noise, noise_strength=strength)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-3
    assert_close(y, expected, tolerance)
    weight = torch.randn(x.shape).to(dtype).contiguous(memory_format=layout)
    (grad, grad_b), others = torch.autograd.grad(y, [x, b], weight), torch.autograd.grad(expected, [x, b], weight)
    assert_close(grad, others[0], 2 * tolerance)
    assert_close(grad_b, others[1], 1e-4)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_threads_do_not_change_the_sums(layout):
    x = torch.randn(4, 24, 40, 31).contiguous(memory_format=layout).requires_grad_()
    b, noise = torch.randn(24, requires_grad=True), torch.randn(1, 1, 40, 31, requires_grad=True)
    strength = torch.tensor(0.1, requires_grad=True)
    threads = torch.get_num_threads()
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        y = bias_act(x, b, noise=noise, noise_strength=strength)
        results.append(torch.autograd.grad((y * y).sum(), [x, b, noise]))
    torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_half_value_survives(dtype):
    """slope 1 and gain 1 copy: loads and stores of the narrow types are exact for all 65536 patterns."""
    x = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype).reshape(1, 1, 256, 256)
    y = bias_act(x, None, slope=1.0, gain=1.0)
    assert torch.equal(y.isnan(), x.isnan())
    assert torch.equal(y[~x.isnan()], x[~x.isnan()])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_stores_round_as_torch_does(dtype):
    """A float32 noise plane enters at full precision, so that the store has something to round, overflow and underflow."""
    noise = torch.randn(1, 1, 64, 64) * 10.0 ** torch.randint(-9, 6, (1, 1, 64, 64))
    noise[0, 0, 0, :5] = torch.tensor([65519.9, 65520.0, 3.4e38, 2.0**-25, 1.5 * 2**-24])
    x = torch.zeros(1, 1, 64, 64, dtype=dtype)
    y = bias_act(x, None, slope=1.0, gain=1.0, noise=noise, noise_strength=torch.ones(1))
    assert torch.equal(y, noise.to(dtype))
