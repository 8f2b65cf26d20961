# SPDX-License-Identifier: Apache-2.0
"""Lets the Triton kernels of `gangealing_fast.kernels` serve operators on CUDA."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

PACKAGE = "gangealing_fast.kernels"
CHECKOUT = Path(__file__).resolve().parents[2] / "kernels"


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


def kernels(module: str) -> ModuleType:
    """`gangealing_fast.kernels.<module>`; in a checkout that is built but not installed, from `kernels/` beside the package."""
    if PACKAGE not in sys.modules and find_spec(PACKAGE) is None:
        specification = importlib.util.spec_from_file_location(
            PACKAGE, CHECKOUT / "__init__.py", submodule_search_locations=[str(CHECKOUT)]
        )
        if specification and specification.loader and CHECKOUT.is_dir():
            package = importlib.util.module_from_spec(specification)
            sys.modules[PACKAGE] = package
            specification.loader.exec_module(package)
    return importlib.import_module(f"{PACKAGE}.{module}")


def serve_cuda(module: str, *operators: Any, note: str = "") -> None:
    """Have `gangealing_fast.kernels.<module>` serve `operators`, made by torch.library.custom_op, on CUDA.

    The function there bears the operator's name and signature. Triton is imported when the first CUDA tensor arrives.
    """
    for operator in operators:
        name = operator._qualname.split("::")[1]
        SERVED[name] = Served(module, note)

        def run(*arguments: Any, name: str = name, **keywords: Any) -> Any:
            return getattr(kernels(module), name)(*arguments, **keywords)

        if available():
            operator.register_kernel("cuda")(run)
