# SPDX-License-Identifier: Apache-2.0
"""All operators on a CUDA device, over the cases of tests/cases, against the references on the CPU: `pytest -m gpu`."""

from __future__ import annotations

import itertools

import pytest
import torch
from calls import CALLS, results_of
from cases import invert_grid, nearest_grid_point
from problems import problems
from support import assert_close, check_values, within_twice

from gangealing_fast import ops
from gangealing_fast.ops import environment
from gangealing_fast.ops.modulated_conv2d import convolution_algorithm

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


def on_one_device(call, device):
    """Outputs and gradients of an operator's good call, computed on `device`, as tensors of the CPU."""

    def function(**tensors):
        moved = {name: t.to(device) for name, t in tensors.items()}
        return [y.cpu() for y in call(**moved)]

    names = tuple(call.tensors) if call.differentiable else ()
    names = tuple(name for name in names if name not in ("f", "energy"))
    return results_of(_Moved(function, call.differentiable), call.make(), names)


class _Moved:
    """What `results_of` asks of a call."""

    def __init__(self, function, differentiable):
        self.function, self.differentiable = function, differentiable

    def __call__(self, **tensors):
        return self.function(**tensors)


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


@pytest.mark.parametrize("size", [(2, 40, 64, 16), (1, 1024, 1000, 104), (3, 37, 50, 21), (1, 1, 1, 1)], ids=str)
def test_mutual_nearest(size):
    """Of small whole numbers, whose products are exact in every dtype."""
    sets, rows, columns, depth = size
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        first, second = (torch.randint(-2, 3, (sets, count, depth)).to(dtype) for count in (rows, columns))
        found = on_gpu(ops.mutual_nearest)(first, second)
        assert all(map(torch.equal, found, ops.mutual_nearest_reference(first, second)))


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


@pytest.mark.parametrize("problem", problems("modulated_conv2d"), ids=str)
def test_values_of_the_fused_convolution(problem):
    """Tests are deterministic, so that "auto" takes cuDNN."""
    with convolution_algorithm("fused"):
        test_values(problem)


FIRST_ONLY = {"invert_grid", "splat2d"}  # operators without a second derivative


def small_problems():
    """Of every operator and set of tensors the case with the fewest numbers."""
    ordered = sorted(
        (p for p in problems() if _numbers(p, 0)), key=lambda p: (p.operator, len(p.tensors(torch.float64)), _numbers(p))
    )
    groups = itertools.groupby(ordered, key=lambda p: (p.operator, len(p.tensors(torch.float64))))
    return [next(group) for _, group in groups]


def _numbers(problem, which=None):
    tensors = problem.tensors(torch.float64)
    return sum(t.numel() for t in tensors) if which is None else tensors[which].numel()


@pytest.mark.parametrize("problem", small_problems(), ids=str)
def test_derivatives_of_both_orders(problem):
    """gradcheck and gradgradcheck in float64."""
    inputs = [t.cuda().requires_grad_(i in problem.differentiable) for i, t in enumerate(problem.tensors(torch.float64))]
    assert torch.autograd.gradcheck(problem.function, inputs, fast_mode=True)
    if problem.operator not in FIRST_ONLY:
        assert torch.autograd.gradgradcheck(problem.function, inputs, fast_mode=True)


@pytest.mark.parametrize("operator", ["lpips_distance", "invert_grid"])
def test_derivatives_of_operators_that_take_lists_or_invert(operator):
    generator = torch.Generator().manual_seed(0)
    if operator == "lpips_distance":
        inputs = [torch.rand(1, 3, 2, 3, generator=generator) + 0.1, torch.rand(1, 3, 2, 3, generator=generator) + 0.1]
        function = lambda a, b: ops.lpips_distance([a], [b])  # noqa: E731
    else:
        axis = torch.linspace(-1, 1, 4)
        vertices = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)[None]
        inputs = [
            vertices + 0.05 * torch.randn(vertices.shape, generator=generator),
            torch.rand(1, 3, 2, generator=generator) - 0.5,
        ]
        function = lambda grid, points: ops.invert_grid(grid, points)[0]  # noqa: E731
    inputs = [t.double().cuda().requires_grad_() for t in inputs]
    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
    if operator not in FIRST_ONLY:
        assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_gradients_of_mipmap_warp_in_half_precision(dtype):
    """The image is narrow; a grid of half precision would be full of ties."""
    x, grid = (t.detach().cpu() for t in warp_inputs())
    check_values(
        on_gpu(lambda x: ops.mipmap_warp(x, grid.to(x.device))),
        lambda x: ops.mipmap_warp_reference(x, grid),
        [x],
        {},
        dtypes=(dtype,),
    )
    weight = torch.randn(3, 3, 40, 40)
    found = []
    for function, image in (
        (on_gpu(ops.mipmap_warp), x.to(dtype)),
        (ops.mipmap_warp_reference, x.to(dtype)),
        (ops.mipmap_warp_reference, x.to(dtype).float()),
    ):
        leaf = grid.clone().requires_grad_()
        found.append(torch.autograd.grad(function(image, leaf), leaf, weight.to(image.dtype))[0])
    assert_close(found[0], found[2], max(2e-5, 2 * ((found[1] - found[2]).norm() / found[2].norm()).item()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("problem", problems("splat2d"), ids=str)
def test_gradients_of_splat2d_in_half_precision(problem, dtype):
    narrow = [t.to(dtype) for t in problem.tensors(torch.float64)]
    found = []
    for function, tensors in (
        (on_gpu(problem.function), narrow),
        (problem.reference, narrow),
        (problem.reference, [t.float() for t in narrow]),
    ):
        leaves = [t.detach().requires_grad_(i in problem.differentiable) for i, t in enumerate(tensors)]
        y = function(*leaves)
        weight = torch.linspace(0.5, 1.5, y.numel()).view(y.shape).to(y.dtype)
        wanted = [leaves[i] for i in problem.differentiable]
        found.append([y.detach(), *torch.autograd.grad(y, wanted, weight, allow_unused=True, materialize_grads=True)])
    for actual, own, wide in zip(*found, strict=True):
        within_twice(actual, own, wide)


@pytest.mark.parametrize("operator", CALLS)
def test_another_device_than_the_current_one(operator):
    """Kernels, streams and scratch memory are those of the tensors' device, and the current device stays."""
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one CUDA device")
    here, there = (on_one_device(CALLS[operator], f"cuda:{index}") for index in (0, 1))
    assert torch.cuda.current_device() == 0
    assert all(torch.equal(a.nan_to_num(-7), b.nan_to_num(-7)) for a, b in zip(here, there, strict=True))


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
