# SPDX-License-Identifier: Apache-2.0
"""The last layers of a transformer: features of a picture to a similarity or to a flow, one of each for every cluster."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from gangealing_fast.geometry.warps import inverse_similarity_matrix, similarity_matrix
from gangealing_fast.models.layers import EqualConv2d
from gangealing_fast.ops.convex_upsample import convex_upsample

FLOW_FACTOR = 8


def pick_head(found: Tensor, assignment: Tensor | None) -> Tensor:
    """Of `[N, K, ...]` the assigned head's row, `[N, ...]`; head 0 if there is no assignment."""
    if assignment is None or found.shape[1] == 1:
        return found[:, 0]
    return found[torch.arange(found.shape[0], device=found.device), assignment]


def similarity_of(outputs: Tensor, *, inverse: bool = False) -> Tensor:
    """Matrices `[..., 2, 3]` of a head's raw outputs (rot, scale, x, y) `[..., 4]`: angle pi tanh(rot), size exp(scale)."""
    rot, scale, shift_x, shift_y = outputs.unbind(-1)
    make = inverse_similarity_matrix if inverse else similarity_matrix
    return make(torch.tanh(rot) * math.pi, scale, shift_x, shift_y)


class SimilarityHead(nn.Module):
    """Features `[N, features]` and heads `[N]` (or None: head 0) to matrices `[N, 2, 3]`; the identity at the start of training."""

    def __init__(self, features: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.linear = nn.Linear(features, 4 * heads)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def separate(self) -> list[tuple[nn.Parameter, bool]]:
        """The parameters with rows for each head, and whether a head's rows lie together (else those of one output do)."""
        return [(parameter, False) for parameter in self.linear.parameters()]

    @property
    def frame_bias(self) -> nn.Parameter:
        """(rot, scale, x, y) `[4 * heads]`, output by output, of a similarity that every matrix ends with."""
        return self.linear.get_parameter("bias")

    def forward(self, x: Tensor, assignment: Tensor | None) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            outputs = pick_head(self.linear(x.float()).unflatten(1, (4, self.heads)).mT, assignment)
            return similarity_of(outputs)


class FlowHead(nn.Module):
    """Features `[N, channels, h, w]` and heads `[N]` (or None: head 0) to flows `[N, 8 h, 8 w, 2]`, zero at first."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads

        def branch(outputs: int) -> nn.Sequential:
            return nn.Sequential(
                EqualConv2d(channels, channels, 3, padding=1), nn.ReLU(), EqualConv2d(channels, outputs, 3, padding=1)
            )

        self.flow_out = branch(2 * heads)
        self.mask_out = branch(9 * FLOW_FACTOR**2 * heads)
        nn.init.zeros_(self.flow_out[2].get_parameter("weight"))

    def separate(self) -> list[tuple[nn.Parameter, bool]]:
        """As that of the similarity's head."""
        return [(parameter, True) for branch in (self.flow_out, self.mask_out) for parameter in branch[2].parameters()]

    def forward(self, x: Tensor, assignment: Tensor | None) -> Tensor:
        hidden = self.flow_out[1](self.flow_out[0](x))
        with torch.autocast(x.device.type, enabled=False):  # a flow in bfloat16 would move in coarse steps
            coarse = self.flow_out[2](hidden.float())
        coarse = pick_head(coarse.unflatten(1, (self.heads, 2)), assignment)
        mask = pick_head(self.mask_out(x).unflatten(1, (self.heads, -1)), assignment)
        return convex_upsample(coarse.permute(0, 2, 3, 1), mask.float(), FLOW_FACTOR)
