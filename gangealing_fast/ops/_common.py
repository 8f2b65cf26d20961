# SPDX-License-Identifier: Apache-2.0
"""What every operator module shares: dtype and layout rules, argument checks with readable errors.

What a public function does after its checks, so that it obeys `ops.use("reference")`: see `_dispatch.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gangealing_fast.ops import _extension

_extension.load()

FLOATING = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype an operator computes in: float64 for float64, float32 for everything narrower."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def magnitude(x: Tensor) -> Tensor:
    """`|x|`, with the derivative of `abs`: the sign of `x`, 0 at 0.

    The references use it instead of `abs`: torch 2.10 and 2.11 cannot trace the second derivative of `abs` within nested
    `torch.func.vjp` ("cannot access PyObject for Tensor"), because it is a zero without memory.
    """
    return x * x.detach().sign()


def output_format(x: Tensor) -> torch.memory_format:
    """The layout of an operator's output: channels-last where `x` is (and is not contiguous as well), else contiguous."""
    if x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format


def check_tensor(operator: str, name: str, x: Tensor, rank: int | tuple[int, ...], shape: str) -> None:
    """Raise unless `x` is a dense floating tensor of the given rank; `shape` spells the expected shape, as "[N, C, H, W]"."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{operator}: {name} must be a tensor {shape}, not {type(x).__name__}.")
    if x.dtype not in FLOATING:
        raise TypeError(f"{operator}: {name} has dtype {x.dtype}; convert it to float64, float32, bfloat16 or float16 first.")
    if x.layout != torch.strided:
        raise TypeError(f"{operator}: {name} has layout {x.layout}; make it dense with to_dense() first.")
    ranks = (rank,) if isinstance(rank, int) else rank
    if x.dim() not in ranks:
        raise ValueError(f"{operator}: {name} must have shape {shape}, but it has shape {list(x.shape)}.")


def check_device(operator: str, x: Tensor, **others: Tensor | None) -> None:
    """Raise unless every one of `others` that is not None is a tensor on the device of `x`."""
    for name, other in others.items():
        if other is not None and not isinstance(other, Tensor):
            raise TypeError(f"{operator}: {name} must be a tensor, not {type(other).__name__}.")
        if other is not None and other.device != x.device:
            raise ValueError(f"{operator}: {name} is on {other.device} but x is on {x.device}; move one of them.")


def check_whole(operator: str, **numbers: int) -> None:
    """Raise unless all `numbers` are whole and of a size that no sum or product of a few of them leaves 64 bits."""
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, int):
            raise TypeError(f"{operator}: {name} must be a whole number, not {number!r}.")
        if not -(2**31) < number < 2**31:
            raise ValueError(f"{operator}: {name} must be between -2^31 and 2^31, not {number}.")


def parameter(operator: str, name: str, value: Tensor, x: Tensor) -> Tensor:
    """`value`, a parameter beside the activations `x`, in the dtype the operator computes in.

    Parameters stay float32 under autocast while activations are half precision, so both dtypes are welcome.
    """
    wanted = compute_dtype(x.dtype)
    if value.layout != torch.strided:
        raise TypeError(f"{operator}: {name} has layout {value.layout}; make it dense with to_dense() first.")
    if value.dtype not in (wanted, x.dtype):
        raise TypeError(f"{operator}: {name} is {value.dtype} but x is {x.dtype}; {name} must be {x.dtype} or {wanted}.")
    return value.to(wanted)
