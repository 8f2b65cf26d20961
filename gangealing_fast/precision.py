# SPDX-License-Identifier: Apache-2.0
"""Which number format the heavy layers run in, and how it is switched on."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Literal

import torch

from gangealing_fast.errors import UserError

Precision = Literal["auto", "float32", "bfloat16"]


def resolve(precision: Precision, device: torch.device) -> torch.dtype:
    """The dtype behind a `--precision` option: "auto" takes bfloat16 where the device computes in it natively.

    On CPUs that is AVX-512 BF16 or AMX; without either bfloat16 convolutions are emulated and slower than float32.
    """
    if precision not in ("auto", "float32", "bfloat16"):
        raise UserError(f"--precision must be auto, float32 or bfloat16, got {precision}")
    if precision == "float32":
        return torch.float32
    if precision == "bfloat16":
        return torch.bfloat16
    if device.type == "cpu":
        return torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() and _native_bfloat16() else torch.float32
    return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32


def _native_bfloat16() -> bool:
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[None]:
    """Autocast to `dtype` on `device`; does nothing for float32."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)
