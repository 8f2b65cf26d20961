# SPDX-License-Identifier: Apache-2.0
"""From carried points to figures: shares of correct points in every way of counting, with intervals, as plain values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from gangealing_fast.data.keypoints import KeypointSet, Pairs
from gangealing_fast.metrics.keypoints import (
    Expected,
    Shares,
    bootstrap,
    correct_points,
    expected_points,
    interval,
    keypoint_box_size,
    per_image,
    per_point,
)

SizeRule = Literal["keypoints", "object", "picture"]


@dataclass(frozen=True)
class Counting:
    """How points are counted. alphas: thresholds. resamples, confidence, seed: of the intervals; none are drawn for 0 resamples."""

    alphas: tuple[float, ...]
    resamples: int = 1000
    confidence: float = 0.95
    seed: int = 0


@dataclass(frozen=True)
class Way:
    """One way of counting: the size that alpha multiplies, whether labels follow mirrors, and what counts the same."""

    of: SizeRule
    mirroring: bool
    per: Literal["point", "image"]


@dataclass(frozen=True)
class Judged:
    """shares: of each way, `[A, M]`. drawn: of each way, `[A, B]`. lines: the figures as plain values, a line for each."""

    shares: dict[Way, Shares]
    drawn: dict[Way, Tensor]
    lines: list[dict[str, Any]]


def sizes_of(data: KeypointSet) -> dict[SizeRule, Tensor]:
    """The sizes `[N]` of pictures that a threshold may be a share of."""
    found: dict[SizeRule, Tensor] = {"keypoints": keypoint_box_size(data.points, data.visible)}
    if data.boxes is not None:
        found["object"] = (data.boxes[:, 2:] - data.boxes[:, :2]).amax(1)
    found["picture"] = data.sizes.amax(1)
    return found


def expected_of(data: KeypointSet, pairs: Pairs, mirrored: Tensor | None) -> Expected:
    """Where points belong; a prescribed pair counts its own points alone."""
    expected = expected_points(pairs.pairs, data.points, data.visible, mirrored=mirrored, mirror=data.mirror)
    return expected if pairs.points is None else expected._replace(counted=expected.counted & pairs.points)


def judge(data: KeypointSet, pairs: Pairs, found: Tensor, mirrored: Tensor | None, counting: Counting) -> Judged:
    """All figures of points `[M, P, 2]` that were carried along `pairs`. mirrored `[M]` bool: see `metrics.expected_points`."""
    shares: dict[Way, Shares] = {}
    alphas = torch.tensor(counting.alphas, dtype=torch.float64)
    for mirroring in (False, True):
        expected = expected_of(data, pairs, mirrored if mirroring else None)
        for rule, size in sizes_of(data).items():
            correct = correct_points(found, expected, size[pairs.pairs[:, 1]], alphas)
            shares[Way(rule, mirroring, "point")] = per_point(correct, expected.counted)
            shares[Way(rule, mirroring, "image")] = per_image(correct, expected.counted)
    return _with_lines(shares, pairs.pairs, len(data), counting)


def judge_cycles(data: KeypointSet, cycles: Tensor, found: Tensor, counting: Counting) -> Judged:
    """Shares of points `[C, P, 2]` that came back to where they began after all pictures of their cycle `[C, K]`.

    This is k-CyPCK of ASIC (arXiv 2303.16201). The points are those that are visible in the first picture, and the sizes are the
    first picture's.
    """
    first = cycles[:, 0]
    expected = Expected(data.points[first], data.visible[first])
    alphas = torch.tensor(counting.alphas, dtype=torch.float64)
    shares = {}
    for rule, size in sizes_of(data).items():
        shares[Way(rule, False, "point")] = per_point(correct_points(found, expected, size[first], alphas), expected.counted)
    return _with_lines(shares, torch.stack([first, first], 1), len(data), counting)


def _with_lines(shares: dict[Way, Shares], pairs: Tensor, pictures: int, counting: Counting) -> Judged:
    drawn, lines = {}, []
    for way, share in shares.items():
        drawn[way] = bootstrap(share, pairs, pictures, resamples=counting.resamples, seed=counting.seed)
        lines += _lines_of(way, share.value(), drawn[way], counting)
    return Judged(shares, drawn, lines)


def _lines_of(way: Way, value: Tensor, drawn: Tensor, counting: Counting) -> list[dict[str, Any]]:
    lines = []
    low, high = interval(drawn, counting.confidence) if drawn.shape[1] else (value * torch.nan, value * torch.nan)
    for k, alpha in enumerate(counting.alphas):
        line = {"alpha": alpha, "of": way.of, "mirroring": way.mirroring, "per": way.per}
        lines.append(line | {"value": value[k].item(), "low": low[k].item(), "high": high[k].item()})
    return lines


def differences(judged: Judged, baseline: Judged, counting: Counting) -> list[dict[str, Any]]:
    """By how much a method's figures exceed a baseline's on the same pairs, with the interval of the difference."""
    lines = []
    for way in judged.shares.keys() & baseline.shares.keys():
        value = judged.shares[way].value() - baseline.shares[way].value()
        lines += _lines_of(way, value, judged.drawn[way] - baseline.drawn[way], counting)
    return sorted(lines, key=lambda line: (line["of"], line["mirroring"], line["per"], line["alpha"]))


def by_group(shares: Shares, pairs: Pairs) -> dict[str, list[float]]:
    """The figures `[A]` of each set or class of the pairs."""
    found = {}
    for number, name in enumerate(pairs.names):
        rows = pairs.group == number
        found[name] = Shares(shares.correct[:, rows], shares.counted[:, rows]).value().tolist()
    return found


def by_point(
    data: KeypointSet, pairs: Pairs, found: Tensor, mirrored: Tensor | None, of: SizeRule, alpha: float
) -> dict[str, float]:
    """The share of each key point of the first pictures that is found, with mirrored labels."""
    expected = expected_of(data, pairs, mirrored)
    size = sizes_of(data)[of][pairs.pairs[:, 1]]
    correct = correct_points(found, expected, size, torch.tensor([alpha], dtype=torch.float64))[0]
    share = correct.sum(0).double() / expected.counted.sum(0)
    return dict(zip(data.point_names, share.tolist(), strict=True))


def pick(lines: Sequence[dict[str, Any]], **wanted: object) -> dict[str, Any]:
    """The one line with these values."""
    (line,) = [line for line in lines if all(line[key] == value for key, value in wanted.items())]
    return line
