# SPDX-License-Identifier: Apache-2.0
"""Which pictures do not belong: those in which far less of the template is found than in the others."""

from __future__ import annotations

import torch
from torch import Tensor

FRACTION = 0.5
"""Of the median share: what lies below is doubtful."""
EARLY = 0.35
"""The same as long as pictures may not have been found yet."""


def doubtful(explained: Tensor, fraction: float = FRACTION) -> Tensor:
    """`[n]`, bool: pictures whose share of the template is below `fraction` of the median, never more than 40 % of them.

    explained: `[n]`, the share of the template's saliency that was found in each picture.
    """
    limit = fraction * explained.median()
    limit = torch.minimum(limit, explained.quantile(0.4))
    return explained < limit
