# SPDX-License-Identifier: Apache-2.0
"""What joint alignment finds out about a set of pictures.

Picture   Pixels of one picture as it was given, (x, y), 0 the centre of the first pixel, not mirrored and not padded.
Template  Pixels of the template, a square of `side` pixels, in the same terms. It belongs to one cluster.
Matrix    3x3, of homogeneous coordinates: from picture to template. That of a mirrored picture contains the mirror, so that it is
          true of the picture as it was given.
Flow      What a matrix leaves over, in pixels of the template: place p of the template shows place inv(matrix) @ (p + flow(p)) of
          the picture. A flow `[F, F, 2]` covers the template; its point (row i, column j) lies at x = (j + 1/2) side / F - 1/2,
          y = (i + 1/2) side / F - 1/2, and is bilinear between.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class Pictures(Protocol):
    """Pictures that are read one by one, so that a set of any number needs the memory of a few."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Tensor:
        """`[3, H, W]` in [-1, 1], or `[4, H, W]` whose last channel says what belongs to the picture: 1 inside, -1 outside."""


@dataclass(frozen=True)
class Registered:
    """How N pictures lie on templates.

    matrix `[N, 3, 3]`, float64. flow `[N, F, F, 2]`, float32; zero for a method without flow. mirrored `[N]`, bool. cluster `[N]`,
    int64: whose template. confidence `[N]` in [0, 1], how well what was found agrees with the template.
    """

    matrix: Tensor
    flow: Tensor
    mirrored: Tensor
    cluster: Tensor
    confidence: Tensor


@dataclass(frozen=True)
class Congealed(Registered):
    """A set that was aligned jointly.

    outlier `[N]`, bool: kept out of the template. template `[K, 3, side, side]` in [-1, 1]: the average of each cluster's members.
    """

    outlier: Tensor
    template: Tensor
