# SPDX-License-Identifier: Apache-2.0
"""Adam and the running average of the weights: the transformer of 256²/flow 128, one step of the optimiser."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.case import FORWARD, Case, Variant, compiled
from gangealing_fast.models import SpatialTransformer
from gangealing_fast.ops.adam_ema import adam_ema, adam_ema_reference

SETTINGS = {"learning_rate": 1e-3, "decay": 0.998}


def _shapes() -> list[torch.Size]:
    with torch.device("meta"):
        return [parameter.shape for parameter in SpatialTransformer(flow_size=128, channel_multiplier=0.5).parameters()]


def _inputs(device: torch.device) -> tuple[Any, ...]:
    shapes = _shapes()
    lists = [[torch.randn(shape, device=device) for shape in shapes] for _ in range(5)]
    for moment in lists[3]:
        moment.square_()
    return (*lists, [10.0] * len(shapes))


def _in_place(function: Any) -> Any:
    @torch.no_grad()
    def run(*arguments: Any) -> tuple[Tensor, ...]:
        function(*arguments, **SETTINGS)
        return arguments[0][0], arguments[4][0]

    return run


class _TorchFused:
    """`torch.optim.Adam(fused=True)` and one `_foreach_lerp_`, built around the same tensors once, outside the clock."""

    def __init__(self) -> None:
        self.optimizer: torch.optim.Optimizer | None = None

    def prepare(self, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        parameters, gradients, first, second, _, steps = arguments
        self.optimizer = torch.optim.Adam(parameters, SETTINGS["learning_rate"], fused=True)
        for parameter, gradient, m, v, step in zip(parameters, gradients, first, second, steps, strict=True):
            parameter.grad = gradient
            self.optimizer.state[parameter] = {"step": torch.tensor(step - 1), "exp_avg": m, "exp_avg_sq": v}
        return arguments

    @torch.no_grad()
    def run(self, *arguments: Any) -> tuple[Tensor, ...]:
        parameters, _, _, _, averages, _ = arguments
        assert self.optimizer is not None  # prepared
        self.optimizer.step()
        torch._foreach_lerp_(averages, parameters, 1 - SETTINGS["decay"])
        return parameters[0], averages[0]


def cases() -> list[Case]:
    fused = _TorchFused()
    elements = sum(shape.numel() for shape in _shapes())
    return [
        Case(
            operator="adam_ema",
            name=f"transformer of 256²/128, {len(_shapes())} tensors, {elements / 1e6:.1f} M weights",
            inputs=_inputs,
            variants=(
                Variant("ours", _in_place(adam_ema)),
                Variant("reference", _in_place(adam_ema_reference)),
                Variant("torch", fused.run, prepare=fused.prepare, note="torch.optim.Adam(fused=True) and _foreach_lerp_"),
                compiled(_in_place(adam_ema_reference), passes=(FORWARD,)),
            ),
            passes=(FORWARD,),
            moved={FORWARD: 9 * 4.0 * elements},
            targets={"reference": 2.5, "torch": 1.0},
        )
    ]
