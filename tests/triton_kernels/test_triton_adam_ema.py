# SPDX-License-Identifier: Apache-2.0
"""adam_ema's Triton kernel against the reference, in place."""

from __future__ import annotations

import pytest
import torch
from cases.adam_ema import CASES
from compare import DEVICE, kernels

from gangealing_fast.ops.adam_ema import adam_ema_reference


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_values(name, dtype):
    (adam_ema,) = kernels("adam_ema", "adam_ema")
    case = CASES[name]
    actual, expected = case.arguments(dtype, DEVICE), case.arguments(dtype)
    adam_ema(*actual, *case.keywords.values())
    adam_ema_reference(*expected, **case.keywords)
    tolerance = 1e-12 if dtype == torch.float64 else 2e-6
    for which, (ours, theirs) in enumerate(zip(actual[:5], expected[:5], strict=True)):
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a.cpu(), b, rtol=tolerance, atol=tolerance, msg=lambda text, w=which: f"list {w}: {text}")
