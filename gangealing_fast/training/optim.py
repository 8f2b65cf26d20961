# SPDX-License-Identifier: Apache-2.0
"""Optimisers that keep the running average of the weights: Adam in the same pass (`ops.adam_ema`), and RMSProp."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol, overload

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from gangealing_fast.ops.adam_ema import adam_ema


class Stateful(Protocol):
    """Whatever a checkpoint holds under one name: networks, optimisers, samplers."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any], /) -> Any: ...


class AdamEma(torch.optim.Adam):
    """`torch.optim.Adam` without weight decay and AMSGrad, which also updates running averages of its parameters.

    Its state dict is that of `torch.optim.Adam`: either loads what the other has saved. The averages are no part of it; they
    belong to the averaged network.

    Args:
        params: parameters or groups of them, float32 or float64. A group may have its own lr, betas and eps.
        lr, betas, eps: α, (β₁, β₂) and ε of arXiv 1412.6980, algorithm 1.
        averages: the running average of every parameter, in their order (`averaged.parameters()`); None for none.
        decay: the share of an average that one step keeps, in [0, 1]; `step(decay=...)` overrides it.

    Raises:
        ValueError: averages and parameters are not equally many.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        *,
        averages: Iterable[Tensor] | None = None,
        decay: float = 0.999,
    ) -> None:
        super().__init__(params, lr, betas, eps)
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        self._averages: dict[Tensor, Tensor] = {}
        if averages is not None:
            followers = [average.detach() for average in averages]
            if len(followers) != len(parameters):
                raise ValueError(f"AdamEma: there are {len(parameters)} parameters but {len(followers)} averages.")
            self._averages = dict(zip(parameters, followers, strict=True))
        self._decay = decay

    @overload
    def step(self, closure: None = None, *, decay: float | None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float], *, decay: float | None = None) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None, *, decay: float | None = None) -> float | None:
        """Update all parameters that have a gradient, and the averages of all parameters.

        Raises ValueError where a loaded state dict asks for weight decay, AMSGrad or ascent.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        decay = self._decay if decay is None else decay
        for group in self.param_groups:
            if group["weight_decay"] or group["amsgrad"] or group["maximize"]:
                raise ValueError("AdamEma: it knows no weight decay, amsgrad or maximize; use torch.optim.Adam for them.")
            averaged = [parameter for parameter in group["params"] if parameter in self._averages]
            moving = [parameter for parameter in averaged if parameter.grad is not None]
            self._update(group, moving, [self._averages[parameter] for parameter in moving], decay)
            alone = [p for p in group["params"] if p.grad is not None and p not in self._averages]
            self._update(group, alone, [], decay)
            for parameter in averaged:
                if parameter.grad is None:
                    self._averages[parameter].lerp_(parameter, 1 - decay)
        return loss

    def _update(self, group: dict[str, Any], parameters: list[Tensor], averages: list[Tensor], decay: float) -> None:
        """One step of `parameters`, all of which have a gradient, and of their averages, all or none."""
        states = [self._state_of(parameter) for parameter in parameters]
        for state in states:
            state["step"] += 1
        adam_ema(
            parameters,
            [parameter.grad for parameter in parameters if parameter.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            averages,
            [state["step"].item() for state in states],
            learning_rate=float(group["lr"]),
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            epsilon=group["eps"],
            decay=decay,
        )

    def _state_of(self, parameter: Tensor) -> dict[str, Tensor]:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        return state


class RmsPropEma(torch.optim.RMSprop):
    """`torch.optim.RMSprop`, which also updates running averages of its parameters; its state dict is that of RMSprop.

    Args:
        params, lr, alpha, eps: as in torch. averages, decay: as in `AdamEma`.

    Raises:
        ValueError: averages and parameters are not equally many.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        alpha: float = 0.99,
        eps: float = 1e-8,
        *,
        averages: Iterable[Tensor] | None = None,
        decay: float = 0.999,
    ) -> None:
        super().__init__(params, lr, alpha, eps)
        self._followed = [parameter for group in self.param_groups for parameter in group["params"]] if averages is not None else []
        self._averages = [average.detach() for average in averages or ()]
        if len(self._averages) != len(self._followed):
            raise ValueError(f"RmsPropEma: there are {len(self._followed)} parameters but {len(self._averages)} averages.")
        self._decay = decay

    @overload
    def step(self, closure: None = None, *, decay: float | None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float], *, decay: float | None = None) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None, *, decay: float | None = None) -> float | None:
        """Update all parameters that have a gradient, and the averages of all parameters."""
        loss = super().step(closure)
        if self._followed:
            torch._foreach_lerp_(self._averages, self._followed, 1 - (self._decay if decay is None else decay))
        return loss


def restore(part: Stateful, state: dict[str, Any]) -> None:
    """`part.load_state_dict(state)`, an optimiser's after its moments were compared with the parameters, which torch does not do.

    Raises ValueError for a state of other shapes or settings, and whatever `load_state_dict` raises.
    """
    if isinstance(part, torch.optim.Optimizer):
        parameters = [parameter for group in part.param_groups for parameter in group["params"]]
        for index, moments in state["state"].items():
            for name, value in moments.items():
                if isinstance(value, Tensor) and value.ndim and value.shape != parameters[index].shape:
                    raise ValueError(f"{name} of parameter {index} does not have the shape {list(parameters[index].shape)}")
        for group in state["param_groups"]:
            for name in ("betas", "eps", "alpha", "weight_decay"):
                value = group.get(name, 0.0)
                numbers = value if isinstance(value, tuple) else (value,)
                if not all(type(number) in (int, float) and 0 <= number <= 1 for number in numbers):
                    raise ValueError(f"{name} of an optimiser is {str(value)[:40]}")
    part.load_state_dict(state)
