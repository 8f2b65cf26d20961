# SPDX-License-Identifier: Apache-2.0
"""Total variation and identity term of the residual flow."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.case import BOTH, FORWARD, Case, Variant, compiled
from gangealing_fast.ops.flow_regularizer import flow_regularizer, flow_regularizer_reference


def _inputs(device: torch.device, shape: tuple[int, ...]) -> tuple[Tensor, ...]:
    return (torch.randn(shape).to(device).requires_grad_(),)


def _torch(flow: Tensor) -> tuple[Tensor, Tensor]:
    across = F.huber_loss(flow[:, :, 1:], flow[:, :, :-1], reduction="none").mean((1, 2, 3))
    down = F.huber_loss(flow[:, 1:], flow[:, :-1], reduction="none").mean((1, 2, 3))
    return across + down, flow.square().mean((1, 2, 3))


def cases() -> list[Case]:
    result = []
    for batch, size in ((5, 128), (40, 128)):
        elements = batch * size * size * 2
        result.append(
            Case(
                operator="flow_regularizer",
                name=f"flow [{batch}, {size}, {size}, 2]",
                inputs=partial(_inputs, shape=(batch, size, size, 2)),
                variants=(
                    Variant("ours", flow_regularizer),
                    Variant("reference", flow_regularizer_reference),
                    Variant("torch", _torch, note="huber_loss of the shifted views"),
                    compiled(flow_regularizer_reference, passes=(BOTH,)),
                ),
                moved={FORWARD: 4.0 * elements, BOTH: 3 * 4.0 * elements},
                targets={"reference": 13, "compile": 5} if batch == 5 else {},
            )
        )
    return result
