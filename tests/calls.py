# SPDX-License-Identifier: Apache-2.0
"""A good call of every operator, for tests that spoil one argument at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gangealing_fast import ops

N = 2  # samples of every call


@dataclass(frozen=True)
class Call:
    """A good call of an operator.

    Args:
        function: takes the tensors by name, and keywords.
        tensors: their shapes; the first axis of those in `per_sample` is the batch.
        other_dtype: those that may be of any floating dtype beside the first one's.
        any_rank: those whose number of elements alone counts.
        differentiable: whether the operator has a derivative.
        keywords: further arguments.
    """

    function: Callable[..., Any]
    tensors: dict[str, tuple[int, ...]]
    per_sample: tuple[str, ...]
    keywords: dict[str, Any] = field(default_factory=dict)
    other_dtype: tuple[str, ...] = ()
    any_rank: tuple[str, ...] = ()
    differentiable: bool = True

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
    "inverted_residual": Call(
        ops.inverted_residual,
        {
            "x": (N, 3, 6, 5), "expand_weight": (7, 3, 1, 1), "expand_bias": (7,), "depthwise_weight": (7, 1, 3, 3),
            "depthwise_bias": (7,), "project_weight": (4, 7, 1, 1), "project_bias": (4,),
        },
        ("x",),
        {"padding": (1, 2, 0, 1)},
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
    "mutual_nearest": Call(
        ops.mutual_nearest, {"first": (N, 5, 3), "second": (N, 4, 3)}, ("first", "second"), differentiable=False
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


def results_of(call: Call, tensors: dict[str, Tensor], names: tuple[str, ...]) -> list[Tensor]:
    """Outputs, and gradients of the tensors of `names`."""
    leaves = {name: t.detach().requires_grad_(call.differentiable and name in names) for name, t in tensors.items()}
    outputs = call(**leaves)
    if not call.differentiable:
        return outputs
    pairs = [(y, torch.linspace(0.5, 1.5, y.numel()).view(y.shape)) for y in outputs if y.requires_grad]
    wanted = [leaves[name] for name in names]
    gradients = torch.autograd.grad([y for y, _ in pairs], wanted, [w for _, w in pairs], allow_unused=True, materialize_grads=True)
    return [y.detach() for y in outputs] + list(gradients)
