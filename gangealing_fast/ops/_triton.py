# SPDX-License-Identifier: Apache-2.0
"""Lets the Triton kernels of `gangealing_fast.kernels` serve operators on CUDA."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any


@dataclass(frozen=True)
class Served:
    """Which module of gangealing_fast.kernels serves an operator, and what is to be said about it."""

    module: str
    note: str


# By name of the operator.
SERVED: dict[str, Served] = {}


def available() -> bool:
    """Whether Triton is installed; where it is not, the operators' bodies, their references, serve on CUDA."""
    return find_spec("triton") is not None


def serve_cuda(module: str, *operators: Any, note: str = "") -> None:
    """Have `gangealing_fast.kernels.<module>` serve `operators`, made by torch.library.custom_op, on CUDA.

    The function there bears the operator's name and signature. Triton is imported when the first CUDA tensor arrives.
    """
    for operator in operators:
        name = operator._qualname.split("::")[1]
        SERVED[name] = Served(module, note)

        def run(*arguments: Any, name: str = name, **keywords: Any) -> Any:
            return getattr(importlib.import_module(f"gangealing_fast.kernels.{module}"), name)(*arguments, **keywords)

        if available():
            operator.register_kernel("cuda")(run)
