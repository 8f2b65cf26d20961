# SPDX-License-Identifier: Apache-2.0
"""The template's frame is only known up to a similarity; here its scale is chosen.

Training is free to learn a small template: pictures of any size are then aligned to it equally well, but shrink. Aligning with
M B instead of M, B a scaling about the centre, aligns just as well for any B. `keep_area` picks the B for which pictures cover,
on average, the area that they covered before.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gangealing_fast.models.spatial_transformer import SpatialTransformer

SCALE_OUTPUT = 1  # of the similarity head's (rot, scale, x, y)


@torch.no_grad()
def keep_area(transformer: SpatialTransformer, images: Tensor, *, padding_mode: str, batch: int = 64) -> float:
    """Rescale the template's frame so that `images` `[N, 3, H, W]` keep their area on average; returns the factor applied.

    M B with B = diag(b, b) has the scale exp(scale + log b), so b goes into the bias of the similarity head and nothing else
    changes. Raises ValueError for a transformer with a flow, whose second network was trained on pictures at the old scale.
    """
    if transformer.transforms != ("similarity",):
        raise ValueError(f"the scale of the frame can be chosen for a similarity alone, not for {transformer.transforms}")
    matrices = [transformer(chunk, padding_mode=padding_mode).matrix for chunk in images.split(batch)]
    linear = torch.cat([matrix for matrix in matrices if matrix is not None])[:, :, :2].double()
    # A matrix reads det(M) of the picture's area for every unit of the template's.
    factor = float((1 / torch.linalg.det(linear)).mean().sqrt())
    head = transformer.similarity
    assert head is not None
    head.warp_head.linear.bias[SCALE_OUTPUT::4] += math.log(factor)
    return factor
