# SPDX-License-Identifier: Apache-2.0
"""Which pictures do not belong: those in which far less of the template is found than in the others."""

from __future__ import annotations

import torch
from torch import Tensor

FRACTION = 0.35
"""Of the median share: what lies below is doubtful."""


def doubtful(explained: Tensor) -> Tensor:
    """`[n]`, bool: pictures whose share of the template is below 0.35 of the median, never more than 40 % of them.

    explained: `[n]`, the share of the template's saliency that was found in each picture.
    """
    limit = FRACTION * explained.median()
    limit = torch.minimum(limit, explained.quantile(0.4))
    return explained < limit
