# SPDX-License-Identifier: Apache-2.0
"""The template's frame is only known up to a similarity; here its scale is chosen.

Training is free to learn a small template: pictures of any size are then aligned to it equally well, but shrink. Aligning with
M B instead of M, B a scaling about the centre, aligns just as well for any B. `keep_area` picks the B for which the objects cover
in all the area that they covered before: aligned objects have one size a, so object i had a det(M_i), and N a = sum a det(M_i)
where the mean of det(M_i) is 1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gangealing_fast.models.spatial_transformer import SpatialTransformer

SCALE_OUTPUT = 1  # of the similarity head's (rot, scale, x, y)


@torch.no_grad()
def keep_area(transformer: SpatialTransformer, images: Tensor, *, padding_mode: str, batch: int = 64) -> float:
    """Rescale the template's frame so that the objects in `images` `[N, 3, H, W]` keep their area; returns the factor applied.

    M B with B = diag(b, b) has the scale exp(scale + log b), so b goes into the bias of the similarity head and nothing else
    changes. Raises ValueError for a transformer with a flow, whose second network was trained on pictures at the old scale.
    """
    if transformer.transforms != ("similarity",):
        raise ValueError(f"the scale of the frame can be chosen for a similarity alone, not for {transformer.transforms}")
    matrices = [transformer(chunk, padding_mode=padding_mode).matrix for chunk in images.split(batch)]
    linear = torch.cat([matrix for matrix in matrices if matrix is not None])[:, :, :2].double()
    factor = float(torch.linalg.det(linear).mean().rsqrt())
    head = transformer.similarity
    assert head is not None
    head.warp_head.linear.bias[SCALE_OUTPUT::4] += math.log(factor)
    return factor
