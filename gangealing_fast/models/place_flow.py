# SPDX-License-Identifier: Apache-2.0
"""The flow that is left over once a similarity has carried a picture to the template, read from the same places of it.

A place that lies at q in the frame of the template, and says that it belongs at y, wants y to be read at q. These residuals
r = q - y, known at the points y and weighted by how far they can be relied on, are spread over the frame by normalised convolution
(Knutsson and Westin 1993, "Normalized and differential convolution"):

    flow(t) = Σ w K(t - y) r / (Σ w K(t - y) + ε),   K a Gaussian.

It has no weights of its own: whatever taught the similarity to read places has taught the flow.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gangealing_fast.geometry.warps import identity_grid, transform_points
from gangealing_fast.models.place_similarity import PlaceHead

CELLS = 32
"""Of the flow a side, before it is resized."""
WIDTH = 0.1
"""Of the Gaussian, in halves of the template's side: chosen on faces that had taught (docs/results.md)."""
DOUBT = 0.75
"""ε, of what the sum would be if all places could be relied on alike."""


class PlaceFlow(nn.Module):
    """What is read at places of pictures that lie on the template, `[N, channels, n, n]`, to flows `[N, side, side, 2]`."""

    looks = 2
    """The second is at the pictures as the first flow warps them."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, head: PlaceHead, features: Tensor, assignment: Tensor | None) -> Tensor:
        """head: of the similarity; features `[N, channels, n, n]` of the pictures, as it takes them; assignment as it takes it."""
        with torch.autocast(features.device.type, enabled=False):
            found = head.places(features, assignment)
            said = transform_points(head.inverse_frame(features.shape[0], assignment), found.template).flatten(1, 2)
            residual = found.at.flatten(0, 1) - said
            weight = torch.softmax(found.reliance.flatten(1), 1)
            flow = spread(said, residual, weight)
            if self.side != CELLS:
                flow = F.interpolate(flow.permute(0, 3, 1, 2), (self.side, self.side), mode="bilinear").permute(0, 2, 3, 1)
            return flow


def spread(said: Tensor, residual: Tensor, weight: Tensor) -> Tensor:
    """`[N, CELLS, CELLS, 2]`: residuals `[N, P, 2]` at points `said` `[N, P, 2]`, of weights `[N, P]` that sum to 1."""
    at = identity_grid(CELLS, CELLS, device=said.device).flatten(0, 1)
    square = at.square().sum(1)[:, None] - 2 * at @ said.mT + said.square().sum(2)[:, None]
    near = (square / (-2 * WIDTH**2)).exp() * weight[:, None]
    share = 2 * math.pi * WIDTH**2 / 4  # of the frame, whose sides are 2
    return (near @ residual / (near.sum(2, keepdim=True) + DOUBT * share)).unflatten(1, (CELLS, CELLS))
