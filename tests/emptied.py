# SPDX-License-Identifier: Apache-2.0
"""The good calls of tests/calls.py with axes of no length, for kernels, the emulation and Triton's interpreter alike."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import Any

import torch
from calls import CALLS
from torch import Tensor

# The axes of the good calls by name: an axis is made empty wherever it occurs.
AXES: dict[str, dict[str, tuple[str, ...]]] = {
    "upfirdn2d": {"x": ("N", "C", "H", "W"), "f": ("fh", "fw")},
    "bias_act": {"x": ("N", "C", "H", "W"), "b": ("C",), "noise": ("N", "1", "H", "W"), "noise_strength": ("one",)},
    "bilinear_downsample": {"x": ("N", "C", "H", "W")},
    "adain": {"x": ("N", "C", "H", "W"), "scale": ("N", "C"), "shift": ("N", "C")},
    "modulated_conv2d": {
        "x": ("N", "C", "H", "W"), "weight": ("O", "C", "k", "k"), "style": ("N", "C"), "energy": ("O", "C"), "f": ("n", "n"),
        "bias": ("O",), "noise": ("N", "1", "H", "W"), "noise_strength": ("one",),
    },
    "inverted_residual": {
        "x": ("N", "C", "H", "W"), "expand_weight": ("M", "C", "1", "1"), "expand_bias": ("M",),
        "depthwise_weight": ("M", "1", "k", "k"), "depthwise_bias": ("M",), "project_weight": ("O", "M", "1", "1"),
        "project_bias": ("O",),
    },
    "lpips_distance": {"features_a": ("N", "C", "H", "W"), "features_b": ("N", "C", "H", "W"), "heads": ("C",)},
    "adam_ema": {name: ("A", "B") for name in CALLS["adam_ema"].tensors},
    "grid_sample": {"x": ("N", "C", "H", "W"), "grid": ("N", "h", "w", "two")},
    "mipmap_warp": {"x": ("N", "C", "H", "W"), "grid": ("N", "h", "w", "two")},
    "flow_regularizer": {"flow": ("N", "H", "W", "two")},
    "convex_upsample": {"flow": ("N", "h", "w", "two"), "mask": ("N", "M", "h", "w")},
    "splat2d": {"background": ("N", "C", "H", "W"), "xy": ("N", "P", "two"), "values": ("N", "P", "C"), "sigma": ("N", "P")},
    "mutual_nearest": {"first": ("N", "P", "D"), "second": ("N", "Q", "D")},
    "nearest_grid_point": {"grid": ("N", "H", "W", "two"), "points": ("N", "P", "two")},
    "invert_grid": {"grid": ("N", "H", "W", "two"), "points": ("N", "P", "two")},
}  # fmt: skip


def emptied(*operators: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(operator, one or two of its axes) of all operators, or of `operators`."""
    for operator, tensors in AXES.items():
        if operators and operator not in operators:
            continue
        names = sorted({axis for axes in tensors.values() for axis in axes} - {"1"})
        yield from ((operator, chosen) for count in (1, 2) for chosen in combinations(names, count))


def made(operator: str, axes: tuple[str, ...], dtype: torch.dtype) -> dict[str, Tensor]:
    """The good call's tensors, with `axes` empty."""
    found = {}
    for name, tensor in CALLS[operator].make().items():
        for position, axis in enumerate(AXES[operator][name]):
            tensor = tensor.narrow(position, 0, 0) if axis in axes else tensor
        beside = operator == "adam_ema" and name != "gradients"
        found[name] = tensor.contiguous() if beside else tensor.to(dtype).contiguous()
    return found


def run(operator: str, tensors: dict[str, Tensor], **keywords: Any) -> list[Tensor]:
    """Outputs and gradients of all tensors but the filter; the gradients of a constant where nothing else is left."""
    call = CALLS[operator]
    leaves = {n: t.detach().requires_grad_(call.differentiable and n != "f") for n, t in tensors.items()}
    result = call.function(**leaves, **{**call.keywords, **keywords})
    outputs = [result] if isinstance(result, Tensor) else list(result)
    pairs = [(y, torch.ones_like(y)) for y in outputs if y.requires_grad]
    wanted = [t for t in leaves.values() if t.requires_grad]
    found: Any = ()
    if pairs:
        ys, weights = [y for y, _ in pairs], [w for _, w in pairs]
        found = torch.autograd.grad(ys, wanted, weights, allow_unused=True, materialize_grads=True)
    return [y.detach() for y in outputs] + list(found)
