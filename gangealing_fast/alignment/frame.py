# SPDX-License-Identifier: Apache-2.0
"""The template's frame is only known up to a similarity; here its scale is chosen.

Training is free to learn a small template: pictures of any size are then aligned to it equally well, but shrink. Aligning with
M B instead of M, B a scaling about the centre, aligns just as well for any B. `keep_area` picks the B for which the objects cover
in all the area that they covered before: aligned objects have one size a, so object i had a det(M_i), and N a = sum a det(M_i)
where the mean of det(M_i) is 1.

A similarity that looks at its own result sees objects of the new size there, and takes them back to the old one before B comes
again: B is in effect applied once by a network that aligns perfectly, and once for each look by one that ignores its input. The
secant method finds the bias between these two.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gangealing_fast.geometry.warping import Warping
from gangealing_fast.models.spatial_transformer import SpatialTransformer

SCALE_OUTPUT = 1  # of the similarity head's (rot, scale, x, y)
ROUNDS, CLOSE_ENOUGH = 8, 1e-4


@torch.no_grad()
def keep_area(transformer: SpatialTransformer, images: Tensor, *, warping: Warping, batch: int = 64) -> float:
    """Rescale the template's frame so that the objects in `images` `[N, 3, H, W]` keep their area; returns the factor applied.

    warping: as in use.

    M B with B = diag(b, b) has the scale exp(scale + log b), so b goes into the bias of the similarity head and nothing else
    changes. Raises ValueError for a transformer with a flow, whose second network was trained on pictures at the old scale, and if
    the warps have collapsed to a point or are not finite; the transformer then stays as it was.
    """
    if transformer.transforms != ("similarity",):
        raise ValueError(f"the scale of the frame can be chosen for a similarity alone, not for {transformer.transforms}")
    head = transformer.similarity
    assert head is not None
    bias = head.warp_head.frame_bias
    trained = bias.clone()
    applied = step = 0.0
    slope, before = 1.0, None
    for _ in range(ROUNDS):
        matrices = [transformer(chunk, warping=warping).matrix for chunk in images.split(batch)]
        linear = torch.cat([matrix for matrix in matrices if matrix is not None])[:, :, :2].double()
        area = float(torch.linalg.det(linear).mean())
        if not 0 < area < math.inf:
            bias.copy_(trained)
            raise ValueError(f"the warps have collapsed: the window that they read has {area:g} times the area of a picture")
        excess = 0.5 * math.log(area)  # of the logarithm of the scale
        if abs(excess) < CLOSE_ENOUGH:
            break
        if before is not None:
            slope = min(max((excess - before) / step, 1.0), float(warping.iters))
        before, step = excess, -excess / slope
        bias[SCALE_OUTPUT::4] += step
        applied += step
    return math.exp(applied)
