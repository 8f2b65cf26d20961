# SPDX-License-Identifier: Apache-2.0
"""Which pictures of a set are mirror images of the others, from the scores of pairs as they are and with one of them mirrored."""

from __future__ import annotations

import torch
from torch import Tensor

LEAST_EVIDENCE = 0.2
"""Mean of |plain - mirrored| / (plain + mirrored) over a set's edges below which nothing is flipped."""


def choose_mirrored(pairs: Tensor, plain: Tensor, mirrored: Tensor, count: int) -> Tensor:
    """`[N]`, bool: the smaller part of the set, if the pairs say clearly that there are two.

    Signs s maximise the sum of s_i J_ij s_j with J = (plain - mirrored) / (plain + mirrored): the leading eigenvector, then moves
    of single pictures while the sum rises.
    """
    evidence = (plain - mirrored) / (plain + mirrored + 1e-6)
    joined = torch.zeros(count, count, dtype=torch.float64)
    i, j = pairs.unbind(1)
    joined[i, j] = evidence.double()
    joined = joined + joined.T
    leading = torch.linalg.eigh(joined)[1][:, -1]
    sign = torch.where(leading < 0, -1.0, 1.0).double()
    for _ in range(20 * count):
        gain = -sign * (joined @ sign)
        best = int(gain.argmax())
        if gain[best] <= 1e-9:
            break
        sign[best] = -sign[best]
    if sign.sum() < 0:
        sign = -sign
    flipped = sign < 0
    found = float((sign[i] * evidence.double() * sign[j]).mean())
    unflipped = float(evidence.mean())
    return flipped if found > max(LEAST_EVIDENCE, unflipped) else torch.zeros(count, dtype=torch.bool)
