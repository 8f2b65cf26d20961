# SPDX-License-Identifier: Apache-2.0
"""Operators and their Triton kernels fit together, and Triton stays unimported until a CUDA tensor needs it."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys

import pytest
import torch

import gangealing_fast.ops  # noqa: F401
from gangealing_fast.ops import _triton
from tools.checkout import ROOT, use_kernels

pytest.importorskip("triton")


@pytest.mark.parametrize("name", _triton.SERVED)
def test_kernel_function_has_the_operators_signature(name):
    use_kernels()
    function = getattr(importlib.import_module(f"gangealing_fast.kernels.{_triton.SERVED[name].module}"), name)
    schema = getattr(torch.ops.gangealing_fast, name).default._schema
    assert list(inspect.signature(function).parameters) == [argument.name for argument in schema.arguments]


@pytest.mark.parametrize("name", _triton.SERVED)
def test_operator_is_registered_for_cuda(name):
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"gangealing_fast::{name}", "CUDA")


def test_operators_on_cpus_import_no_kernels():
    code = (
        "import sys, torch; from gangealing_fast import ops; ops.bias_act(torch.ones(1, 2, 3, 3), None); "
        "print(any(name.startswith('gangealing_fast.kernels') for name in sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert result.stdout.strip() == "False", result.stderr


def test_a_cuda_call_reaches_the_kernel_module(monkeypatch):
    """The registered function, called as the dispatcher would."""
    use_kernels()
    kernels = importlib.import_module("gangealing_fast.kernels.flow_regularizer")
    monkeypatch.setattr(kernels, "flow_regularizer", lambda flow: (flow, "reached"))
    operator = importlib.import_module("gangealing_fast.ops.flow_regularizer")._flow_regularizer
    assert operator._backend_fns["cuda"](1) == (1, "reached")
