# SPDX-License-Identifier: Apache-2.0
"""The case lists of tests/cases in one form, for tests that go through all operators: on a GPU, in the emulation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from cases import (
    adain,
    bias_act,
    bilinear_downsample,
    convex_upsample,
    flow_regularizer,
    grid_sample,
    inverted_residual,
    mipmap_warp,
    modulated_conv2d,
    splat2d,
    upfirdn2d,
)
from support import DTYPES, TOLERANCE, check_values
from torch import Tensor

from gangealing_fast import ops

WIDE = (torch.float64, torch.float32)


@dataclass(frozen=True)
class Problem:
    """One case of one operator.

    function, reference: take `tensors(dtype)`; return a tensor or several. differentiable, images: as for
    `support.check_values`. kernels: the registered operators that must have run.
    """

    operator: str
    name: str
    function: Callable[..., Any]
    reference: Callable[..., Any]
    tensors: Callable[[torch.dtype], list[Tensor]]
    kernels: frozenset[str]
    differentiable: tuple[int, ...] = (0,)
    images: tuple[int, ...] = (0,)
    dtypes: tuple[torch.dtype, ...] = DTYPES
    tolerance: dict[torch.dtype, tuple[float, float]] = field(default_factory=lambda: TOLERANCE)

    def check(self, dtypes: tuple[torch.dtype, ...] | None = None) -> None:
        """Outputs and gradients against the reference in every layout and dtype, or in these dtypes alone."""
        inputs, chosen = self.tensors(torch.float64), self.dtypes if dtypes is None else dtypes
        check_values(self.function, self.reference, inputs, {}, self.differentiable, self.images, chosen, self.tolerance)

    def __str__(self) -> str:
        return f"{self.operator}-{self.name}"


def _pair(operator: str, keywords: dict[str, Any]) -> tuple[Callable[..., Any], Callable[..., Any]]:
    function, reference = getattr(ops, operator), getattr(ops, f"{operator}_reference")
    return lambda *tensors: function(*tensors, **keywords), lambda *tensors: reference(*tensors, **keywords)


def _resampling() -> Iterator[Problem]:
    for name, case in upfirdn2d.CASES.items():

        def with_filter(operator: Callable[..., Any], case: upfirdn2d.Case = case) -> Callable[..., Any]:
            return lambda x: operator(x, case.filter().to(x.device), **case.keywords)

        functions = with_filter(ops.upfirdn2d), with_filter(ops.upfirdn2d_reference)
        yield Problem("upfirdn2d", name, *functions, lambda dtype, case=case: [case.image(dtype)], frozenset({"upfirdn2d"}))
    for name, case in bilinear_downsample.CASES.items():
        kernels = frozenset({"bilinear_downsample", "bilinear_downsample_backward"})
        functions = _pair("bilinear_downsample", {"stride": case.stride})
        yield Problem("bilinear_downsample", name, *functions, lambda dtype, case=case: [case.image(dtype)], kernels)


def _tables() -> Iterator[Problem]:
    """Operators whose cases say all there is to say about them."""
    for operator, module in (
        ("grid_sample", grid_sample),
        ("mipmap_warp", mipmap_warp),
        ("splat2d", splat2d),
        ("convex_upsample", convex_upsample),
        ("flow_regularizer", flow_regularizer),
        ("adain", adain),
    ):
        for case in module.CASES:
            keywords = {"eps": case.eps} if operator == "adain" else getattr(case, "kwargs", {})
            # On a single texel with corners aligned the reference does not know the grid.
            if case.name == "one-texel-reflection-True":
                continue
            yield Problem(
                operator,
                case.name,
                *_pair(operator, keywords),
                case.tensors,
                frozenset({operator, f"{operator}_backward"}),
                module.DIFFERENTIABLE,
                () if operator == "flow_regularizer" else (0,),
                # A mip-map level from a grid of half precision is full of ties, on which the gradient depends.
                WIDE if operator in ("mipmap_warp", "splat2d") else DTYPES,
                {**TOLERANCE, **getattr(case, "tolerance", module.TOLERANCE)},
            )


def _styled() -> Iterator[Problem]:
    """Operators with optional tensors."""
    for name, case in bias_act.CASES.items():
        names = [n for n, t in zip(("x", "b", "noise", "noise_strength"), case.tensors(), strict=True) if t is not None]

        def by_name(operator: Callable[..., Any], names: list[str] = names, case: Any = case) -> Callable[..., Any]:
            def call(*tensors: Tensor) -> Any:
                return operator(**{"b": None, **dict(zip(names, tensors, strict=True))}, **case.keywords)

            return call

        yield Problem(
            "bias_act",
            name,
            by_name(ops.bias_act),
            by_name(ops.bias_act_reference),
            lambda dtype, case=case: [t for t in case.tensors(dtype) if t is not None],
            frozenset({"bias_act", "bias_act_backward"}),
            tuple(range(len(names))),
        )
    for name, case in modulated_conv2d.CASES.items():

        def styled(operator: Callable[..., Any], case: modulated_conv2d.Case = case) -> Callable[..., Any]:
            def call(*tensors: Tensor) -> Any:
                f = case.filter(torch.float32)
                return operator(
                    **dict(zip(case.tensors(), tensors, strict=True)),
                    f=None if f is None else f.to(tensors[0].device),
                    **case.keywords,
                )

            return call

        yield Problem(
            "modulated_conv2d",
            name,
            styled(ops.modulated_conv2d),
            styled(ops.modulated_conv2d_reference),
            lambda dtype, case=case: list(case.tensors(dtype).values()),
            frozenset(),
            tuple(range(len(case.tensors()))),
            tolerance={torch.float64: (1e-10, 1e-10), torch.float32: (1e-5, 1e-4)},
        )


def _blocks() -> Iterator[Problem]:
    for case in inverted_residual.CASES:
        if all(case.size) and all(case.channels[::2]) and case.channels[1] != 0:
            yield Problem(
                "inverted_residual",
                case.name,
                case.called(ops.inverted_residual),
                case.called(ops.inverted_residual_reference),
                case.tensors,
                frozenset({"inverted_residual"}),
                tuple(range(len(case.tensors()))),
                tolerance=inverted_residual.TOLERANCE,
            )


def problems(*operators: str) -> list[Problem]:
    """All cases, or those of `operators`."""
    everything = [*_resampling(), *_tables(), *_styled(), *_blocks()]
    return [problem for problem in everything if not operators or problem.operator in operators]
