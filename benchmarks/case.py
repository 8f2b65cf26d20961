# SPDX-License-Identifier: Apache-2.0
"""What is measured: a case of an operator, and the ways to compute it.

How to write a benchmark. One file per operator, `bench_<operator>.py`, with one function `cases() -> list[Case]`; see
`bench_flow_regularizer.py`. A case has

- `inputs(device)`: builds the arguments, deterministically (torch's default generator is seeded before every call). Tensors
  made with `requires_grad_()` are those that the backward pass differentiates by. Every variant gets its own copy, so a
  variant may keep state in its arguments (an optimiser, say);
- `variants`: first "ours", then "reference" (the operator's `_reference`), "torch" (the best that a competent user would
  write with torch's own operators, in the layout that suits it), "compile" (`compiled(reference)`). All are called with the
  same arguments and return the same tensors; `prepare` may change their layout or type outside the clock;
- `moved` and `operations`: for every timed pass the bytes that any implementation has to move (each input read once, each
  output written once, what backward needs read once again) and the floating point operations that it has to do. They turn
  times into fractions of what the machine can do;
- `targets`: what the project wants on a CPU, for one thread and the case's last pass: `{"reference": 13, "compile": 5}` are ratios,
  `{"bandwidth": 0.5, "throughput": 1.0}` fractions of the limits, `{"memory": 0.5}` the peak against the reference's.

The interleaved harness (`python -m benchmarks`) and pytest-benchmark (`pytest benchmarks`) measure the same cases.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

FORWARD = "forward"
BOTH = "forward+backward"
# torch.compile fails in many ways, none of which is this project's to repair: only its variant goes on without a time.
COMPILE = "compile"

Inputs = tuple[Any, ...]


@dataclass(frozen=True)
class Variant:
    """One way to compute a case.

    name: "ours", "reference", "torch", "compile", or another short word; one of a kind within its case.
    function: called with the case's inputs; returns a tensor or a tuple or list of tensors.
    prepare: changes the inputs once, outside the clock (to channels-last, say).
    passes: the passes it takes part in; None means all of the case.
    note: how it does it, for the report.
    slow: many minutes pass before it is ready for the clock; it takes part if asked for.
    """

    name: str
    function: Callable[..., Any]
    prepare: Callable[[Inputs], Inputs] | None = None
    passes: tuple[str, ...] | None = None
    note: str = ""
    slow: bool = False

    def takes_part(self, what: str) -> bool:
        """Whether it computes that pass."""
        return self.passes is None or what in self.passes


@dataclass(frozen=True)
class Case:
    """One shape of one operator; see the module's docstring.

    tolerance: largest relative error ‖a - b‖/‖b‖ of every output against the reference, a tenth of what gradients may have;
    None means the one of `dtype`.
    kinks: share of every gradient's entries, those that differ most, that is left out of that: functions with kinks have
    several right gradients where the inputs hit one by chance.
    everywhere: the targets hold for every pass and number of threads, not only for the last pass on one.
    peak: measure every variant's peak memory too, each in a process of its own.
    """

    operator: str
    name: str
    inputs: Callable[[torch.device], Inputs]
    variants: tuple[Variant, ...]
    passes: tuple[str, ...] = (FORWARD, BOTH)
    dtype: torch.dtype = torch.float32
    moved: dict[str, float] = field(default_factory=dict)
    operations: dict[str, float] = field(default_factory=dict)
    targets: dict[str, float] = field(default_factory=dict)
    tolerance: float | None = None
    kinks: float = 0.0
    everywhere: bool = False
    peak: bool = False

    @property
    def number_format(self) -> str:
        """The name of `dtype`, as the results have it."""
        return str(self.dtype).removeprefix("torch.")

    def without_slow(self) -> Case:
        """The same case without the variants that are slow."""
        return replace(self, variants=tuple(variant for variant in self.variants if not variant.slow))

    def work(self) -> float:
        """Bytes and operations of the last pass together: a measure of how long the case takes beside others of its operator."""
        return self.moved.get(self.passes[-1], 0.0) + self.operations.get(self.passes[-1], 0.0)


def compiled(
    function: Callable[..., Any],
    *,
    passes: tuple[str, ...] | None = None,
    prepare: Callable[[Inputs], Inputs] | None = None,
    slow: bool = False,
) -> Variant:
    """The variant "compile": `torch.compile` with its defaults, static shapes."""
    function = torch.compile(function, dynamic=False)
    return Variant(COMPILE, function, prepare, passes, note="torch.compile of the reference", slow=slow)


def channels_last(inputs: Inputs) -> Inputs:
    """A `prepare` that puts every tensor of rank 4 into channels-last layout."""
    return tuple(
        value.contiguous(memory_format=torch.channels_last) if isinstance(value, Tensor) and value.dim() == 4 else value
        for value in inputs
    )
