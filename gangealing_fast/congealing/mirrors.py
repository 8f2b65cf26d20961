# SPDX-License-Identifier: Apache-2.0
"""Which pictures of a set are mirror images of the others, from the scores of pairs as they are and with one of them mirrored."""

from __future__ import annotations

import torch
from torch import Tensor

LEAST_EVIDENCE = 0.25
"""Mean of |plain - mirrored| / (plain + mirrored) that the signs must explain before a set counts as having mirror images.

Faces, whose two sides are alike, reach 0.21: there the signs follow the side from which they are seen. Faces that are all turned
to one side, whether half of the pictures are mirrored or none, have 0.27 to 0.43.
"""
TIMES_CHANCE = 1.4
RARE = 0.6
"""Of the median evidence: a picture needs so much of its own to be mirrored if hardly any other is, and less the more are."""
SURE = 0.5
"""Of the median evidence: pictures that have as much say how many are mirrored."""
_DRAWS = 9


def choose_mirrored(
    pairs: Tensor, plain: Tensor, mirrored: Tensor, count: int, generator: torch.Generator, *, certain: bool = False
) -> Tensor:
    """`[N]`, bool: the smaller part of the set, if the pairs `[E, 2]` say clearly that there are two.

    plain, mirrored: scores `[E]` of the pairs as they are, and with one of their pictures mirrored.
    certain: there are mirror images, so no clear sign is asked for. Otherwise what the signs explain must be 0.25 at least, and 1.4
    times what they explain of the same evidence with signs that were drawn.
    """
    evidence = ((plain - mirrored) / (plain + mirrored + 1e-6)).double()
    sign, found = _signs(pairs, evidence, count)
    least = float(evidence.mean())
    if not certain:
        drawn = [torch.rand(len(evidence), generator=generator) < 0.5 for _ in range(_DRAWS)]
        chance = [_signs(pairs, torch.where(turned, -evidence, evidence), count)[1] for turned in drawn]
        least = max(least, LEAST_EVIDENCE, TIMES_CHANCE * sum(chance) / _DRAWS)
    return _without_doubtful(pairs, evidence, sign) if found > least else torch.zeros(count, dtype=torch.bool)


def _without_doubtful(pairs: Tensor, evidence: Tensor, sign: Tensor) -> Tensor:
    """`[N]`, bool: which of the signs -1 are believed: where few are, one of little evidence is rather none."""
    i, j = pairs.unbind(1)
    agrees = sign[i] * evidence * sign[j]
    ends = torch.cat([i, j])
    total, number = torch.bincount(ends, agrees.repeat(2), len(sign)), torch.bincount(ends, minlength=len(sign))
    own = total / number.clamp_min(1)
    usual = own.median()
    share = (sign[own >= SURE * usual] < 0).double().mean()
    return (sign < 0) & (own > RARE * usual * (1 - 2 * share))


def _signs(pairs: Tensor, evidence: Tensor, count: int) -> tuple[Tensor, float]:
    """Signs `[N]`, most of them 1, that make the mean of s_i evidence_ij s_j large, and this mean.

    The leading eigenvector of the evidence, then moves of single pictures while the mean rises.
    """
    i, j = pairs.unbind(1)
    joined = torch.zeros(count, count, dtype=torch.float64)
    joined[i, j] = evidence
    joined = joined + joined.T
    sign = torch.where(torch.linalg.eigh(joined)[1][:, -1] < 0, -1.0, 1.0).double()
    for _ in range(20 * count):
        gain = -sign * (joined @ sign)
        best = int(gain.argmax())
        if gain[best] <= 1e-9:
            break
        sign[best] = -sign[best]
    if sign.sum() < 0:
        sign = -sign
    return sign, float((sign[i] * evidence * sign[j]).mean())
