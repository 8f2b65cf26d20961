# SPDX-License-Identifier: Apache-2.0
"""Derivatives outside plain reverse mode, of every operator: the transforms of torch.func, dual numbers, batched gradients.

What is expected comes from plain reverse mode on the kernels and from differences of its gradients, never from another transform.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from calls import CALLS
from support import Recorder, assert_close
from torch import Tensor
from torch.autograd import forward_ad

from gangealing_fast import ops
from gangealing_fast.models.layers import FrozenCopies
from gangealing_fast.ops._forward_mode import registered

# The low-pass filters are constants.
ARGUMENTS = [(o, n) for o, call in CALLS.items() if call.differentiable for n in call.tensors if n != "f"]
OPERATORS = [operator for operator, call in CALLS.items() if call.differentiable]
# Tracing takes seconds; these stand for all: linear, with options, of several kernels, with a size that depends on the data.
TRACED = ("upfirdn2d", "bias_act", "modulated_conv2d", "grid_sample", "splat2d")
TOLERANCE = 1e-9
ALONG = 3  # directions in which a tensor is moved, and numbers that its results are summed up to
Function = Callable[[Tensor], Tensor]


def waves(*shape: int) -> Tensor:
    """Fixed numbers in [-1, 1] without a pattern, `[*shape]`."""
    count = torch.Size(shape).numel()
    return torch.sin(torch.arange(1, count + 1, dtype=torch.float64).square()).reshape(shape)


def good(operator: str) -> dict[str, Tensor]:
    """The tensors of the operator's good call, float64."""
    return {name: t.double() for name, t in CALLS[operator].make().items()}


def call(operator: str, tensors: dict[str, Tensor]) -> Tensor:
    """All outputs, summed up to `[ALONG]` numbers."""
    results = CALLS[operator].function(**tensors, **CALLS[operator].keywords)
    y = torch.cat([y.flatten() for y in ([results] if isinstance(results, Tensor) else results)])
    return waves(ALONG, len(y)) @ y


def moved(operator: str, *names: str) -> Function:
    """The outputs `[ALONG]` as a function of how far `[ALONG]` the tensors of `names` are moved in as many directions."""
    tensors = good(operator)

    def function(far: Tensor) -> Tensor:
        changed = {name: tensors[name] + 0.02 * torch.tensordot(far, waves(ALONG, *tensors[name].shape), 1) for name in names}
        return call(operator, {**tensors, **changed})

    return function


def jacobian(function: Function, x: Tensor) -> Tensor:
    """`[outputs, inputs]`, row by row in plain reverse mode."""
    leaf = x.detach().requires_grad_()
    y = function(leaf)
    return torch.stack([torch.autograd.grad(part, leaf, retain_graph=True)[0] for part in y])


HERE = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64)
VECTOR = torch.tensor([1.0, -0.5, 2.0], dtype=torch.float64)


@pytest.mark.parametrize(("operator", "name"), ARGUMENTS)
def test_first_derivatives(operator, name):
    function = moved(operator, name)
    expected = jacobian(function, HERE)
    assert expected.any()
    value, tangent = torch.func.jvp(function, (HERE,), (VECTOR,))
    assert_close(value, function(HERE), TOLERANCE, "value")
    assert_close(tangent, expected @ VECTOR, TOLERANCE, "jvp")
    with forward_ad.dual_level():
        dual = forward_ad.unpack_dual(function(forward_ad.make_dual(HERE, VECTOR))).tangent
    assert_close(dual, expected @ VECTOR, TOLERANCE, "dual numbers")
    assert_close(torch.func.grad(lambda x: function(x) @ VECTOR)(HERE), VECTOR @ expected, TOLERANCE, "grad")
    assert_close(torch.func.vjp(function, HERE)[1](VECTOR)[0], VECTOR @ expected, TOLERANCE, "vjp")
    assert_close(torch.func.jacrev(function)(HERE), expected, TOLERANCE, "jacrev")
    assert_close(torch.func.jacfwd(function)(HERE), expected, TOLERANCE, "jacfwd")


@pytest.mark.parametrize(("operator", "name"), ARGUMENTS)
def test_vmap(operator, name):
    function = moved(operator, name)
    several = torch.stack([HERE, -HERE, 2 * HERE])
    assert_close(torch.func.vmap(function)(several), torch.stack([function(x) for x in several]), TOLERANCE, "vmap")
    expected = torch.stack([VECTOR @ jacobian(function, x) for x in several])
    assert_close(torch.func.vmap(torch.func.grad(lambda x: function(x) @ VECTOR))(several), expected, TOLERANCE, "vmap(grad)")
    chunked = torch.func.vmap(function, chunk_size=1)(several)
    assert_close(chunked, torch.func.vmap(function)(several), TOLERANCE, "vmap in chunks")


@pytest.mark.parametrize("operator", OPERATORS)
def test_vmap_over_nothing_and_over_half_precision(operator):
    """No samples are no error, and a result under vmap has the dtype and the values that the reference alone gives."""
    narrow = {
        name: t.bfloat16() if name in ("x", "flow", "features_a", "features_b") else t.float() for name, t in good(operator).items()
    }
    name = next(iter(narrow))

    def function(x: Tensor) -> Any:
        return CALLS[operator].function(**{**narrow, name: x}, **CALLS[operator].keywords)

    with ops.reference():
        alone = function(narrow[name])
    found = torch.func.vmap(function)(torch.stack([narrow[name]] * 2))
    for y, expected in zip(*(([t] if isinstance(t, Tensor) else t) for t in (found, alone)), strict=True):
        assert y.dtype == expected.dtype
        assert_close(y[1].float(), expected.float(), 1e-2)


@pytest.mark.parametrize("operator", OPERATORS)
def test_hessian(operator):
    """By every order of forward and reverse mode, in all tensors at once; against differences of gradients."""
    names = [name for o, name in ARGUMENTS if o == operator]
    function = moved(operator, *names)
    loss = lambda x: (function(x).square() * VECTOR).sum()  # noqa: E731
    step = 1e-4 * torch.eye(ALONG, dtype=torch.float64)
    gradient = lambda x: 2 * (function(x) * VECTOR) @ jacobian(function, x)  # noqa: E731
    expected = torch.stack([(gradient(HERE + h) - gradient(HERE - h)) / 2e-4 for h in step])
    transforms = torch.func.jacfwd, torch.func.jacrev
    for outer in transforms:
        for inner in transforms:
            assert_close(outer(inner(loss))(HERE), expected, 1e-5, f"{outer.__name__} of {inner.__name__}")
    assert_close(torch.func.hessian(loss)(HERE), expected, 1e-5, "hessian")


@pytest.mark.parametrize("operator", OPERATORS)
def test_a_gradient_that_has_a_tangent_or_a_batch(operator):
    """The way back through a graph of the kernels, for cotangents that carry more than numbers; first and second backward."""
    names = [name for o, name in ARGUMENTS if o == operator]
    function = moved(operator, *names)
    leaf = HERE.clone().requires_grad_()
    y = function(leaf)
    expected = jacobian(function, HERE)
    batched = torch.autograd.grad(y, leaf, torch.eye(ALONG, dtype=torch.float64), retain_graph=True, is_grads_batched=True)[0]
    assert_close(batched, expected, TOLERANCE, "batched gradients")
    with forward_ad.dual_level():
        cotangent = forward_ad.make_dual(torch.ones_like(VECTOR), VECTOR)
        found = forward_ad.unpack_dual(torch.autograd.grad(y, leaf, cotangent, retain_graph=True)[0])
        assert_close(found.primal, expected.sum(0), TOLERANCE, "gradient")
        assert_close(found.tangent, VECTOR @ expected, TOLERANCE, "its tangent")
    again = lambda g: torch.autograd.grad(y, leaf, g, retain_graph=True, create_graph=True)[0].sum()  # noqa: E731
    with pytest.raises(NotImplementedError, match="made outside of it"):
        torch.func.grad(again)(VECTOR)


@pytest.mark.parametrize("operator", OPERATORS)
def test_the_second_backward_of_a_gradient_with_a_tangent(operator):
    names = [name for o, name in ARGUMENTS if o == operator]
    function = moved(operator, *names)
    leaf = HERE.clone().requires_grad_()
    loss = (function(leaf).square() * VECTOR).sum()
    try:
        (gradient,) = torch.autograd.grad(loss, leaf, create_graph=True)
        rows = [torch.autograd.grad(part, leaf, retain_graph=True)[0] for part in gradient]
    except NotImplementedError as error:
        assert "first derivatives only" in str(error) and operator in ("splat2d", "invert_grid")
        return
    with forward_ad.dual_level():
        cotangent = forward_ad.make_dual(torch.ones_like(VECTOR), VECTOR)
        found = forward_ad.unpack_dual(torch.autograd.grad(gradient, leaf, cotangent)[0])
        assert_close(found.tangent, VECTOR @ torch.stack(rows), TOLERANCE)


def test_what_has_no_derivative():
    """Indices are the same under any transform, without a tangent of zeros; a step of Adam is refused, and changes nothing."""
    tensors = good("nearest_grid_point")
    nearest = lambda points: ops.nearest_grid_point(tensors["grid"], points)  # noqa: E731
    expected = nearest(tensors["points"])
    assert torch.equal(torch.func.vmap(nearest)(tensors["points"][None])[0], expected)
    with forward_ad.dual_level():
        found = nearest(forward_ad.make_dual(tensors["points"], torch.ones_like(tensors["points"])))
        assert torch.equal(found, expected) and forward_ad.unpack_dual(found).tangent is None
    lists = [[t] for t in good("adam_ema").values()]
    before = [t.clone() for (t,) in lists]
    for transform in (
        lambda f: lambda x: torch.func.vmap(f)(x[None]),
        torch.func.grad,
        lambda f: lambda x: torch.func.jvp(f, (x,), (x,)),
    ):

        def step(gradient: Tensor) -> Tensor:
            ops.adam_ema(lists[0], [gradient], *lists[2:], [1], learning_rate=0.1)
            return gradient.sum()

        with pytest.raises((NotImplementedError, ValueError), match="adam_ema: it updates in place"):
            transform(step)(lists[1][0])
    assert all(torch.equal(t, b) for (t,), b in zip(lists, before, strict=True))


@pytest.mark.parametrize("operator", TRACED)
def test_transforms_that_are_traced(operator):
    """`torch.compile` around a transform, and `linearize`, which records the function once."""
    function = moved(operator, next(iter(CALLS[operator].tensors)))
    expected = jacobian(function, HERE)
    assert_close(torch.func.linearize(function, HERE)[1](VECTOR), expected @ VECTOR, TOLERANCE, "linearize")
    torch._dynamo.reset()
    compiled = torch.compile(torch.func.grad(lambda x: function(x) @ VECTOR), backend="aot_eager", fullgraph=True)
    assert_close(compiled(HERE), VECTOR @ expected, TOLERANCE, "compiled grad")


def test_outside_of_the_transforms_the_kernels_serve():
    x = torch.randn(1, 1, 4, 4)
    seen = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func.namespace)
            return func(*args, **(kwargs or {}))

    with Watch():
        ops.bilinear_downsample(x, 2)
    assert "gangealing_fast" in seen
    seen.clear()
    with Watch(), forward_ad.dual_level():
        ops.bilinear_downsample(x, 2)
    assert seen and "gangealing_fast" not in seen


def test_copies_of_frozen_weights_do_not_lose_tangents():
    copies, weight = FrozenCopies(), torch.randn(3, 3)
    assert copies.cast(weight, torch.float64) is copies.cast(weight, torch.float64)
    _, tangent = torch.func.jvp(lambda w: copies.cast(w, torch.float64), (weight,), (torch.ones(3, 3),))
    assert torch.equal(tangent, torch.ones(3, 3, dtype=torch.float64))
    several = torch.func.vmap(lambda w: copies.cast(w, torch.float64))(weight[None])
    assert torch.equal(several[0], weight.double())


def registered_calls() -> dict[str, tuple[tuple[Any, ...], dict[str, Any]]]:
    """One call of every registered operator, as the public functions make it, forward and backward."""
    with Recorder() as recorder:
        for made in CALLS.values():
            tensors = made.make()
            leaves = {n: t.requires_grad_(made.differentiable and n != "f") for n, t in tensors.items()}
            y = made.function(**leaves, **made.keywords)
            if made.differentiable:
                torch.cat([t.flatten() for t in ([y] if isinstance(y, Tensor) else y)]).sum().backward()
    return {function._schema.name.split("::")[1]: call for function, call in recorder.calls.items()}


def dual(arguments: Any, tangents: bool) -> Any:
    """The floating tensors of `arguments`, detached, the first one with a tangent if asked for."""
    if isinstance(arguments, Tensor):
        value = arguments.detach().clone()
        return forward_ad.make_dual(value, torch.ones_like(value)) if tangents and value.is_floating_point() else value
    if isinstance(arguments, list | tuple):
        return type(arguments)(dual(argument, tangents) for argument in arguments)
    return arguments


def test_no_registered_operator_drops_a_tangent() -> None:
    """Called directly, each refuses a tangent by its name; without tangents it computes inside of a dual level."""
    calls = registered_calls()
    assert sorted(calls) == registered()
    for name, (arguments, keywords) in calls.items():
        operator = getattr(torch.ops.gangealing_fast, name)
        with torch.no_grad(), forward_ad.dual_level():
            operator(*dual(arguments, False), **keywords)
            with pytest.raises(
                NotImplementedError, match=rf"^torch\.ops\.gangealing_fast\.{name} has no derivative in forward mode"
            ):
                operator(*dual(arguments, True), **keywords)


def test_no_registered_operator_drops_a_tangent_of_a_transform() -> None:
    x, f = torch.randn(1, 1, 6, 6), torch.ones(2, 2)

    def direct(x: Tensor) -> Tensor:
        return torch.ops.gangealing_fast.upfirdn2d(x, f, 1, 1, 0, 0, 0, 0, 1.0, False)

    for transformed in (direct, torch.func.vmap(lambda row: direct(row[None])[0]), lambda y: torch.func.jvp(direct, (y,), (x,))[1]):
        with pytest.raises(NotImplementedError, match="has no derivative in forward mode"):
            torch.func.jvp(transformed, (x,), (x,))
    # A constant beside what is moved carries none.
    value, tangent = torch.func.jvp(lambda y: direct(x) * y, (torch.ones(()),), (torch.ones(()),))
    assert torch.equal(value, tangent) and tangent.any()
