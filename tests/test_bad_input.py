# SPDX-License-Identifier: Apache-2.0
"""Bad input to every operator: one clear sentence that names operator and argument, or a defined result; never a crash."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf, nan
from typing import Any

import pytest
import torch
from support import Recorder, assert_cpu_kernels
from torch import Tensor

from gangealing_fast import ops

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
N = 2  # samples of every call
ONE = torch.ones(1)


@dataclass(frozen=True)
class Call:
    """A good call of an operator.

    Args:
        function: takes the tensors by name, and keywords.
        tensors: their shapes; the first axis of those in `per_sample` is the batch.
        other_dtype: those that may be of any floating dtype beside the first one's.
        any_rank: those whose number of elements alone counts.
        differentiable: whether the operator has a derivative.
        spreads: a value that is not finite reaches other places than in the reference (Winograd's transforms).
    """

    function: Callable[..., Any]
    tensors: dict[str, tuple[int, ...]]
    per_sample: tuple[str, ...]
    keywords: dict[str, Any] = field(default_factory=dict)
    other_dtype: tuple[str, ...] = ()
    any_rank: tuple[str, ...] = ()
    differentiable: bool = True
    reference: Callable[..., Any] | None = None

    def make(self, **changes: Any) -> dict[str, Any]:
        """The tensors by name, float32, the same on every call; positive and within [0.1, 1]."""
        generator = torch.Generator().manual_seed(0)
        made = {name: 0.1 + 0.9 * torch.rand(shape, generator=generator) for name, shape in self.tensors.items()}
        return {**made, **changes}

    def __call__(self, **changes: Any) -> list[Tensor]:
        result = self.function(**self.make(**changes), **self.keywords)
        return [result] if isinstance(result, Tensor) else list(result or ())


def _lpips(operator: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def call(features_a: Tensor, features_b: Tensor, heads: Tensor) -> Tensor:
        return operator([features_a], [features_b], [heads])

    return call


def _adam(parameters: Any, gradients: Any, first_moments: Any, second_moments: Any, averages: Any) -> list[Tensor]:
    tensors = (parameters, gradients, first_moments, second_moments, averages)
    changed = [[t.clone()] if isinstance(t, Tensor) else [t] for t in tensors]
    ops.adam_ema(*changed, [1], learning_rate=0.1)
    return [tensors[0] for tensors in changed]


CALLS = {
    "upfirdn2d": Call(ops.upfirdn2d, {"x": (N, 3, 6, 5), "f": (4, 4)}, ("x",), {"up": 2, "padding": (2, 1)}, ("f",)),
    "bias_act": Call(
        ops.bias_act,
        {"x": (N, 3, 4, 5), "b": (3,), "noise": (N, 1, 4, 5), "noise_strength": (1,)},
        ("x", "noise"),
        any_rank=("noise_strength",),
    ),
    "bilinear_downsample": Call(ops.bilinear_downsample, {"x": (N, 3, 8, 6)}, ("x",), {"stride": 2}),
    "adain": Call(ops.adain, {"x": (N, 3, 4, 5), "scale": (N, 3), "shift": (N, 3)}, ("x", "scale", "shift")),
    "modulated_conv2d": Call(
        ops.modulated_conv2d,
        {
            "x": (N, 3, 6, 5), "weight": (4, 3, 3, 3), "style": (N, 3), "energy": (4, 3), "f": (4, 4), "bias": (4,),
            "noise": (N, 1, 6, 5), "noise_strength": (1,),
        },
        ("x", "style", "noise"),
        other_dtype=("energy", "f"),
        any_rank=("noise_strength",),
    ),
    "lpips_distance": Call(
        _lpips(ops.lpips_distance),
        {"features_a": (N, 3, 4, 5), "features_b": (N, 3, 4, 5), "heads": (3,)},
        ("features_a", "features_b"),
        other_dtype=("heads",),
        any_rank=("heads",),
    ),
    "adam_ema": Call(
        _adam,
        {name: (N, 3) for name in ("parameters", "gradients", "first_moments", "second_moments", "averages")},
        (),
        other_dtype=("gradients",),
        any_rank=("parameters",),
        differentiable=False,
    ),
    "grid_sample": Call(ops.grid_sample, {"x": (N, 3, 6, 5), "grid": (N, 4, 7, 2)}, ("x", "grid"), other_dtype=("grid",)),
    "mipmap_warp": Call(ops.mipmap_warp, {"x": (N, 3, 6, 5), "grid": (N, 4, 7, 2)}, ("x", "grid"), other_dtype=("grid",)),
    "flow_regularizer": Call(ops.flow_regularizer, {"flow": (N, 4, 5, 2)}, ("flow",)),
    "convex_upsample": Call(
        ops.convex_upsample, {"flow": (N, 3, 4, 2), "mask": (N, 36, 3, 4)}, ("flow", "mask"), {"factor": 2}, ("mask",)
    ),
    "splat2d": Call(
        ops.splat2d,
        {"background": (N, 3, 8, 9), "xy": (N, 5, 2), "values": (N, 5, 3), "sigma": (N, 5)},
        ("background", "xy", "values", "sigma"),
        {"soft": True},
    ),
    "nearest_grid_point": Call(
        ops.nearest_grid_point, {"grid": (N, 4, 5, 2), "points": (N, 3, 2)}, ("grid", "points"), other_dtype=("grid", "points"),
        differentiable=False,
    ),
    "invert_grid": Call(
        ops.invert_grid, {"grid": (N, 4, 5, 2), "points": (N, 3, 2)}, ("grid", "points"), other_dtype=("grid", "points")
    ),
}  # fmt: skip
ARGUMENTS = [(operator, name) for operator, call in CALLS.items() for name in call.tensors]
BESIDE = [(operator, name) for operator, name in ARGUMENTS if name != next(iter(CALLS[operator].tensors))]
PER_SAMPLE = [(operator, name) for operator, name in ARGUMENTS if name in CALLS[operator].per_sample]


def refused(operator: str, error: type[Exception], words: str, **changes: Any) -> None:
    """Fail unless the call with `changes` raises `error` with one sentence that begins with the operator."""
    with pytest.raises(error) as caught:
        CALLS[operator](**changes)
    message = str(caught.value)
    assert message.startswith(f"{operator}: ") and message.endswith(".") and "\n" not in message, message
    assert re.search(words, message), message


def named(name: str) -> str:
    return rf"\b{name.removesuffix('s')}"


def test_every_operator_is_here():
    public = {name.removesuffix("_reference") for name in ops.__all__ if name.endswith("_reference")}
    assert public == set(CALLS)


@pytest.mark.parametrize("operator", CALLS)
def test_the_calls_are_good(operator):
    assert all(not y.is_floating_point() or y.isfinite().all() for y in CALLS[operator]())


@pytest.mark.parametrize(("operator", "name"), ARGUMENTS)
def test_not_a_tensor(operator, name):
    for value in (3.0, [1.0, 2.0], "x"):
        refused(operator, TypeError, f"{named(name)}.* must be a .*tensor.*, not", **{name: value})


@pytest.mark.parametrize(("operator", "name"), ARGUMENTS)
def test_wrong_rank(operator, name):
    call = CALLS[operator]
    if name in call.any_rank:
        return
    x = call.make()[name]
    refused(operator, ValueError, named(name), **{name: x[(None,) * 4]})
    refused(operator, ValueError, named(name), **{name: x.flatten()[0]})


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
@pytest.mark.parametrize(("operator", "name"), ARGUMENTS)
def test_not_floating(operator, name, dtype):
    refused(operator, TypeError, rf"{named(name)}.* {dtype}", **{name: torch.ones(CALLS[operator].tensors[name], dtype=dtype)})


@pytest.mark.parametrize(("operator", "name"), ARGUMENTS)
def test_sparse(operator, name):
    refused(operator, TypeError, named(name), **{name: CALLS[operator].make()[name].to_sparse()})


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("operator", "name"), BESIDE)
def test_mixed_dtypes(operator, name, dtype):
    """Refused, or a result of the first tensor's dtype (or wider) that is finite."""
    call = CALLS[operator]
    value = call.make()[name].to(dtype)
    if dtype == torch.float32 or name in call.other_dtype:
        results = call(**{name: value})
        assert all(y.dtype in (torch.float32, torch.float64, torch.int64) or y is results[1] for y in results)
    else:
        refused(operator, TypeError, rf"{named(name)}.*(float16|float32|float64)", **{name: value})


@pytest.mark.parametrize(("operator", "name"), BESIDE)
def test_mixed_devices(operator, name):
    refused(operator, ValueError, r"\bmeta\b", **{name: CALLS[operator].make()[name].to("meta")})
    others = {other: t.to("meta") for other, t in CALLS[operator].make().items() if other != name}
    refused(operator, ValueError, r"\bmeta\b", **others)


@pytest.mark.parametrize(("operator", "name"), ARGUMENTS)
def test_every_axis_too_long(operator, name):
    """One more along any axis of one tensor: refused wherever another one's size is to agree with it."""
    call = CALLS[operator]
    good = call()
    for axis, length in enumerate(call.tensors[name]):
        shape = list(call.tensors[name])
        shape[axis] = length + 1
        try:
            results = call(**{name: torch.full(shape, 0.5)})
        except (TypeError, ValueError) as error:
            assert str(error).startswith(f"{operator}: ") and str(error).endswith(".") and "\n" not in str(error), error
        else:
            # An axis of its own: of an image, a grid, a filter. No batch and no channel axis is.
            assert axis > 0 or name not in call.per_sample or len(call.per_sample) == 1
            assert len(results) == len(good)


@pytest.mark.parametrize(
    ("operator", "keywords", "error", "words"),
    [
        ("upfirdn2d", {"up": 0}, ValueError, "up and down must be at least 1, not up=0"),
        ("upfirdn2d", {"down": -2}, ValueError, "down=-2"),
        ("upfirdn2d", {"up": 1.5}, TypeError, "up must be a whole number, not 1.5"),
        ("upfirdn2d", {"down": 2**40}, ValueError, "down must be between"),
        ("upfirdn2d", {"padding": (1, 2, 3)}, ValueError, "padding must be"),
        ("upfirdn2d", {"padding": (1, 0.5)}, TypeError, r"padding\[1\] must be a whole number, not 0.5"),
        ("upfirdn2d", {"padding": (1, -(2**70))}, ValueError, r"padding\[1\] must be between"),
        ("upfirdn2d", {"padding": (-9, -9)}, ValueError, "nothing is left"),
        ("upfirdn2d", {"padding": (-20, 5)}, ValueError, "nothing is left"),
        ("upfirdn2d", {"f": torch.ones(40, 40)}, ValueError, "nothing is left"),
        ("upfirdn2d", {"f": torch.ones(0, 4)}, ValueError, "nothing is left"),
        ("upfirdn2d", {"f": torch.ones(4, 4, requires_grad=True)}, ValueError, "f is a constant filter"),
        ("upfirdn2d", {"x": torch.zeros(1, 1, 0, 5)}, ValueError, "nothing is left"),
        ("bilinear_downsample", {"stride": 0}, ValueError, "stride must be even and at least 2, not 0"),
        ("bilinear_downsample", {"stride": 3}, ValueError, "not 3"),
        ("bilinear_downsample", {"stride": -2}, ValueError, "not -2"),
        ("bilinear_downsample", {"stride": 2.0}, TypeError, "stride must be a whole number, not 2.0"),
        ("bilinear_downsample", {"stride": 2**62}, ValueError, "stride must be between"),
        ("bilinear_downsample", {"x": torch.zeros(1, 3, 1, 8)}, ValueError, "1 x 8 is too small for stride 2"),
        ("bias_act", {"gain": 0.0}, ValueError, "gain must be positive"),
        ("bias_act", {"gain": nan}, ValueError, "gain must be positive"),
        ("bias_act", {"slope": -0.1}, ValueError, "slope not negative"),
        ("bias_act", {"slope": nan}, ValueError, "slope not negative"),
        ("bias_act", {"noise": None}, ValueError, "noise and noise_strength belong together"),
        ("bias_act", {"noise_strength": torch.ones(2)}, ValueError, "must be one number"),
        ("bias_act", {"noise": torch.ones(1, 1, 4, 6)}, ValueError, r"noise has shape \[1, 1, 4, 6\]"),
        ("adain", {"eps": 0.0}, ValueError, "eps must be positive"),
        ("adain", {"eps": nan}, ValueError, "eps must be positive"),
        ("adain", {"x": torch.zeros(2, 3, 0, 4)}, ValueError, "x has no positions"),
        ("modulated_conv2d", {"up": True, "down": True}, ValueError, "exclude"),
        ("modulated_conv2d", {"weight": torch.ones(4, 3, 3, 1)}, ValueError, "weight must have shape"),
        ("modulated_conv2d", {"f": torch.ones(3, 4)}, ValueError, "square filter"),
        ("modulated_conv2d", {"gain": nan}, ValueError, "gain must be positive"),
        ("modulated_conv2d", {"slope": -1.0}, ValueError, "slope not negative"),
        ("modulated_conv2d", {"noise": None}, ValueError, "belong together"),
        ("modulated_conv2d", {"bias": None}, ValueError, "pass a bias"),
        ("modulated_conv2d", {"x": torch.zeros(2, 3, 4, 0)}, ValueError, "too small"),
        ("modulated_conv2d", {"x": torch.zeros(2, 3, 1, 8), "down": True}, ValueError, "too small"),
        ("lpips_distance", {"features_a": torch.ones(2, 3, 0, 5), "features_b": torch.ones(2, 3, 0, 5)}, ValueError, "at least 1"),
        ("grid_sample", {"padding_mode": "mirror"}, ValueError, "must be one of zeros, border, reflection, not 'mirror'"),
        ("grid_sample", {"x": torch.zeros(2, 3, 0, 4)}, ValueError, "x has no pixels"),
        ("mipmap_warp", {"padding_mode": None}, ValueError, "padding_mode must be one of zeros, border, reflection, not None"),
        ("mipmap_warp", {"x": torch.zeros(2, 3, 4, 0)}, ValueError, "x has no pixels"),
        ("mipmap_warp", {"max_levels": 0.5}, ValueError, "max_levels must be between 1 and 16, not 0.5"),
        ("mipmap_warp", {"max_levels": nan}, ValueError, "not nan"),
        ("mipmap_warp", {"max_levels": inf}, ValueError, "not inf"),
        ("flow_regularizer", {"flow": torch.zeros(1, 0, 4, 2)}, ValueError, "flow has no points"),
        ("convex_upsample", {"factor": 0}, ValueError, "factor must be a whole number from 1 to 64"),
        ("convex_upsample", {"factor": -8}, ValueError, "factor must be a whole number"),
        ("convex_upsample", {"factor": 2.0}, ValueError, "factor must be a whole number"),
        ("splat2d", {"background": torch.zeros(2, 3, 0, 5)}, ValueError, "background has no pixels"),
        ("nearest_grid_point", {"grid": torch.zeros(2, 0, 5, 2)}, ValueError, "grid has no points"),
        ("invert_grid", {"grid": torch.zeros(2, 5, 0, 2)}, ValueError, "grid has no points"),
    ],
)
def test_sizes_and_options(operator, keywords, error, words):
    """Negative sizes, paddings that leave nothing, empty images, options out of range."""
    call = CALLS[operator]
    arguments = {**call.make(), **call.keywords, **keywords}
    for run in (call.function, lambda **given: _by_reference(call.function, given)):
        with pytest.raises(error) as caught:
            run(**arguments)
        message = str(caught.value)
        assert message.startswith(f"{operator}: ") and message.endswith(".") and re.search(words, message), message


def _by_reference(function: Callable[..., Any], given: dict[str, Any]) -> Any:
    with ops.reference():
        return function(**given)


def _spoil(x: Tensor, value: float) -> Tensor:
    """`x` with `value` in every seventh place of its first sample."""
    x = x.clone()
    x[0].view(-1)[::7] = value
    return x


def _results(call: Call, tensors: dict[str, Tensor], names: tuple[str, ...]) -> list[Tensor]:
    """Outputs, and gradients of the tensors of `names`."""
    leaves = {name: t.detach().requires_grad_(call.differentiable and name in names) for name, t in tensors.items()}
    outputs = call(**leaves)
    if not call.differentiable:
        return outputs
    pairs = [(y, torch.linspace(0.5, 1.5, y.numel()).view(y.shape)) for y in outputs if y.requires_grad]
    wanted = [leaves[name] for name in names]
    gradients = torch.autograd.grad([y for y, _ in pairs], wanted, [w for _, w in pairs], allow_unused=True, materialize_grads=True)
    return [y.detach() for y in outputs] + list(gradients)


@pytest.mark.parametrize("value", [nan, inf, -inf, 3e38, -3e38, 1e-40])
@pytest.mark.parametrize(("operator", "name"), PER_SAMPLE)
def test_not_finite(operator, name, value):
    """Values that are not finite, huge or subnormal: the same bits on every run, and the other sample's as without them."""
    call = CALLS[operator]
    tensors = call.make()
    clean = _results(call, tensors, call.per_sample)
    spoiled = {**tensors, name: _spoil(tensors[name], value)}
    first, second = (_results(call, spoiled, call.per_sample) for _ in range(2))
    for a, b, c in zip(first, second, clean, strict=True):
        assert a.shape == c.shape
        assert torch.equal(a.nan_to_num(nan=12345.0), b.nan_to_num(nan=12345.0)) and torch.equal(a.isnan(), b.isnan())
        assert torch.equal(a[1], c[1])


@pytest.mark.parametrize("value", [nan, inf, -inf])
@pytest.mark.parametrize(("operator", "name"), [(o, n) for o, n in ARGUMENTS if o != "modulated_conv2d" and n != "f"])
def test_not_finite_where_the_reference_is_not(operator, name, value):
    """modulated_conv2d apart, whose Winograd transforms spread such values over a tile, and the filter of upfirdn2d."""
    call = CALLS[operator]
    tensors = call.make()
    tensors[name] = tensors[name].clone()
    tensors[name].view(-1)[tensors[name].numel() // 3] = value
    outputs = call(**tensors)
    with ops.reference():
        expected = call(**tensors)
    for y, other in zip(outputs, expected, strict=True):
        if (operator, name) == ("mipmap_warp", "x"):  # the reference reads every level everywhere, with a weight of 0
            assert (y.isfinite() | ~other.isfinite()).all() and not y.isfinite().all()
        else:
            assert torch.equal(y.isnan(), other.isnan()) and torch.equal(y.isinf(), other.isinf())


@pytest.mark.parametrize("algorithm", ["library", "fused"])
@pytest.mark.parametrize("value", [nan, inf])
def test_a_convolution_spreads_them_by_four_pixels_at_most(algorithm, value):
    x = torch.randn(2, 32, 20, 20)
    x[0, 3, 10, 10] = value
    with ops.modulated_conv2d.__globals__["convolution_algorithm"](algorithm):
        y = ops.modulated_conv2d(x, torch.randn(32, 32, 3, 3), torch.ones(2, 32))
    rows, columns = (~y[0].isfinite()).any(0).nonzero().unbind(1)
    assert (rows - 10).abs().max() <= 5 and (columns - 10).abs().max() <= 5 and y[1].isfinite().all()
    assert not y[0, :, 9:12, 9:12].isfinite().any()


# ---- sizes beyond 2^31 elements

LARGE = {
    "upfirdn2d": {"x": (1, 8, 20_000, 20_000)},
    "bias_act": {"x": (1, 3, 30_000, 30_000), "noise": (1, 1, 30_000, 30_000)},
    "bilinear_downsample": {"x": (1, 3, 30_000, 30_000)},
    "adain": {"x": (2, 3, 30_000, 30_000)},
    "modulated_conv2d": {"x": (1, 3, 30_000, 30_000), "style": (1, 3), "noise": (1, 1, 30_000, 30_000)},
    "lpips_distance": {"features_a": (1, 3, 30_000, 30_000), "features_b": (1, 3, 30_000, 30_000)},
    "adam_ema": dict.fromkeys(CALLS["adam_ema"].tensors, (50_000, 50_000)),
    "grid_sample": {"x": (2, 1 << 20, 64, 64), "grid": (2, 1 << 10, 1 << 10, 2)},
    "mipmap_warp": {"x": (2, 1 << 20, 64, 64), "grid": (2, 1 << 10, 1 << 10, 2)},
    "flow_regularizer": {"flow": (3, 1 << 16, 1 << 16, 2)},
    "convex_upsample": {"flow": (2, 1 << 15, 1 << 15, 2), "mask": (2, 36, 1 << 15, 1 << 15)},
    "splat2d": {"background": (1, 3, 30_000, 30_000), "xy": (1, 2**30, 2), "values": (1, 2**30, 3), "sigma": (1, 2**30)},
    "nearest_grid_point": {"grid": (1, 50_000, 50_000, 2), "points": (1, 2**31, 2)},
    "invert_grid": {"grid": (1, 50_000, 50_000, 2), "points": (1, 2**31, 2)},
}


@pytest.mark.parametrize("operator", CALLS)
def test_more_than_two_to_the_31_elements_keep_their_shapes(operator):
    """Forward and backward on the meta device, which holds shapes alone: no size is folded into 32 bits."""
    call = CALLS[operator]
    shapes = {**call.tensors, **LARGE[operator]}
    constant = [name for name in ("f", "energy") if name in shapes]
    with torch.device("meta"):
        tensors = {name: torch.empty(shape, requires_grad=call.differentiable) for name, shape in shapes.items()}
        tensors |= {name: tensors[name].detach() for name in constant}
        outputs = call(**tensors)
    assert any(t.numel() > 2**31 for t in (*outputs, *tensors.values()))
    for y in outputs:
        if y.requires_grad:
            leaves = [t for t in tensors.values() if t.requires_grad]
            gradients = torch.autograd.grad(y, leaves, torch.empty_like(y), allow_unused=True, retain_graph=True)
            assert all(g is None or g.shape == t.shape for g, t in zip(gradients, leaves, strict=True))


def _far_apart(x: Tensor, storage: torch.UntypedStorage) -> Tensor:
    """The values of `x` with its first axis more than 2^31 elements apart, in memory that is hardly touched."""
    strides = [0] * x.dim()
    elements = 1
    for axis in reversed(range(x.dim())):
        strides[axis], elements = elements, elements * x.shape[axis]
    strides[0] = 2**31 + 64
    placed = torch.empty(0, dtype=x.dtype).set_(storage, 0, x.shape, strides)
    placed.copy_(x)
    return placed


@pytest.mark.parametrize(("operator", "name"), PER_SAMPLE)
def test_strides_beyond_two_to_the_31(operator, name):
    """Samples so far apart that their distance does not fit 32 bits: the bits of the same call on contiguous memory."""
    call = CALLS[operator]
    tensors = call.make()
    try:
        storage = torch.UntypedStorage(4 * (2**31 + 4096))
    except RuntimeError:
        pytest.skip("8 GB of address space are not to be had")
    expected = _results(call, tensors, call.per_sample)
    actual = _results(call, {**tensors, name: _far_apart(tensors[name], storage)}, call.per_sample)
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("operator", "keywords"),
    [
        ("upfirdn2d", {"x": torch.ones(1, 1, 16, 16), "up": 1 << 20}),
        ("upfirdn2d", {"x": torch.ones(1, 1, 4, 4), "padding": (2**30, 2**30)}),
        ("grid_sample", {"x": ONE.view(1, 1, 1, 1).expand(1, 1 << 30, 4, 4), "grid": ONE.expand(1, 1 << 12, 1 << 12, 2)}),
    ],
)
def test_results_that_no_memory_holds(operator, keywords):
    """The allocator's own error, before anything is computed."""
    call = CALLS[operator]
    with pytest.raises(RuntimeError, match="memory|overflow|alloc"):
        call.function(**{**call.make(), **call.keywords, **keywords})


@pytest.mark.parametrize("size", [(1 << 16, 1 << 15), (1, 1 << 24)])
@pytest.mark.parametrize("operator", ["grid_sample", "mipmap_warp"])
def test_images_whose_coordinates_are_not_to_be_told_apart(operator, size):
    """One image of 2^31 texels, or with an axis on which float32 cannot count."""
    assert_cpu_kernels(operator)
    with pytest.raises(RuntimeError, match="fewer than 2.31 texels|an axis fewer than 2.24"):
        CALLS[operator](x=torch.zeros(1, 1, 1, 1).expand(N, 1, *size))


def _distorted(x: Tensor) -> list[Tensor]:
    """`x` with an axis longer, shorter or empty, of another rank, dtype or device."""
    longer = [torch.cat((x, x.narrow(axis, 0, min(1, x.shape[axis]))), axis) for axis in range(x.dim())]
    shorter = [x.narrow(axis, 0, max(x.shape[axis] - 1, 0)) for axis in range(x.dim())]
    empty = [x.narrow(axis, 0, 0) for axis in range(x.dim())]
    others = [x[None], x.flatten(), x.new_empty(()), x.new_empty(0), x.to("meta"), x.expand(2, *x.shape)]
    dtypes = [x.to(dtype) for dtype in (torch.float64, torch.bfloat16, torch.int64, torch.bool) if dtype != x.dtype]
    return [*longer, *shorter, *empty, *others, *dtypes]


@pytest.mark.parametrize("operator", CALLS)
def test_registered_operators_check_their_arguments(operator):
    """The operators beneath, forward and backward, called with one tensor that does not fit: an error or a result."""
    call = CALLS[operator]
    with Recorder() as recorder:
        _results(call, call.make(), call.per_sample)
    assert recorder.calls
    for registered, (arguments, keywords) in recorder.calls.items():
        for index, argument in enumerate(arguments):
            if not isinstance(argument, Tensor):
                continue
            for other in _distorted(argument.detach()):
                changed = [a.detach() if isinstance(a, Tensor) else a for a in arguments]
                changed[index] = other
                try:
                    registered(*changed, **keywords)
                except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError):
                    pass
