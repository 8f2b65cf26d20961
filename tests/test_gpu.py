# SPDX-License-Identifier: Apache-2.0
"""All operators on a CUDA device, over the cases of tests/cases, against the references on the CPU: `pytest -m gpu`."""

from __future__ import annotations

import pytest
import torch
from cases import invert_grid, nearest_grid_point
from problems import problems
from support import assert_close, check_values

from gangealing_fast import ops
from gangealing_fast.ops import environment

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")]


@pytest.fixture(autouse=True)
def full_precision():
    """Convolutions and products in float32 as float32."""
    allowed = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = allowed


def on_gpu(function):
    """`function` computed on the GPU for tensors of the CPU; gradients find their way back."""

    def call(*tensors):
        result = function(*(t.cuda() for t in tensors))
        return result.cpu() if isinstance(result, torch.Tensor) else tuple(part.cpu() for part in result)

    return call


@pytest.mark.parametrize("problem", problems(), ids=str)
def test_values(problem):
    """Outputs and gradients in every dtype; contiguous and channels-last."""
    check_values(
        on_gpu(problem.function),
        problem.reference,
        problem.tensors(torch.float64),
        {},
        problem.differentiable,
        problem.images,
        problem.dtypes,
        problem.tolerance,
    )


@pytest.mark.parametrize("case", nearest_grid_point.CASES, ids=lambda case: case.name)
def test_nearest_grid_point(case):
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        tensors = case.tensors(dtype)
        assert torch.equal(on_gpu(ops.nearest_grid_point)(*tensors), ops.nearest_grid_point_reference(*tensors))


@pytest.mark.parametrize("case", invert_grid.CASES, ids=lambda case: case.name)
def test_invert_grid(case):
    for dtype in (torch.float64, torch.float32):
        tensors = [t.requires_grad_() for t in case.tensors(dtype)]
        results = []
        for function in (on_gpu(ops.invert_grid), ops.invert_grid_reference):
            position, confidence = function(*tensors)
            gradients = torch.autograd.grad(position[confidence > 0].square().sum(), tensors)
            results.append((position.nan_to_num(-7), confidence, *gradients))
        for i, (actual, expected) in enumerate(zip(*results, strict=True)):
            assert_close(actual, expected, invert_grid.TOLERANCE[dtype][i > 1])


def test_every_operator_has_a_kernel():
    """No reference serves where the library, or Triton, should."""
    serving = {name: environment.serving(name, "cuda")[0] for name in environment.operators()}
    assert {name for name, kind in serving.items() if kind == "reference"} == set()


def warp_inputs(batch=3, size=64, dtype=torch.float32):
    """An image and a grid that reads several mip-map levels, on the GPU."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, 3, size, size, generator=generator).to("cuda", dtype)
    theta = torch.tensor([[1.9, 0.4, 0.1], [-0.3, 1.5, 0.0]]).expand(batch, 2, 3)
    grid = torch.nn.functional.affine_grid(theta, [batch, 3, 40, 40], align_corners=False)
    return x.requires_grad_(), (grid + 0.01 * torch.randn(grid.shape, generator=generator)).cuda().requires_grad_()


@pytest.mark.parametrize("operator", ["mipmap_warp", "grid_sample"])
def test_results_are_the_same_in_every_run(operator):
    """Bit by bit, also of the gradients that many threads add to."""
    x, grid = warp_inputs()
    results = []
    for _ in range(5):
        y = getattr(ops, operator)(x, grid)
        results.append((y, *torch.autograd.grad(y.square().sum(), (x, grid))))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("operator", ["mipmap_warp", "grid_sample"])
def test_cuda_graphs(operator):
    """Forward and backward can be recorded, and replayed with other inputs: nothing waits for the device."""
    function = getattr(ops, operator)
    x, grid = warp_inputs()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.autograd.grad(function(x, grid).square().sum(), (x, grid))
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = function(x, grid)
        gradients = torch.autograd.grad(y.square().sum(), (x, grid))
    with torch.no_grad():
        x.mul_(-0.5).add_(0.25)
        grid.mul_(0.7)
    graph.replay()
    expected = function(x, grid)
    assert torch.equal(y, expected)
    for actual, other in zip(gradients, torch.autograd.grad(expected.square().sum(), (x, grid)), strict=True):
        assert torch.equal(actual, other)


def test_other_streams():
    """Kernels run on torch's current stream, behind the work queued there."""
    x, grid = warp_inputs(size=256)
    expected = ops.mipmap_warp(x * 2, grid)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        late = x
        for _ in range(200):
            late = late * 1.0
        y = ops.mipmap_warp(late * 2, grid)
    stream.synchronize()
    assert torch.equal(y, expected)


@pytest.mark.parametrize("operator", ["grid_sample", "mipmap_warp"])
def test_strided_inputs(operator):
    x, grid = (t.detach() for t in warp_inputs())
    wide = torch.zeros(*x.shape[:-1], 2 * x.shape[-1], device="cuda")
    wide[..., ::2] = x
    function = getattr(ops, operator)
    assert torch.equal(function(wide[..., ::2], grid), function(x, grid))


def test_more_than_two_to_the_31_elements():
    if torch.cuda.mem_get_info()[0] < 24 * 2**30:
        pytest.skip("needs 24 GB of device memory")
    f = ops.blur_filter().cuda()
    x = torch.randn(1, 1, 256, 256, device="cuda", dtype=torch.float16).expand(33 * 1024, 1, 256, 256).contiguous()
    assert x.numel() > 2**31
    y = ops.upfirdn2d(x, f, padding=(2, 1))
    assert torch.equal(y[0], y[-1])


def test_devices_must_agree():
    x, grid = warp_inputs()
    with pytest.raises(ValueError, match="move one of them"):
        ops.grid_sample(x, grid.cpu())
