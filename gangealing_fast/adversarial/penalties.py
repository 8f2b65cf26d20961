# SPDX-License-Identifier: Apache-2.0
"""Penalties on the critic's gradient."""

from __future__ import annotations

import torch
from torch import Tensor


def r1_penalty(real_logits: Tensor, real_images: Tensor) -> Tensor:
    """R1 (Mescheder et al. 2018, eq. 9 without gamma / 2): mean over samples of the squared gradient norm at real pictures.

    real_logits `[N]` must have been computed from `real_images` `[N, ...]` that require a gradient. Returns a scalar that can
    itself be differentiated with respect to the critic's weights.
    """
    (gradient,) = torch.autograd.grad(real_logits.sum(), real_images, create_graph=True)
    return gradient.square().flatten(1).sum(1).mean()
