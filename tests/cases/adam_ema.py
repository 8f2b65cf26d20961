# SPDX-License-Identifier: Apache-2.0
"""Cases of adam_ema for whatever implements it: many small tensors, odd sizes, layouts, narrow gradients, no averages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """`shapes` of the parameters and the operator's keywords.

    steps: the number of the step, for all parameters or one for each. averages: whether there are any.
    gradient_dtype: None for the parameters' own. layout: "contiguous", "channels_last", "strided" (parameters and state),
    "offset" (none at an address that is a multiple of 16 bytes), or "gradient" (the gradients alone are in another layout than the
    parameters).
    """

    shapes: tuple[tuple[int, ...], ...]
    steps: tuple[int, ...] = (1,)
    averages: bool = True
    gradient_dtype: torch.dtype | None = None
    layout: str = "contiguous"
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    decay: float = 0.97
    learning_rate: float = 0.01

    @property
    def keywords(self) -> dict[str, Any]:
        """Keyword arguments of `ops.adam_ema`."""
        names = ("learning_rate", "beta1", "beta2", "epsilon", "decay")
        return {name: getattr(self, name) for name in names}

    def arguments(self, dtype: torch.dtype = torch.float32, device: str = "cpu") -> list[Any]:
        """[parameters, gradients, first moments, second moments, averages, steps], fresh and the same on every call."""
        generator = torch.Generator().manual_seed(0)
        lists: list[list[Tensor]] = [[] for _ in range(5)]
        for shape in self.shapes:
            values = [torch.randn(shape, dtype=torch.float64, generator=generator) for _ in range(5)]
            values[3] = values[3].square() * 0.1
            for which, (target, value) in enumerate(zip(lists, values, strict=True)):
                narrow = self.gradient_dtype if which == 1 and self.gradient_dtype is not None else dtype
                target.append(self._laid_out(value.to(narrow).to(device), which))
        steps = self.steps * len(self.shapes) if len(self.steps) == 1 else self.steps
        return [*lists[:4], lists[4] if self.averages else [], [float(step) for step in steps]]

    def _laid_out(self, value: Tensor, which: int) -> Tensor:
        layout = {"gradient": "strided" if which == 1 else "contiguous"}.get(self.layout, self.layout)
        if layout == "channels_last" and value.dim() == 4:
            return value.contiguous(memory_format=torch.channels_last)
        if layout == "strided" and value.dim() > 0:
            wide = torch.zeros(*value.shape[:-1], 2 * value.shape[-1], dtype=value.dtype, device=value.device)
            wide[..., ::2] = value
            return wide[..., ::2]
        if layout == "offset":
            longer = torch.zeros(value.numel() + 1, dtype=value.dtype, device=value.device)
            longer[1:] = value.flatten()
            return longer[1:].view(value.shape)
        return value


_NETWORK = ((8, 3, 3, 3), (8,), (1,), (5, 8), (5,), (2, 3, 1, 1))

CASES = {
    "first step": Case(_NETWORK),
    "later step": Case(_NETWORK, steps=(1000,)),
    "steps of their own": Case(((7,), (3, 5), (2, 2, 2)), steps=(1, 5, 300)),
    "no averages": Case(_NETWORK, steps=(3,), averages=False),
    "no first moment": Case(_NETWORK, steps=(2,), beta1=0.0, beta2=0.99),
    "average that follows at once": Case(_NETWORK, decay=0.0),
    "average that stays": Case(_NETWORK, decay=1.0),
    "channels-last": Case(((4, 3, 3, 3), (9, 5, 1, 1), (6,)), steps=(4,), layout="channels_last"),
    "strided": Case(((4, 3, 3, 3), (7, 5), (6,)), steps=(4,), layout="strided"),
    "at odd addresses": Case(((8, 3, 3, 3), (64,), (4100,)), steps=(4,), layout="offset"),
    "strided gradients": Case(((4, 3, 3, 3), (7, 5), (6,)), steps=(4,), layout="gradient"),
    "scalars and empty tensors": Case(((), (0,), (3, 0), (1,))),
    "more than one block": Case(((100_003,), (33, 1021), (17,)), steps=(7,)),
    "bfloat16 gradients": Case(_NETWORK, steps=(5,), gradient_dtype=torch.bfloat16),
    "float16 gradients": Case(_NETWORK, steps=(5,), gradient_dtype=torch.float16),
    "many small tensors": Case(tuple((1 + k % 37,) for k in range(300)), steps=(2,)),
}
