# SPDX-License-Identifier: Apache-2.0
"""Which pairs of pictures a figure is made of: the protocols in the literature, and all pairs of any set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gangealing_fast.data.keypoints.record import KeypointSet
from gangealing_fast.runtime.errors import UserError

Protocol = Literal["auto", "given", "random", "subsets", "classes", "all"]
MOST = 10_000
"""Pairs that "auto" takes as they are; of more, "random" ones."""
LARGEST = 20_000_000
"""Points of all pairs together that are held in memory at most."""


@dataclass(frozen=True)
class Pairs:
    """protocol: which it is. pairs `[M, 2]`: first and second picture. group `[M]`: the set or class of each pair, by number.

    names: the sets' or classes' names, one of all pairs together if there is but one. points `[M, P]` bool: what is counted of each
    pair, or None for all points that are visible in both pictures.
    """

    protocol: str
    pairs: Tensor
    group: Tensor
    names: tuple[str, ...]
    points: Tensor | None = None


def choose_pairs(
    data: KeypointSet, protocol: Protocol = "auto", *, pairs: int = 10_000, subsets: int = 14, subset_size: int = 30,
    classes: int = 3, seed: int = 0,
) -> Pairs:  # fmt: skip
    """The pairs of a protocol.

    given: those that the data set prescribes (SPair-71k). random: `pairs` pairs of different pictures, drawn with replacement
    between them, each of them both ways (CUB in arXiv 2004.00614 and arXiv 2112.05143). subsets: all ordered pairs within each of
    `subsets` sets of `subset_size` pictures, each set of one class if there are any (arXiv 2302.03956). classes: all ordered pairs
    within each of the first `classes` classes (arXiv 2303.16201). all: all ordered pairs. auto: given if there are any, all if
    these are at most 10 000, else random. Raises UserError if the data set has too few pictures or no classes, and for more pairs
    than fit into memory.
    """
    count = len(data)
    if protocol == "auto":
        protocol = "given" if data.pairs is not None else "all" if count * (count - 1) <= MOST else "random"
    generator = torch.Generator().manual_seed(seed)
    if protocol == "given":
        if data.pairs is None or not len(data.pairs):
            raise UserError("these key points come without prescribed pairs; choose another --protocol, such as all or random")
        names, group = _groups_of(data, data.pairs)
        return Pairs(protocol, data.pairs, group, names, data.pair_points)
    if protocol == "random":
        _check(2 * pairs, data)
        drawn = _random_pairs(count, pairs, generator)
        both = torch.cat([drawn, drawn.flip(1)])
        return Pairs(protocol, both, torch.zeros(len(both), dtype=torch.int64), ("all",))
    if protocol == "all":
        _check(count * (count - 1), data)
        found = ordered_pairs(torch.arange(count))
        names, group = _groups_of(data, found) if data.groups and _within(data, found).all() else (("all",), found[:, 0] * 0)
        return Pairs(protocol, found, group, names)
    sets = _subsets(data, subsets, subset_size, generator) if protocol == "subsets" else _classes(data, classes)
    _check(sum(len(rows) * (len(rows) - 1) for _, rows in sets), data)
    within = [ordered_pairs(rows) for _, rows in sets]
    group = torch.cat([torch.full((len(some),), number) for number, some in enumerate(within)])
    return Pairs(protocol, torch.cat(within), group, tuple(name for name, _ in sets))


def ordered_pairs(rows: Tensor) -> Tensor:
    """All ordered pairs `[K (K - 1), 2]` of different ones of K pictures, first by first."""
    first, second = rows.repeat_interleave(len(rows)), rows.repeat(len(rows))
    return torch.stack([first, second], 1)[first != second]


def draw_cycles(count: int, length: int, cycles: int, seed: int = 0) -> Tensor:
    """`[cycles, length]`: sets of different pictures among `count`, each to be gone through in a circle.

    Raises UserError if there are fewer pictures than a cycle has.
    """
    if length > count:
        raise UserError(f"a cycle of {length} pictures needs as many, but there are {count}; leave {length} out of --cycles")
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(count, generator=generator)[:length] for _ in range(cycles)])


def _check(pairs: int, data: KeypointSet) -> None:
    if pairs * data.points.shape[1] > LARGEST:
        raise UserError(
            f"{pairs:,} pairs with {data.points.shape[1]} points each are more than is held in memory; "
            "choose --protocol random, fewer --pairs, smaller sets or classes, or --limit"
        )


def _random_pairs(count: int, pairs: int, generator: torch.Generator) -> Tensor:
    first = torch.randint(count, (pairs,), generator=generator)
    second = torch.randint(count - 1, (pairs,), generator=generator)
    return torch.stack([first, second + (second >= first)], 1)


def _within(data: KeypointSet, pairs: Tensor) -> Tensor:
    number = {name: k for k, name in enumerate(dict.fromkeys(data.groups))}
    labels = torch.tensor([number[name] for name in data.groups])
    return labels[pairs[:, 0]] == labels[pairs[:, 1]]


def _groups_of(data: KeypointSet, pairs: Tensor) -> tuple[tuple[str, ...], Tensor]:
    """The class of each pair's second picture."""
    if not data.groups:
        return ("all",), torch.zeros(len(pairs), dtype=torch.int64)
    names = tuple(sorted(set(data.groups)))
    labels = torch.tensor([names.index(name) for name in data.groups])
    return names, labels[pairs[:, 1]]


def _members(data: KeypointSet) -> list[tuple[str, Tensor]]:
    """The classes in the order of their names, with the pictures of each; one class of all if there are none."""
    if not data.groups:
        return [("all", torch.arange(len(data)))]
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(data.groups):
        rows.setdefault(name, []).append(row)
    return [(name, torch.tensor(rows[name])) for name in sorted(rows)]


def _subsets(data: KeypointSet, subsets: int, size: int, generator: torch.Generator) -> list[tuple[str, Tensor]]:
    members = [(name, rows) for name, rows in _members(data) if len(rows) >= min(size, 2)]
    if data.groups:
        order = torch.randperm(len(members), generator=generator).tolist()
        chosen = [members[k] for k in order[:subsets]]
    else:
        chosen = [(f"set {number + 1}", members[0][1]) for number in range(subsets)] if members else []
    if not chosen or min(len(rows) for _, rows in chosen) < 2:
        raise UserError("no class has two pictures with key points; choose another --protocol, such as all or random")
    return [(name, rows[torch.randperm(len(rows), generator=generator)[:size]].sort().values) for name, rows in chosen]


def _classes(data: KeypointSet, classes: int) -> list[tuple[str, Tensor]]:
    if not data.groups:
        raise UserError("these key points come without classes; choose another --protocol, such as subsets, all or random")
    chosen = [(name, rows) for name, rows in _members(data)[:classes] if len(rows) > 1]
    if not chosen:
        raise UserError(f"none of the first {classes} classes has two pictures with key points; raise --classes")
    return chosen
