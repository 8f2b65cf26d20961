# SPDX-License-Identifier: Apache-2.0
r"""Adam (arXiv 1412.6980, algorithm 1) and the running average of the weights, in one pass over memory.

For every parameter θ with gradient g, moments m and v, average a, at step t (1 for the first):

    m = β₁ m + (1 - β₁) g                         v = β₂ v + (1 - β₂) g²
    θ = θ - α · (m / (1 - β₁ᵗ)) / (sqrt(v / (1 - β₂ᵗ)) + ε)
    a = a + (1 - d) (θ - a)

No weight decay, no AMSGrad. Everything is updated in place, so the operator has no derivative: call it under
`torch.no_grad()`. Parameters, moments and averages have one dtype, float32 or float64; a gradient may be narrower.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gangealing_fast.ops._common import FLOATING
from gangealing_fast.ops._dispatch import reference_wanted, transformed
from gangealing_fast.ops._triton import serve_cuda

_MUTATED = ("parameters", "first_moments", "second_moments", "averages")


def adam_ema_reference(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    first_moments: Sequence[Tensor],
    second_moments: Sequence[Tensor],
    averages: Sequence[Tensor],
    steps: Sequence[float],
    *,
    learning_rate: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
    decay: float = 0.999,
) -> None:
    """The formulas, one tensor after the other; arguments as `adam_ema`."""
    for index, (parameter, gradient) in enumerate(zip(parameters, gradients, strict=True)):
        m, v, t = first_moments[index], second_moments[index], steps[index]
        gradient = gradient.to(m.dtype)
        m.mul_(beta1).add_(gradient, alpha=1 - beta1)
        v.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        corrected = v / (1 - beta2**t)
        parameter.sub_(m / (1 - beta1**t) / (corrected.sqrt() + epsilon) * learning_rate)
        if averages:
            averages[index].lerp_(parameter, 1 - decay)


@torch.library.custom_op("gangealing_fast::adam_ema", mutates_args=_MUTATED)
def _adam_ema(
    parameters: list[Tensor],
    gradients: list[Tensor],
    first_moments: list[Tensor],
    second_moments: list[Tensor],
    averages: list[Tensor],
    steps: list[float],
    learning_rate: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    decay: float,
) -> None:
    adam_ema_reference(
        parameters, gradients, first_moments, second_moments, averages, steps,
        learning_rate=learning_rate, beta1=beta1, beta2=beta2, epsilon=epsilon, decay=decay,
    )  # fmt: skip


@_adam_ema.register_fake
def _(
    parameters: list[Tensor], gradients: list[Tensor], first_moments: list[Tensor], second_moments: list[Tensor],
    averages: list[Tensor], steps: list[float], learning_rate: float, beta1: float, beta2: float, epsilon: float, decay: float,
) -> None:  # fmt: skip
    return None


serve_cuda("adam_ema", _adam_ema)


def _check(parameters: Sequence[Tensor], others: dict[str, Sequence[Tensor]], steps: Sequence[float]) -> None:
    for name, tensors in others.items():
        if len(tensors) != len(parameters) and not (name == "averages" and not tensors):
            raise ValueError(f"adam_ema: there are {len(parameters)} parameters but {len(tensors)} {name}.")
    if len(steps) != len(parameters) or any(step < 1 for step in steps):
        raise ValueError(f"adam_ema: steps must be one number of at least 1 for each of the {len(parameters)} parameters.")
    for name, tensors in {"parameters": parameters, **others}.items():
        for index, tensor in enumerate(tensors):
            if not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
                kind = tensor.layout if isinstance(tensor, Tensor) else type(tensor).__name__
                raise TypeError(f"adam_ema: {name}[{index}] must be a dense tensor, not {kind}.")
    for index, parameter in enumerate(parameters):
        if parameter.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"adam_ema: parameter {index} is {parameter.dtype}; parameters must be float32 or float64.")
        for name, tensors in others.items():
            if not tensors:
                continue
            other = tensors[index]
            if other.shape != parameter.shape or other.device != parameter.device:
                raise ValueError(
                    f"adam_ema: parameter {index} is {list(parameter.shape)} on {parameter.device}, but in {name} there is "
                    f"{list(other.shape)} on {other.device}."
                )
            if other.dtype != parameter.dtype and not (name == "gradients" and other.dtype in FLOATING):
                raise TypeError(f"adam_ema: parameter {index} is {parameter.dtype}, but in {name} there is {other.dtype}.")


def adam_ema(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    first_moments: Sequence[Tensor],
    second_moments: Sequence[Tensor],
    averages: Sequence[Tensor],
    steps: Sequence[float],
    *,
    learning_rate: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
    decay: float = 0.999,
) -> None:
    """One step of Adam on all `parameters`, and of their running averages, in place.

    Args:
        parameters: float32 or float64 tensors of any shapes and strides, all on one device.
        gradients: one for each, float64, float32, bfloat16 or float16.
        first_moments, second_moments: m and v of each, zeros before the first step.
        averages: the running average of each; or none at all, for Adam alone.
        steps: the number t of this step for each parameter, 1 for the first.
        learning_rate, beta1, beta2, epsilon: α, β₁, β₂ and ε above.
        decay: d, the share of the old average that stays, in [0, 1].

    Each element depends on its own numbers alone: the result is bit-identical between runs and thread counts.

    Raises:
        ValueError, TypeError: an argument does not fit; the message says which and how. Nothing is changed then.
        NotImplementedError: called under a transform of torch.func or in forward mode.
    """
    others = {
        "gradients": gradients, "first_moments": first_moments, "second_moments": second_moments, "averages": averages
    }  # fmt: skip
    _check(parameters, others, steps)
    if not (0 <= beta1 < 1 and 0 <= beta2 < 1 and epsilon >= 0 and 0 <= decay <= 1):
        raise ValueError(
            "adam_ema: beta1 and beta2 must lie in [0, 1), epsilon must not be negative and decay must lie in [0, 1], "
            f"not {beta1}, {beta2}, {epsilon} and {decay}."
        )
    if torch.is_grad_enabled() and any(t.requires_grad for t in (*parameters, *gradients, *averages)):
        raise ValueError("adam_ema: it updates in place and has no derivative; call it under torch.no_grad().")
    if transformed():
        raise NotImplementedError("adam_ema: it updates in place; call it outside of torch.func transforms and of forward mode.")
    if not parameters:
        return
    if reference_wanted():
        adam_ema_reference(
            parameters, gradients, first_moments, second_moments, averages, steps,
            learning_rate=learning_rate, beta1=beta1, beta2=beta2, epsilon=epsilon, decay=decay,
        )  # fmt: skip
        return
    torch.ops.gangealing_fast.adam_ema(
        list(parameters), list(gradients), list(first_moments), list(second_moments), list(averages),
        [float(step) for step in steps], learning_rate, beta1, beta2, epsilon, decay,
    )  # fmt: skip
