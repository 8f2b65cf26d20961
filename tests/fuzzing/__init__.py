# SPDX-License-Identifier: Apache-2.0
"""Random calls of every operator, and what holds for all of them: see `Drawn` and `hold`.

`GGF_FUZZ_EXAMPLES` is the number of calls for each operator, 50 where it is not set; `make fuzz` asks for 10 000.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from torch import Tensor

EXAMPLES = int(os.environ.get("GGF_FUZZ_EXAMPLES") or 50)
# How Hypothesis draws in all of these tests: the same calls in every run, however long one takes.
RANDOM = settings(max_examples=EXAMPLES, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
DTYPES = (torch.float64, torch.float32, torch.float32, torch.bfloat16, torch.float16)
# What an operator may err by beside a few times what its reference errs by, in units of the last place. A narrow result is
# rounded once, its sums are float32.
UNITS = {torch.float64: 64, torch.float32: 64, torch.bfloat16: 1, torch.float16: 1}


class Draw:
    """Draws numbers and tensors; tensors from a generator whose seed is drawn, as Hypothesis is slow at many numbers."""

    def __init__(self, data: st.DataObject) -> None:
        self._data = data
        self.generator = torch.Generator().manual_seed(self.integer(0, 2**31))

    def integer(self, low: int, high: int) -> int:
        return self._data.draw(st.integers(low, high))

    def boolean(self) -> bool:
        return self._data.draw(st.booleans())

    def choice(self, *values: Any) -> Any:
        return values[self.integer(0, len(values) - 1)]

    def batch(self) -> int:
        """Mostly one or a few samples, sometimes none."""
        return self.choice(1, 2, 2, 3, 0, 2, 1)

    def magnitude(self, low: int, high: int) -> float:
        """A power of ten."""
        return 10.0 ** self.integer(low, high)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator, dtype=torch.float64)

    def signal(self, *shape: int) -> Tensor:
        """Noise, noise with many zeros, small integers or a constant, of a magnitude that every dtype holds."""
        kind, x = self.integer(0, 3), self.normal(*shape)
        x = (x, x * (x > 0.5), (2 * x).round(), torch.full_like(x, 0.75))[kind]
        return x * self.choice(1.0, 1.0, 0.01, 30.0)

    def layout(self, x: Tensor) -> Tensor:
        """The values of `x` in one of the ways that a tensor can lie in memory."""
        kind = self.integer(0, 5)
        if kind == 0 and x.dim() == 4:
            return x.contiguous(memory_format=torch.channels_last)
        if kind == 1 and x.dim() > 0:  # every second one of a longer row
            wide = torch.full((*x.shape[:-1], 2 * x.shape[-1]), torch.nan, dtype=x.dtype)
            wide[..., ::2] = x
            return wide[..., ::2]
        if kind == 2 and x.dim() > 1:  # the last two axes exchanged
            return x.mT.contiguous().mT
        if kind == 3 and x.dim() > 1:  # the first two axes exchanged
            return x.transpose(0, 1).contiguous().transpose(0, 1)
        if kind == 4 and x.dim() > 0:  # the middle of something larger, at an odd address
            wide = torch.full([length + 2 for length in x.shape], torch.nan, dtype=x.dtype)
            inner = wide[tuple(slice(1, -1) for _ in x.shape)]
            inner.copy_(x)
            return inner
        return x.contiguous()


@dataclass
class Drawn:
    """One call of an operator.

    Args:
        function, reference: take the tensors; return a tensor or several.
        tensors: float64; they are rounded to `dtypes`.
        dtypes: one for each tensor, the first is that of the result.
        layouts: indices of the tensors that get a layout of their own.
        differentiable: indices of the tensors that get gradients.
        kinks: from float64 inputs and outputs, for each output where the derivative jumps nearby (no gradient comes from there).
        floors: from float64 inputs and the gradients of the outputs, a magnitude for every result, outputs and then gradients,
            in whose last place it may err; for results that can be the difference of larger numbers.
        keeps_layout: whether the strides of the first output are the reference's.
        exact: whether the results are indices, to be equal to those of the reference in the same dtype.
    """

    function: Callable[..., Any]
    reference: Callable[..., Any]
    tensors: Sequence[Tensor]
    dtypes: Sequence[torch.dtype]
    layouts: Sequence[int] = (0,)
    differentiable: Sequence[int] = (0,)
    kinks: Callable[[list[Tensor], list[Tensor]], list[Tensor | None]] | None = None
    floors: Callable[[list[Tensor], list[Tensor]], Sequence[float]] | None = None
    keeps_layout: bool = False
    exact: bool = False


def _outputs(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


def _strides(x: Tensor) -> list[int]:
    return [stride for stride, length in zip(x.stride(), x.shape, strict=True) if length > 1]


def _norm(x: Tensor) -> float:
    return x.norm().item()


def hold(drawn: Drawn, draw: Draw) -> None:
    """Outputs and gradients of `drawn` against its reference in float64."""
    inputs = [t.to(dtype).detach() for t, dtype in zip(drawn.tensors, drawn.dtypes, strict=True)]
    laid_out = [draw.layout(t) if i in drawn.layouts else t for i, t in enumerate(inputs)]
    ready = lambda tensors: [t.detach().requires_grad_(i in drawn.differentiable) for i, t in enumerate(tensors)]  # noqa: E731
    wide, narrow, given = ready([t.double() for t in inputs]), ready(laid_out), ready(laid_out)
    results = [_outputs(f(*leaves)) for f, leaves in ((drawn.reference, wide), (drawn.reference, narrow), (drawn.function, given))]
    exact, own, actual = results
    assert len(exact) == len(own) == len(actual)
    if drawn.keeps_layout and actual[0].numel():
        assert _strides(actual[0]) == _strides(own[0])
    for a, b in zip(actual, own, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype, (a.shape, a.dtype, b.shape, b.dtype)
        if drawn.exact:
            assert torch.equal(a, b)
    if drawn.exact:
        return
    weights = [draw.normal(*y.shape).to(y.dtype) for y in own]
    if drawn.kinks:
        masks = drawn.kinks([t.detach() for t in wide], [t.detach() for t in exact])
        weights = [w if mask is None else torch.where(mask, 0.0, w).to(w.dtype) for w, mask in zip(weights, masks, strict=True)]
    if drawn.differentiable:
        runs = ((exact, wide, [w.double() for w in weights]), (own, narrow, weights), (actual, given, weights))
        for ys, leaves, cotangents in runs:
            wanted = [leaves[i] for i in drawn.differentiable]
            pairs = [(y, w) for y, w in zip(ys, cotangents, strict=True) if y.requires_grad]
            differentiated, cotangents = [y for y, _ in pairs], [w for _, w in pairs]
            ys.extend(torch.autograd.grad(differentiated, wanted, cotangents, allow_unused=True, materialize_grads=True))
    floors = drawn.floors([t.detach() for t in wide], [w.double() for w in weights]) if drawn.floors else [0.0] * len(exact)
    for index, (a, b, e, floor) in enumerate(zip(actual, own, exact, floors, strict=True)):
        if index >= len(weights):
            leaf = given[drawn.differentiable[index - len(weights)]]
            assert a.shape == leaf.shape and a.dtype == leaf.dtype, f"gradient {index - len(weights)}: {a.shape}, {a.dtype}"
        a, b, e = a.detach().double(), b.detach().double(), e.detach()
        what = f"result {index}, gradients from {len(weights)} on"
        assert torch.equal(a.isnan(), e.isnan()), f"{what}: NaN in other places than the reference"
        a, b, e = a.nan_to_num(), b.nan_to_num(), e.nan_to_num()
        information = torch.finfo(actual[index].dtype)
        unit = UNITS[actual[index].dtype] * information.eps
        # Sums that a narrow operator forms of narrow numbers are float32.
        allowed = 4 * _norm(b - e) + unit * _norm(e) + 64 * torch.finfo(_compute(drawn.dtypes)).eps * floor
        allowed += information.smallest_normal * information.eps * e.numel() ** 0.5
        assert _norm(a - e) <= allowed, f"{what}: error {_norm(a - e):.3g} of {_norm(e):.3g}, allowed {allowed:.3g}"


def hold_transforms(drawn: Drawn, draw: Draw) -> None:
    """`torch.func` and dual numbers on `drawn`, in float64: the derivatives of plain reverse mode on the kernels.

    Beside kinks too, as both differentiate the same function at the same point: kernels and references agree on which side it is.
    """
    tensors = [t.double() for t in drawn.tensors]
    moved = [i for i in drawn.differentiable if tensors[i].numel()]
    directions = {i: draw.normal(*tensors[i].shape) for i in moved}

    def along(far: Tensor) -> Tensor:
        results = drawn.function(*[t + far * directions[i] if i in directions else t for i, t in enumerate(tensors)])
        parts = [y.double().flatten() for y in _outputs(results) if y.is_floating_point()]
        return torch.cat(parts).nan_to_num(0.0, 0.0, 0.0)

    here = torch.zeros((), dtype=torch.float64)
    leaf = here.clone().requires_grad_()
    y = along(leaf)
    weight = draw.normal(len(y))
    masks = drawn.kinks(tensors, _outputs(drawn.reference(*tensors))) if drawn.kinks else []
    flat = [torch.ones(out.numel(), dtype=torch.bool) if m is None else ~m.flatten() for m, out in zip(
        masks, _outputs(drawn.reference(*tensors)), strict=False)]  # fmt: skip
    weight = weight * torch.cat(flat) if flat else weight
    (gradient,) = torch.autograd.grad(weight @ y, leaf, allow_unused=True, materialize_grads=True) if y.requires_grad else (here,)
    value, tangent = torch.func.jvp(along, (here,), (torch.ones_like(here),))
    batched = torch.func.vmap(torch.func.grad(lambda far: weight @ along(far)))(torch.zeros(2, dtype=torch.float64))
    size = (weight.abs() @ tangent.abs()).item() + (weight.abs() @ y.detach().abs()).item() + 1e-300
    for found, expected in ((weight @ value, weight @ y.detach()), (weight @ tangent, gradient), *((b, gradient) for b in batched)):
        assert abs((found - expected).item()) <= 1e-7 * size, (found, expected)


def _compute(dtypes: Sequence[torch.dtype]) -> torch.dtype:
    return torch.float64 if torch.float64 in dtypes else torch.float32


def beside(draw: Draw, dtype: torch.dtype) -> torch.dtype:
    """The dtype of parameters beside activations of `dtype`: the same, or float32 beside a narrow one."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) and draw.boolean() else dtype
