# SPDX-License-Identifier: Apache-2.0
"""Several kinds of things in a set, and pictures that belong to none, on drawn pictures whose poses are known."""

from __future__ import annotations

import pytest
import torch
from scenes import colours, posed, scene

from gangealing_fast.congealing import FeatureNetwork, congeal, kinds
from gangealing_fast.congealing.clusters import split
from gangealing_fast.runtime.errors import UserError


@pytest.fixture(scope="module")
def network() -> FeatureNetwork:
    return colours()


def two_kinds(sizes, between, stray=0):
    """Pairs and strengths of parts of these sizes, pairs between them and `stray` last pictures that hang on by one weak pair."""
    kind = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    pairs = torch.combinations(torch.arange(len(kind)))
    strength = torch.where(kind[pairs[:, 0]] == kind[pairs[:, 1]], 1.0, between)
    hanging = torch.tensor([[0, len(kind) + k] for k in range(stray)], dtype=torch.int64).reshape(-1, 2)
    return torch.cat([pairs, hanging]), torch.cat([strength, torch.full((stray,), 0.01)]), len(kind) + stray


@pytest.mark.parametrize(
    ("sizes", "between", "stray", "found"),
    [
        ([9, 7], 0.2, 0, [9, 7]),
        ([9, 7], 0.3, 0, [16]),
        ([9, 7], 0.2, 2, [11, 7]),
        ([12, 5], 0.2, 0, [17]),
        ([40, 10], 0.2, 0, [50]),
        ([12, 9, 8], 0.1, 0, [12, 9, 8]),
    ],
)
def test_kinds_that_weak_pairs_join_are_told_apart(sizes, between, stray, found):
    label = split(*two_kinds(sizes, between, stray), "auto")
    assert torch.bincount(label).tolist() == found
    assert all(len(part.unique()) == 1 for part in label[: sum(sizes)].split(sizes))


def test_a_picture_that_pairs_put_to_the_wrong_kind_comes_to_its_template(network, monkeypatch):
    pictures = torch.cat([posed(scene(0), 6)[0], posed(scene(7), 6, seed=3)[0]])
    true = torch.arange(12) // 6
    first = kinds.first_alignment

    def misled(views, rows, **options):
        start = first(views, rows, **options)
        if len(rows) < len(pictures):
            return start
        assert torch.equal(start.cluster, true)
        return start._replace(cluster=start.cluster.index_fill(0, torch.tensor([11]), 0))

    monkeypatch.setattr(kinds, "first_alignment", misled)
    found = congeal(pictures, clusters=2, features=network, flips=False, side=64)
    assert torch.equal(found.cluster, true) and not found.outlier.any()


def test_what_belongs_is_aligned_again_without_many_strangers(network, monkeypatch):
    strangers = torch.cat([posed(scene(20 + k), 1)[0] for k in range(3)])
    pictures = torch.cat([posed(scene(0), 9)[0], strangers])
    first, aligned = kinds.first_alignment, []

    def counted(views, rows, **options):
        aligned.append(rows.tolist())
        return first(views, rows, **options)

    monkeypatch.setattr(kinds, "first_alignment", counted)
    found = congeal(pictures, clusters=1, features=network, flips=False, side=64)
    assert aligned == [list(range(12)), list(range(9))]
    assert found.outlier.tolist() == [False] * 9 + [True] * 3


def test_parts_of_one_kind_that_no_pair_joins_become_one(network, monkeypatch):
    pictures, split_up = posed(scene(0), 10)[0], kinds.first_alignment
    asked = []

    def divided(views, rows, **options):
        asked.append(options["clusters"])
        if options["clusters"] == "auto":
            options["clusters"] = torch.arange(10) // 5
        return split_up(views, rows, **options)

    monkeypatch.setattr(kinds, "first_alignment", divided)
    found = congeal(pictures, features=network, flips=False, side=64)
    assert asked[0] == "auto" and asked[1].tolist() == [0] * 10 and len(found.templates) == 1
    assert not found.cluster.any() and not found.outlier.any()


def test_if_what_belongs_cannot_be_aligned_alone_the_first_alignment_stands(network, monkeypatch):
    pictures = torch.cat([posed(scene(0), 5)[0], posed(scene(20), 1)[0]])
    first = kinds.first_alignment

    def refuses(views, rows, **options):
        if len(rows) < len(pictures):
            raise UserError("nothing in common")
        return first(views, rows, **options)

    monkeypatch.setattr(kinds, "first_alignment", refuses)
    found = congeal(pictures, clusters=1, features=network, flips=False, side=64)
    assert found.outlier.tolist() == [False] * 5 + [True]


def test_an_error_of_the_second_alignment_is_not_taken_for_too_few_pairs(network, monkeypatch):
    pictures = torch.cat([posed(scene(0), 5)[0], posed(scene(20), 1)[0]])
    align = kinds.align_core

    def refuses(views, rows, *arguments, **options):
        if len(rows) < len(pictures):
            raise UserError("the picture a.png cannot be read")
        return align(views, rows, *arguments, **options)

    monkeypatch.setattr(kinds, "align_core", refuses)
    with pytest.raises(UserError, match="cannot be read"):
        congeal(pictures, clusters=1, features=network, flips=False, side=64)
