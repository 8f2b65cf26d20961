# SPDX-License-Identifier: Apache-2.0
"""Bad input to every operator: one clear sentence that names operator and argument, or a defined result; never a crash."""

from __future__ import annotations

import re
from collections.abc import Callable
from math import inf, nan
from typing import Any

import pytest
import torch
from calls import ARGUMENTS, BESIDE, CALLS, PER_SAMPLE, results_of
from support import Recorder
from torch import Tensor

from gangealing_fast import ops

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


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
        ("inverted_residual", {"stride": 0}, ValueError, "stride must be from 1 to 15, not 0"),
        ("inverted_residual", {"stride": 1.5}, TypeError, "stride must be a whole number, not 1.5"),
        ("inverted_residual", {"padding": 1}, ValueError, r"padding must be four numbers \(left, right, top, bottom\), not 1"),
        ("inverted_residual", {"padding": (0, 3, 1, 1)}, ValueError, r"from 0 to 2, less than the kernel, not \(0, 3, 1, 1\)"),
        ("inverted_residual", {"padding": (0, -1, 1, 1)}, ValueError, "padding must be from 0 to 2"),
        ("inverted_residual", {"padding": (0, 0.5, 1, 1)}, TypeError, "right must be a whole number"),
        ("inverted_residual", {"padding_mode": "reflect"}, ValueError, "must be zeros or replicate, not 'reflect'"),
        ("inverted_residual", {"x": torch.zeros(2, 3, 1, 5)}, ValueError, "1x5 pixels, too small for a kernel of 3"),
        ("inverted_residual", {"x": torch.zeros(2, 3, 0, 5)}, ValueError, "0x5 pixels"),
        ("inverted_residual", {"residual": True}, ValueError, "residual needs a result of the shape of x"),
        ("inverted_residual", {"expand_bias": None}, ValueError, "expand_weight and expand_bias belong together"),
        ("inverted_residual", {"expand_weight": None, "expand_bias": None}, ValueError, "for the 3 channels of x, not for 7"),
        ("inverted_residual", {"depthwise_weight": torch.ones(7, 1, 3, 2)}, ValueError, r"must be of shape \[7, 1, 3, 3\]"),
        ("inverted_residual", {"depthwise_weight": torch.ones(7, 1, 17, 17)}, ValueError, "a kernel of 17; 1 to 15 are possible"),
        ("inverted_residual", {"depthwise_weight": torch.ones(7, 1, 0, 0)}, ValueError, "a kernel of 0"),
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
        ("mutual_nearest", {"second": torch.ones(3, 4, 3)}, ValueError, "first has 2 sets and second 3"),
        ("mutual_nearest", {"second": torch.ones(2, 4, 5)}, ValueError, "first have 3 components and those of second 5"),
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


@pytest.mark.parametrize("value", [nan, inf, -inf, 3e38, -3e38, 1e-40])
@pytest.mark.parametrize(("operator", "name"), PER_SAMPLE)
def test_not_finite(operator, name, value):
    """Values that are not finite, huge or subnormal: the same bits on every run, and the other sample's as without them."""
    call = CALLS[operator]
    tensors = call.make()
    clean = results_of(call, tensors, call.per_sample)
    spoiled = {**tensors, name: _spoil(tensors[name], value)}
    first, second = (results_of(call, spoiled, call.per_sample) for _ in range(2))
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
        results_of(call, call.make(), call.per_sample)
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
