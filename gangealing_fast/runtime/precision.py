# SPDX-License-Identifier: Apache-2.0
"""Which number format the heavy layers run in, and how it is switched on."""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from gangealing_fast.runtime.errors import UserError

Precision = Literal["auto", "float32", "bfloat16", "float16"]
EMULATED = frozenset(
    dtype
    for dtype, convolves in (
        (torch.bfloat16, torch.ops.mkldnn._is_mkldnn_bf16_supported),
        (torch.float16, torch.ops.mkldnn._is_mkldnn_fp16_supported),
    )
    if not convolves()
)
"""Formats that torch convolves number by number on this processor, many times slower than it does float32."""


def resolve(precision: Precision, device: torch.device) -> torch.dtype:
    """The dtype behind a `--precision` option: "auto" takes bfloat16 where the device computes in it natively.

    On CPUs that is AVX-512 BF16 or AMX; without either bfloat16 convolutions are emulated and slower than float32.
    float16 is for GPUs without bfloat16: it needs a scaled loss (`LossScale`). Raises UserError where the device cannot.
    """
    if precision not in get_args(Precision):
        raise UserError(f"--precision must be {', '.join(get_args(Precision))}, got {precision}")
    if precision == "float32":
        return torch.float32
    if precision == "bfloat16":
        if device.type == "cpu" and not _cpu_computes_in_bfloat16():
            print("--precision bfloat16: this processor has no units for it and emulates it; float32, which auto takes, is faster")
        return torch.bfloat16
    if precision == "float16":
        if not _convolves_in_float16(device):
            raise UserError(f"--precision float16: {device} cannot compute convolutions in it here; use bfloat16 or float32")
        return torch.float16
    if device.type == "cpu":
        return torch.bfloat16 if _cpu_computes_in_bfloat16() else torch.float32
    return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32


def _convolves_in_float16(device: torch.device) -> bool:
    image = torch.ones(1, 8, 4, 4, device=device, dtype=torch.float16, requires_grad=True)
    try:
        torch.nn.functional.conv2d(image, image.detach()[:, :, :3, :3]).sum().backward()
    except RuntimeError:
        return False
    return True


def _cpu_computes_in_bfloat16() -> bool:
    return torch.bfloat16 not in EMULATED and _native_bfloat16()


def _native_bfloat16() -> bool:
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def tf32_convolutions() -> bool:
    """Whether cuDNN's convolutions may round float32 to TF32, by whichever of torch's two switches that was said.

    `torch.backends.cudnn.allow_tf32`, the older switch, must not be read: it raises once the newer one was used.
    """
    convolutions: Any = getattr(torch.backends.cudnn, "conv")  # noqa: B009 (torch's type stubs do not know it)
    return bool(convolutions.fp32_precision == "tf32")


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[None]:
    """Autocast to `dtype` on `device`; does nothing for float32."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


class LossScale:
    """The factor on the loss that keeps float16 gradients from vanishing (arXiv 1710.03740, section 3.2); 1 for other dtypes.

    Doubled after `patience` good steps in a row, halved after one whose gradients overflowed: that step is to be left out. Powers
    of two change no digit of a gradient that stays in range.
    """

    def __init__(self, dtype: torch.dtype, *, start: float = 2.0**16, patience: int = 2000) -> None:
        self.active, self.patience = dtype == torch.float16, patience
        self.value, self.good = (start if self.active else 1.0), 0

    @torch.no_grad()
    def settle(self, parameters: Iterable[Tensor]) -> bool:
        """Divide the gradients by the factor, in place, and adapt it; whether the step may be taken."""
        if not self.active:
            return True
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        torch._foreach_mul_(gradients, 1 / self.value)
        if not all(torch.stack([gradient.isfinite().all() for gradient in gradients]).tolist()):
            self.value, self.good = self.value / 2, 0
            return False
        self.good += 1
        if self.good == self.patience:
            self.value, self.good = min(2 * self.value, 2.0**24), 0
        return True

    def state_dict(self) -> dict[str, float]:
        """What `load_state_dict` goes on from."""
        return {"value": self.value, "good": self.good}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on from where `state_dict` was taken, if this precision scales anything. Raises ValueError for nonsense."""
        if not (math.isfinite(state["value"]) and state["value"] > 0):
            raise ValueError(f"a loss scaled by {state['value']}")
        if self.active:
            self.value, self.good = state["value"], int(state["good"])
