# SPDX-License-Identifier: Apache-2.0
"""Untrained aligners that move pictures all the same, for the tests of everything that uses one."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gangealing_fast import Aligner
from gangealing_fast.geometry.warping import Warping
from gangealing_fast.models import ClusterClassifier, SpatialTransformer


def aligner(transforms: Sequence[str] = ("similarity",), scale: float = 0.3, iters: int = 1) -> Aligner:
    """An aligner for pictures of 32 pixels; `scale` is the standard deviation of what its heads are drawn from."""
    torch.manual_seed(0)
    transformer = SpatialTransformer(transforms, 32, channel_base=64, max_channels=8)
    for module in transformer.modules():
        if hasattr(module, "warp_head") and hasattr(module.warp_head, "linear"):
            torch.nn.init.normal_(module.warp_head.linear.weight, std=scale)
            torch.nn.init.normal_(module.warp_head.linear.bias, std=scale)
    return Aligner(transformer, Warping(iters=iters))


def bend(model: Aligner, strength: float = 0.3) -> None:
    """Give the flow head something to do; at 0.3 it folds in places."""
    if model.transformer.flow is not None:
        last = model.transformer.flow.warp_head.flow_out[2]
        torch.nn.init.normal_(last.weight, std=strength)


def clustered() -> Aligner:
    """Two similarity heads that do different things, and a classifier that knows mirrors."""
    torch.manual_seed(0)
    transformer = SpatialTransformer(("similarity",), 16, channel_base=32, max_channels=4, heads=2)
    torch.nn.init.normal_(transformer.similarity.warp_head.linear.weight, std=0.3)
    classifier = ClusterClassifier.like(transformer, flips=True)
    torch.nn.init.normal_(classifier.to_logits.weight)
    return Aligner(transformer, Warping("reflection"), classifier)


def composed() -> Aligner:
    """A similarity and a flow that move everything."""
    torch.manual_seed(0)
    transformer = SpatialTransformer(("similarity", "flow"), 32, channel_base=64, max_channels=8)
    for stage in transformer.stns:
        for parameter in stage.warp_head.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    return Aligner(transformer.eval().requires_grad_(False), Warping("reflection"))
