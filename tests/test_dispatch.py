# SPDX-License-Identifier: Apache-2.0
"""`ops.use` and `with ops.reference()`: every public operator obeys, forwards and backwards, in this thread alone."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support import assert_close
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gangealing_fast import ops


def _rand(*shape: int) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64) * 1.6 - 0.8


def _vertices() -> Tensor:
    axis = torch.linspace(-1, 1, 5, dtype=torch.float64)
    return torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)[None]


# Arguments of every public operator; the floating tensors among them get gradients.
EXAMPLES: dict[str, Callable[[], tuple[tuple, dict[str, Any]]]] = {
    "adain": lambda: ((_rand(2, 3, 4, 4), _rand(2, 3), _rand(2, 3)), {}),
    "adam_ema": lambda: (([_rand(3)], [_rand(3)], [_rand(3)], [_rand(3) ** 2], [_rand(3)], [2.0]), {"learning_rate": 0.1}),
    "bias_act": lambda: ((_rand(2, 3, 4, 4), _rand(3)), {"noise": _rand(2, 1, 4, 4), "noise_strength": _rand(1)}),
    "bilinear_downsample": lambda: ((_rand(1, 2, 8, 8), 2), {}),
    "convex_upsample": lambda: ((_rand(1, 3, 3, 2), _rand(1, 36, 3, 3), 2), {}),
    "flow_regularizer": lambda: ((_rand(2, 4, 4, 2),), {}),
    "grid_sample": lambda: ((_rand(1, 2, 5, 5), _rand(1, 3, 3, 2)), {}),
    "invert_grid": lambda: ((_rand(1, 1, 1, 2) / 8 + _vertices(), _rand(1, 4, 2)), {}),
    "inverted_residual": lambda: (
        (_rand(1, 2, 5, 4), _rand(5, 2, 1, 1), _rand(5), _rand(5, 1, 3, 3), _rand(5), _rand(2, 5, 1, 1), _rand(2)),
        {"residual": True},
    ),
    "lpips_distance": lambda: (([_rand(1, 3, 4, 4)], [_rand(1, 3, 4, 4)], [_rand(3)]), {}),
    "mipmap_warp": lambda: ((_rand(1, 2, 8, 8), _rand(1, 4, 4, 2)), {}),
    "modulated_conv2d": lambda: ((_rand(2, 3, 4, 4), _rand(2, 3, 3, 3), _rand(2, 3)), {"up": True}),
    "mutual_nearest": lambda: ((_rand(1, 5, 3), _rand(1, 4, 3)), {}),
    "nearest_grid_point": lambda: ((_rand(1, 4, 5, 2), _rand(1, 3, 2)), {}),
    "splat2d": lambda: ((_rand(1, 2, 5, 6), 2.5 + _rand(1, 3, 2), _rand(1, 3, 2), 1.5 + _rand(1)), {"soft": True}),
    "upfirdn2d": lambda: ((_rand(1, 2, 5, 5), ops.blur_filter()), {"up": 2, "padding": (2, 1)}),
}
CONSTANT = {("upfirdn2d", 1)}
IN_PLACE = {"adam_ema"}  # these return nothing and have no gradient
OPERATORS = sorted(name.removesuffix("_reference") for name in ops.__all__ if name.endswith("_reference"))


class _Calls(TorchDispatchMode):
    """Names of this package's registered operators that were called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "gangealing_fast":
            self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def _called(name: str) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs of an operator's example, and the leaves that they may be derived by."""
    torch.manual_seed(1)
    arguments, keywords = EXAMPLES[name]()
    leaves: list[Tensor] = []

    def track(value: Any, position: int | None = None) -> Any:
        if isinstance(value, list):
            return [track(item) for item in value]
        if isinstance(value, Tensor) and value.is_floating_point() and (name, position) not in CONSTANT:
            leaves.append(value.requires_grad_(name not in IN_PLACE))
        return value

    arguments = tuple(track(value, position) for position, value in enumerate(arguments))
    keywords = {key: track(value) for key, value in keywords.items()}
    outputs = getattr(ops, name)(*arguments, **keywords)
    outputs = leaves if name in IN_PLACE else outputs
    return [outputs] if isinstance(outputs, Tensor) else list(outputs), leaves


def _run(name: str) -> tuple[list[Tensor], list[str]]:
    """Outputs and gradients of an operator's example, and the registered operators it called on the way."""
    with _Calls() as calls:
        outputs, leaves = _called(name)
        found = list(outputs)
        if any(output.requires_grad for output in outputs):
            found += torch.autograd.grad(sum((output * output).sum() for output in outputs), leaves)
    return [value.detach() for value in found], calls.names


@pytest.mark.parametrize("name", OPERATORS)
def test_no_kernel_is_called_in_reference_mode_and_the_numbers_agree(name):
    assert name in EXAMPLES, f"give {name} an example in EXAMPLES"
    fused, called = _run(name)
    assert called, f"{name} calls no registered operator: this test would show nothing"
    with ops.reference():
        plain, called = _run(name)
    assert called == [], f"in reference mode {name} called {called}: end it as gangealing_fast/ops/_dispatch.py says"
    for a, b in zip(fused, plain, strict=True):
        assert_close(a, b, 1e-10, name)


def _steps_back(outputs: list[Tensor]) -> set[str]:
    """Names of all nodes of the outputs' autograd graph."""
    waiting = [output.grad_fn for output in outputs if output.grad_fn is not None]
    nodes = set(waiting)
    while waiting:
        following = {node for node, _ in waiting.pop().next_functions if node is not None} - nodes
        nodes |= following
        waiting += following
    return {node.name() for node in nodes}


@pytest.mark.parametrize("name", OPERATORS)
def test_every_operator_takes_the_short_way(name):
    """No node of torch.library's general machinery, which costs more than many kernels take (gangealing_fast/ops/_eager.py)."""
    outputs, _ = _called(name)
    steps = _steps_back(outputs)
    assert ("CallBackward" in steps) is any(output.requires_grad for output in outputs if output.grad_fn is not None)
    assert not {step for step in steps if "gangealing_fast" in step}


def test_blocks_nest_and_end_with_their_exceptions():
    assert ops.used() == "fused"
    with pytest.raises(KeyError), ops.reference():
        with ops.fused():
            assert ops.used() == "fused"
        assert ops.used() == "reference"
        raise KeyError
    assert ops.used() == "fused"


def test_a_block_is_of_its_thread_and_use_of_the_process():
    seen: list[str] = []

    def look() -> None:
        thread = threading.Thread(target=lambda: seen.append(ops.used()))
        thread.start()
        thread.join()

    with ops.reference():
        look()
    ops.use("reference")
    try:
        look()
        with ops.fused():
            assert ops.used() == "fused"
    finally:
        ops.use("fused")
    assert seen == ["fused", "reference"]
    with pytest.raises(ValueError, match="fused"):
        ops.use("slow")


def test_compiled_code_follows_the_choice():
    called: list[str] = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable:
        names = [str(node.target) for node in graph.graph.nodes]

        def run(*arguments: Tensor) -> Any:
            called.extend(names)
            return graph(*arguments)

        return run

    torch._dynamo.reset()
    compiled = torch.compile(lambda x: ops.bilinear_downsample(x, 2), fullgraph=True, backend=backend)
    for choice, expected in ((ops.fused, True), (ops.reference, False), (ops.fused, True)):
        called.clear()
        with choice():
            compiled(torch.rand(1, 2, 6, 6))
        assert any("gangealing_fast" in name for name in called) is expected


def test_references_keep_their_own_precision_under_autocast():
    x = torch.rand(1, 2, 9, 9)
    grid = torch.rand(1, 4, 4, 2) * 1.6 - 0.8
    with torch.autocast("cpu", torch.bfloat16):
        fused = ops.mipmap_warp(x, grid)
        with ops.reference():
            assert_close(ops.mipmap_warp(x, grid), fused, 1e-5)
