# SPDX-License-Identifier: Apache-2.0
"""What only a card can show: dispatch, the measured choice of a route, CUDA graphs, runs that agree bit for bit."""

from __future__ import annotations

import json

import pytest
import torch
from compare import INTERPRETED
from support import assert_close

from gangealing_fast import ops

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(INTERPRETED or not torch.cuda.is_available(), reason="needs a CUDA device")]


def styled(device: str, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """A modulated convolution with activation, and gradients of all its tensors."""
    generator = torch.Generator().manual_seed(0)
    shapes = ([2, 64, 32, 32], [96, 64, 3, 3], [2, 64], [96], [2, 1, 32, 32], [1])
    tensors = [torch.randn(s, generator=generator).to(device) * (0.05 if len(s) == 4 and s[2] == 3 else 1) for s in shapes]
    tensors[0] = tensors[0].to(dtype, memory_format=torch.channels_last)
    x, weight, style, bias, noise, strength = tensors = [t.requires_grad_() for t in tensors]
    y = ops.modulated_conv2d(x, weight, style, bias=bias, noise=noise, noise_strength=strength)
    return y, list(torch.autograd.grad(y.float().square().mean(), tensors))


def test_every_operator_with_a_triton_kernel_is_dispatched_to_it():
    from gangealing_fast.ops import _triton

    for name in _triton.SERVED:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"gangealing_fast::{name}", "CUDA")


def test_the_route_is_measured_once_and_agrees_with_the_cpu(monkeypatch, tmp_path):
    from gangealing_fast.kernels import _tuning

    monkeypatch.setenv("GGF_CACHE", str(tmp_path))
    monkeypatch.setattr(_tuning, "_known", {})
    torch.use_deterministic_algorithms(False)
    actual, gradients = styled("cuda")
    choices = json.loads((tmp_path / "tuning.json").read_text())
    assert len(choices) == 2
    expected, others = styled("cpu")
    for a, b in zip([actual, *gradients], [expected, *others], strict=True):
        assert_close(a.cpu(), b, 1e-4)


@pytest.mark.parametrize("algorithm", ["library", "fused"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_both_routes_agree_with_the_cpu(algorithm, dtype):
    from gangealing_fast.ops.modulated_conv2d import convolution_algorithm

    with convolution_algorithm(algorithm):
        actual, gradients = styled("cuda", dtype)
    expected, others = styled("cpu")
    for a, b in zip([actual, *gradients], [expected, *others], strict=True):
        assert_close(a.cpu().float(), b, 1e-4 if dtype == torch.float32 else 2e-2)


def test_runs_agree_bit_for_bit():
    (first, gradients), (second, others) = styled("cuda"), styled("cuda")
    assert all(torch.equal(a, b) for a, b in zip([first, *gradients], [second, *others], strict=True))


def test_cuda_graph():
    x = torch.randn(2, 16, 32, 32, device="cuda")
    b = torch.randn(16, device="cuda")
    flow = torch.randn(2, 32, 32, 2, device="cuda")

    def step() -> tuple[torch.Tensor, ...]:
        return ops.bias_act(x, b), *ops.flow_regularizer(flow), ops.lpips_distance([x], [x.flip(0)])

    step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    x.normal_()
    flow.normal_()
    graph.replay()
    assert all(torch.equal(a, e) for a, e in zip(captured, step(), strict=True))


def test_adam_on_a_card():
    from cases.adam_ema import CASES

    case = CASES["more than one block"]
    lists = {device: case.arguments(torch.float32, device) for device in ("cpu", "cuda")}
    with torch.no_grad():
        for arguments in lists.values():
            ops.adam_ema(*arguments, **case.keywords)
    for ours, theirs in zip(lists["cuda"][:5], lists["cpu"][:5], strict=True):
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a.cpu(), b, rtol=2e-6, atol=2e-6)
