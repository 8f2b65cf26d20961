# SPDX-License-Identifier: Apache-2.0
"""Mutual nearest neighbours as joint alignment asks for them: 32² places of eight pairs of pictures."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.case import FORWARD, Case, Variant, compiled
from gangealing_fast.ops.mutual_nearest import mutual_nearest, mutual_nearest_reference


def _torch(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Pair by pair, in parts of the table that stay in the cache; exact ties are left open."""
    places, likenesses = [], []
    for a, b in zip(first, second, strict=True):
        back, found = torch.full((len(b),), -torch.inf, device=a.device), []
        for rows in a.split(256):
            table = rows @ b.T
            found.append(table.max(1))
            torch.maximum(back, table.amax(0), out=back)
        best, there = (torch.cat(parts) for parts in zip(*found, strict=True))
        places.append(torch.where(best == back[there], there, -1))
        likenesses.append(best)
    return torch.stack(places), torch.stack(likenesses)


def cases() -> list[Case]:
    result = []
    for pairs, count, depth in ((8, 1024, 104), (1, 4096, 128), (64, 256, 64)):

        def inputs(device: torch.device, pairs: int = pairs, count: int = count, depth: int = depth) -> tuple[Tensor, ...]:
            first = torch.randn(pairs, count, depth)
            second = first.roll(1, 1) + torch.randn(pairs, count, depth)
            return F.normalize(first, dim=-1).to(device), F.normalize(second, dim=-1).to(device)

        result.append(
            Case(
                operator="mutual_nearest",
                name=f"{pairs} x {count} with {count} of {depth}",
                inputs=inputs,
                variants=(
                    Variant("ours", mutual_nearest),
                    Variant("reference", mutual_nearest_reference),
                    Variant("torch", _torch, note="a part of the table at a time: product, max, amax"),
                    *((compiled(mutual_nearest_reference),) if pairs == 8 else ()),
                ),
                passes=(FORWARD,),
                moved={FORWARD: pairs * count * (8.0 * depth + 12.0)},
                operations={FORWARD: 2.0 * pairs * count**2 * depth},
                targets={"torch": 1.5},
                tolerance=1e-2,  # rounding may decide between two neighbours otherwise
            )
        )
    return result
