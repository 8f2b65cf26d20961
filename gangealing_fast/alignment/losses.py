# SPDX-License-Identifier: Apache-2.0
"""The loss of GAN-supervised alignment (arXiv 2112.05143, equation 3):

    perceptual(T(G(w)), G(mix(c, w))) + tv * TV(flow) + identity * mean(flow**2)

and, where samples are shown in random poses, equivariance * the equivariance error (`poses`), which the paper does not have.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gangealing_fast import ops
from gangealing_fast.alignment.options import Weights
from gangealing_fast.metrics.perceptual import Distance


class AlignmentLoss(NamedTuple):
    """`total` is what is minimised; the parts are unweighted means over the batch. All are scalars; `equivariance` may be None."""

    total: Tensor
    perceptual: Tensor
    tv: Tensor
    identity: Tensor
    equivariance: Tensor | None = None


def alignment_loss(
    perceptual: Distance,
    aligned: Tensor,
    target: Tensor,
    residual_flow: Tensor | None,
    weights: Weights,
    *,
    equivariance: Tensor | None = None,
) -> AlignmentLoss:
    """Loss of aligned pictures `[N, 3, H, W]` against their targets, with the regularisers of the residual flow.

    `perceptual(a, b)` returns `[N]`; `residual_flow` is `[N, h, w, 2]`; `equivariance` `[N]`.
    Without a residual flow (a similarity alone) both regularisers are 0.
    """
    if aligned.shape != target.shape:
        raise ValueError(f"aligned and target pictures must have one shape, got {list(aligned.shape)} and {list(target.shape)}.")
    distance = total = perceptual(aligned, target).mean()
    tv = identity = torch.zeros_like(distance)
    if residual_flow is not None:
        tv, identity = (term.mean() for term in ops.flow_regularizer(residual_flow))
        total = total + weights.tv * tv + weights.identity * identity
    apart = None
    if equivariance is not None:
        apart = equivariance.mean()
        total = total + weights.equivariance * apart
    return AlignmentLoss(total, distance, tv, identity, apart)
