# SPDX-License-Identifier: Apache-2.0
"""Similarities, affine maps and homographies fitted robustly to weighted matches, many pictures at once.

Points        `[..., M, 2]`, (x, y) in frames from -1 to 1. Weights `[..., M]`; those of absent matches are 0.
Similarity    `[..., 4]`: (a, b, x, y) maps (u, v) to (a u - b v + x, b u + a v + y).
Matrix        `[..., 3, 3]` of homogeneous coordinates.
The robust weight is that of Geman and McClure: 1 / (1 + r^2 / sigma^2)^2.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Model = Literal["similarity", "affine", "homography"]
IDENTITY = (1.0, 0.0, 0.0, 0.0)
LARGEST_SCALE = 3.0
LARGEST_ANGLE = 1.4


def fit_similarity(source: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """The weighted least-squares similarity `[..., 4]` from source to target."""
    total = weight.sum(-1, keepdim=True).clamp_min(1e-6)
    from_middle, to_middle = (weight[..., None] * source).sum(-2) / total, (weight[..., None] * target).sum(-2) / total
    p, q = source - from_middle[..., None, :], target - to_middle[..., None, :]
    spread = (weight * p.square().sum(-1)).sum(-1).clamp_min(1e-6)
    a = (weight * (p * q).sum(-1)).sum(-1) / spread
    b = (weight * (p[..., 0] * q[..., 1] - p[..., 1] * q[..., 0])).sum(-1) / spread
    x = to_middle[..., 0] - a * from_middle[..., 0] + b * from_middle[..., 1]
    y = to_middle[..., 1] - b * from_middle[..., 0] - a * from_middle[..., 1]
    return torch.stack([a, b, x, y], -1)


def move(similarity: Tensor, points: Tensor) -> Tensor:
    """Points carried by similarities."""
    a, b, x, y = (similarity[..., index, None] for index in range(4))
    return torch.stack([a * points[..., 0] - b * points[..., 1] + x, b * points[..., 0] + a * points[..., 1] + y], -1)


def similarity_matrix(similarity: Tensor) -> Tensor:
    """Matrices `[..., 3, 3]` of similarities."""
    a, b, x, y = similarity.unbind(-1)
    zero = torch.zeros_like(a)
    return torch.stack([torch.stack(row, -1) for row in ((a, -b, x), (b, a, y), (zero, zero, zero + 1))], -2)


def nearest_similarity(matrix: Tensor) -> Tensor:
    """`[..., 4]`: the similarity that is nearest to the linear part of a matrix, with its shift."""
    a = (matrix[..., 0, 0] + matrix[..., 1, 1]) / 2
    b = (matrix[..., 1, 0] - matrix[..., 0, 1]) / 2
    return torch.stack([a, b, matrix[..., 0, 2], matrix[..., 1, 2]], -1)


def carry(matrix: Tensor, points: Tensor) -> Tensor:
    """Points `[..., M, 2]` carried by matrices `[..., 3, 3]`."""
    moved = points @ matrix[..., :2, :2].mT + matrix[..., None, :2, 2]
    if not bool(matrix[..., 2, :2].any()) and bool((matrix[..., 2, 2] == 1).all()):
        return moved
    depth = points @ matrix[..., 2, :2, None] + matrix[..., 2, 2, None, None]
    # Behind the horizon there is no place; what is near it goes far away.
    return moved / torch.where(depth.abs() < 1e-3, torch.full_like(depth, 1e-3), depth)


def robust(found: Tensor, target: Tensor, sigma: float) -> Tensor:
    """The weight of Geman and McClure of residuals, `[..., M]`."""
    return 1 / (1 + (found - target).square().sum(-1) / sigma**2) ** 2


def refit_similarity(
    source: Tensor, target: Tensor, weight: Tensor, sigma: float, *, rounds: int = 8, start: Tensor | None = None
) -> Tensor:
    """Reweighted fits from `start` (the identity), whose sigma falls to the one given."""
    found = source.new_tensor(IDENTITY).repeat(*source.shape[:-2], 1) if start is None else start
    for index in range(rounds):
        width = sigma * max(1.0, 3 * 0.7**index)
        found = fit_similarity(source, target, weight * robust(move(found, source), target, width))
    return found


def refit_affine(
    source: Tensor, target: Tensor, weight: Tensor, start: Tensor, sigma: float, *, pull: float, rounds: int = 6
) -> Tensor:
    """Reweighted affine fits whose linear part is pulled to that of `start` `[..., 3, 3]`; `pull` is in shares of the weight."""
    points = torch.cat([source, torch.ones_like(source[..., :1])], -1)
    anchor, found = start[..., :2, :].mT, start.clone()
    for _ in range(rounds):
        weights = weight * robust(carry(found, source), target, sigma)
        weighted = (points * weights[..., None]).mT
        held = weights.sum(-1)[..., None, None] * torch.diag(source.new_tensor([pull, pull, 0.0])) + 1e-6 * torch.eye(3)
        found[..., :2, :] = torch.linalg.solve(weighted @ points + held, weighted @ target + held @ anchor).mT
    return found


def refit_homography(
    source: Tensor, target: Tensor, weight: Tensor, start: Tensor, sigma: float, *, pull: float, rounds: int = 6
) -> Tensor:
    """Reweighted fits of homographies, pulled to `start` `[N, 3, 3]` (affine), by the algebraic error over the depth."""
    u, v = source.unbind(-1)
    one, none = torch.ones_like(u), torch.zeros_like(u)
    found = start / start[..., 2:, 2:]
    anchor = torch.cat([found[..., :2, :].flatten(-2), torch.zeros_like(found[..., 2, :2])], -1)[..., None]
    scale = torch.diag(source.new_tensor([pull, pull, 0.0, pull, pull, 0.0, 4 * pull, 4 * pull]))
    for _ in range(rounds):
        depth = (source @ found[..., 2, :2, None])[..., 0] + 1
        weights = weight * robust(carry(found, source), target, sigma) / depth.square().clamp_min(0.04)
        x, y = target.unbind(-1)
        across = torch.stack([u, v, one, none, none, none, -x * u, -x * v], -1)
        down = torch.stack([none, none, none, u, v, one, -y * u, -y * v], -1)
        normal = (across * weights[..., None]).mT @ across + (down * weights[..., None]).mT @ down
        right = (across * weights[..., None]).mT @ x[..., None] + (down * weights[..., None]).mT @ y[..., None]
        held = weights.sum(-1)[..., None, None] * scale + 1e-6 * torch.eye(8)
        solved = torch.linalg.solve(normal + held, right + held @ anchor)[..., 0]
        found = torch.cat([solved, torch.ones_like(solved[..., :1])], -1).unflatten(-1, (3, 3))
    return found


def sample_similarities(
    source: Tensor, target: Tensor, weight: Tensor, sigma: float, generator: torch.Generator, *, hypotheses: int = 256
) -> tuple[Tensor, Tensor]:
    """The best of similarities through two matches each, by robust score, refitted five times: `[E, 4]`, and the scores `[E]`.

    Scales beyond 3 and turns beyond 1.4 radians are refused; where nothing is left the identity comes with the score 0.
    """
    found, scores = [], []
    for p, q, w in zip(source.split(32), target.split(32), weight.split(32), strict=True):
        count = len(p)
        first, second = (
            torch.multinomial(w + 1e-9, hypotheses, True, generator=generator)[..., None].expand(-1, -1, 2) for _ in range(2)
        )
        near, far = p.gather(1, first), p.gather(1, second)
        ends = torch.stack([q.gather(1, first), q.gather(1, second)], 2)
        tried = fit_similarity(torch.stack([near, far], 2), ends, torch.ones(count, hypotheses, 2))
        score = (w[:, None] * robust(move(tried, p[:, None]), q[:, None], sigma)).sum(-1)
        turn = torch.atan2(tried[..., 1], tried[..., 0]).abs()
        score = score.masked_fill(_implausible(tried) | (turn > LARGEST_ANGLE) | ((near - far).norm(dim=-1) < 0.15), -1)
        score, choice = score.max(1)
        best = tried[torch.arange(count), choice]
        for _ in range(5):
            best = fit_similarity(p, q, w * robust(move(best, p), q, sigma))
        failed = (score < 0) | _implausible(best)
        best[failed] = best.new_tensor(IDENTITY)
        found.append(best)
        scores.append((w * robust(move(best, p), q, sigma)).sum(-1).masked_fill(failed, 0))
    return torch.cat(found), torch.cat(scores)


def _implausible(similarity: Tensor, largest: float = LARGEST_SCALE) -> Tensor:
    size = similarity[..., :2].norm(dim=-1)
    return (size < 1 / largest) | (size > largest) | ~size.isfinite()


def median_gauge(matrix: Tensor) -> Tensor:
    """Matrices `[N, 3, 3]` in the frame whose median transform is the identity: a mean is carried off by one runaway picture."""
    matrix = matrix / matrix[:, 2:, 2:]
    return torch.linalg.inv(matrix.quantile(0.5, dim=0)) @ matrix
