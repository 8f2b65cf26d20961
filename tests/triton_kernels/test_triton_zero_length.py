# SPDX-License-Identifier: Apache-2.0
"""Axes of no length: every Triton kernel gives what the operator gives on the CPU, forward and backward."""

from __future__ import annotations

import pytest
import torch
from compare import kernels
from emptied import emptied, made, run
from support import Recorder
from torch import Tensor

from gangealing_fast import ops
from gangealing_fast.ops._triton import SERVED

OPERATORS = [name for name in SERVED if not name.endswith("_backward")]


@pytest.mark.parametrize(("operator", "axes"), emptied(*OPERATORS), ids=lambda v: v if isinstance(v, str) else "-".join(v))
def test_empty_axes(operator, axes):
    with Recorder() as recorder:
        try:
            run(operator, made(operator, axes, torch.float32))
        except (ValueError, TypeError):
            return  # refused before any kernel
    agree(recorder)


@pytest.mark.parametrize("axis", ["N", "C", "O"])
@pytest.mark.parametrize("resampling", ["up", "down"])
def test_resampling(resampling, axis):
    tensors = made("modulated_conv2d", (axis,), torch.float32)
    wanted = {name: t.requires_grad_() for name, t in tensors.items() if name in ("x", "weight", "style", "bias")}
    with Recorder() as recorder:
        y = ops.modulated_conv2d(**wanted, **{resampling: True})
        torch.autograd.grad(y.sum(), list(wanted.values()), allow_unused=True)
    agree(recorder)


def agree(recorder: Recorder) -> None:
    """Fail unless the kernels give what the operators gave."""
    for registered, (arguments, keywords) in recorder.calls.items():
        name = registered._opname
        if name not in SERVED or name == "adam_ema":  # which changes its arguments; its lists hold tensors of any length
            continue
        arguments = tuple(a.detach() if isinstance(a, Tensor) else a for a in arguments)
        with torch.no_grad():
            expected = registered(*arguments, **keywords)
            (kernel,) = kernels(SERVED[name].module, name)
            found = kernel(*arguments, **keywords)
        for a, e in zip(*([t] if isinstance(t, Tensor) else t for t in (found, expected)), strict=True):
            assert a.shape == e.shape and a.dtype == e.dtype, (name, a.shape, e.shape)
            torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-5)
