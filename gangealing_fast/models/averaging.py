# SPDX-License-Identifier: Apache-2.0
"""The running average of a network's weights, as both trainers keep it."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def update_average(average: nn.Module, current: nn.Module, decay: float) -> None:
    """`average = decay average + (1 - decay) current` over all parameters in one pass."""
    torch._foreach_lerp_(list(average.parameters()), [p.detach() for p in current.parameters()], 1 - decay)
