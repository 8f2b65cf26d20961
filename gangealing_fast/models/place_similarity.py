# SPDX-License-Identifier: Apache-2.0
"""A similarity transformer that reads, at every place of a picture, which place of the template lies there, and fits a similarity.

Every place p of the features has a position q_p in the picture, and layers tell of what is seen there where it belongs in the
template, y_p, and how far that can be relied on, l_p. With weights w = softmax(l), means q̄ and ȳ, and the vectors from them as
complex numbers, the matrix is that of the similarity q = a y + b with

    a = |a| e^iθ,  |a|² = Σ w |q - q̄|² / Σ w |y - ȳ|²,  θ = arg Σ w (q - q̄) conj(y - ȳ),  b = q̄ - a ȳ,

which treats both sides alike: a fit of one to the other would shrink with the noise of the other (cf. Horn 1987, "Closed-form
solution of absolute orientation using unit quaternions", section 2D). A place says the same wherever in a picture it is seen, so
that a few hundred pictures teach more than they teach layers that look at a whole picture at once.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gangealing_fast.geometry.warps import compose, identity_grid
from gangealing_fast.models.efficientnet import EfficientNetPerceptual
from gangealing_fast.models.layers import normalised
from gangealing_fast.models.warp_heads import pick_head, similarity_of

STAGES, STRIDE = (2, 4), 8
FINE, COARSE = 40, 112
SMALLEST = 128
"""Smaller pictures are enlarged to that side, so that there are 16x16 places at least."""
CHANNELS, LAYERS = 128, 3
STEEP = 10.0
"""By how much positions are enlarged as an input: a layer that has to take them away from its output finds that soon."""
LEAST = 1e-6
"""Added to both sums of squares, so that places that all say the same make a finite matrix."""


class Places(NamedTuple):
    """What was read at n x n places of N pictures, normalised coordinates.

    at `[n, n, 2]`: where in a picture they are. template `[N, n, n, 2]`: where in the template that belongs. reliance `[N, n, n]`:
    logarithms of weights.
    """

    at: Tensor
    template: Tensor
    reliance: Tensor


def positions(side: int, device: torch.device | None = None) -> Tensor:
    """`[side, side, 2]`: the middles of what features of `STRIDE` pixels see. With TensorFlow's padding, cell k of a picture of
    even sides lies at pixel STRIDE (k + 1) - 1, nearly half a cell beyond the middle of the cell."""
    return identity_grid(side, side, device=device) + (STRIDE - 1) / (STRIDE * side)


class PlaceHead(nn.Module):
    """Features `[N, channels, n, n]` and heads `[N]` (or None: head 0) to matrices `[N, 2, 3]`; the identity at the start of
    training. frame_bias: (rot, scale, x, y) `[4 * heads]`, output by output, of a similarity that every matrix ends with."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.read = nn.Conv2d(channels + 2, 3 * heads, 1)
        self.frame_bias = nn.Parameter(torch.zeros(4 * heads))
        nn.init.zeros_(self.read.weight)
        nn.init.zeros_(self.read.get_parameter("bias"))

    def separate(self) -> list[tuple[nn.Parameter, bool]]:
        """The parameters with rows for each head, and whether a head's rows lie together (else those of one output do)."""
        return [(parameter, False) for parameter in self.parameters()]

    def places(self, x: Tensor, assignment: Tensor | None = None) -> Places:
        """What is read at every place."""
        with torch.autocast(x.device.type, enabled=False):
            at = positions(x.shape[2], x.device)
            seen = (STEEP * at).permute(2, 0, 1).expand(x.shape[0], -1, -1, -1)
            read = self.read(torch.cat([x.float(), seen], 1)).unflatten(1, (3, self.heads)).transpose(1, 2)
            found = pick_head(read, assignment).permute(0, 2, 3, 1)
            return Places(at, at + found[..., :2], found[..., 2])

    def _frame_outputs(self, count: int, assignment: Tensor | None) -> Tensor:
        return pick_head(self.frame_bias.unflatten(0, (4, self.heads)).mT.expand(count, -1, -1), assignment)

    def frame(self, count: int, assignment: Tensor | None) -> Tensor:
        """`[count, 2, 3]`: the similarity that every matrix ends with, from the template to where places say that they belong."""
        return similarity_of(self._frame_outputs(count, assignment))

    def inverse_frame(self, count: int, assignment: Tensor | None) -> Tensor:
        """`[count, 2, 3]`: from there to the template."""
        return similarity_of(self._frame_outputs(count, assignment), inverse=True)

    def forward(self, x: Tensor, assignment: Tensor | None) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return compose(fitted(self.places(x, assignment)), self.frame(x.shape[0], assignment))


def fitted(places: Places) -> Tensor:
    """`[N, 2, 3]`: the similarity that carries the template to where its places were seen."""
    weight = torch.softmax(places.reliance.flatten(1), 1)[..., None]
    seen, said = places.at.flatten(0, 1)[None], places.template.flatten(1, 2)
    middle, centre = (weight * seen).sum(1), (weight * said).sum(1)
    seen, said = seen - middle[:, None], said - centre[:, None]
    turned = torch.stack([-said[..., 1], said[..., 0]], -1)
    along, across = ((weight * seen * other).sum((1, 2)) for other in (said, turned))
    spread, wanted = ((weight * part.square()).sum((1, 2)) + LEAST for part in (seen, said))
    size = (spread / wanted).sqrt() * torch.rsqrt(along.square() + across.square() + LEAST**2)
    real, imaginary = along * size, across * size
    x = middle[:, 0] - real * centre[:, 0] + imaginary * centre[:, 1]
    y = middle[:, 1] - imaginary * centre[:, 0] - real * centre[:, 1]
    return torch.stack([torch.stack([real, -imaginary, x], 1), torch.stack([imaginary, real, y], 1)], 1)


class PlaceSimilarityTransformer(nn.Module):
    """Pictures `[N, 3, size, size]` to similarity matrices `[N, 2, 3]`; the identity at the start of training.

    Features of EfficientNet-Lite0 at 1/8 and 1/16 of the size, of unit root mean square over channels at every place; convolutions
    learn what to read of them. The frozen weights are part of the state dict.
    """

    def __init__(self, heads: int = 1) -> None:
        super().__init__()
        self.look = EfficientNetPerceptual(STAGES, min_size=SMALLEST, fused=True)
        self.fine = nn.Conv2d(FINE, CHANNELS, 3, padding=1)
        self.coarse = nn.Conv2d(COARSE, CHANNELS, 1)
        self.layers = nn.ModuleList(nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1) for _ in range(LAYERS))
        self.warp_head = PlaceHead(CHANNELS, heads)

    def features(self, x: Tensor) -> Tensor:
        fine, coarse = (normalised(found.float()) for found in self.look.features(x))
        enlarged = F.interpolate(self.coarse(coarse), size=fine.shape[2:], mode="bilinear", align_corners=False)
        found = torch.relu(self.fine(fine) + enlarged)
        for layer in self.layers:
            found = found + torch.relu(layer(found))
        return found

    def forward(self, x: Tensor, assignment: Tensor | None = None) -> Tensor:
        return self.warp_head(self.features(x), assignment)
