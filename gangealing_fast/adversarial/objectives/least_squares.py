# SPDX-License-Identifier: Apache-2.0
"""Least-squares GAN, Mao et al. 2017 (arXiv 1611.04076). D(x) is the critic's score, without a sigmoid."""

from __future__ import annotations

from torch import Tensor

from gangealing_fast.adversarial.objectives.record import Objective, Output, mean_of


def least_squares_critic(real: Output, fake: Output, a: float, b: float) -> Tensor:
    """1/2 E (D(x) - b)² + 1/2 E (D(G(z)) - a)², eq. 2 there; scores `[N, ...]` or a list, one per scale."""
    return 0.5 * mean_of(real, lambda d: (d - b).square()) + 0.5 * mean_of(fake, lambda d: (d - a).square())


def least_squares_generator(fake: Output, c: float) -> Tensor:
    """1/2 E (D(G(z)) - c)², eq. 2 there."""
    return 0.5 * mean_of(fake, lambda d: (d - c).square())


def _lsgan(name: str, source: str, a: float, b: float, c: float) -> Objective:
    return Objective(
        name,
        source,
        critic=lambda real, fake, state: least_squares_critic(real.output, fake.output, a, b),
        generator=lambda fake, state: least_squares_generator(fake.output, c),
        output="score",
        boundary=(a + b) / 2,
    )


def lsgan(a: float = -1.0, b: float = 1.0, c: float = 0.0) -> Objective:
    """Labels a for generated, b for real, c what the generator wants; b - c = 1 and b - a = 2 give Pearson's chi² (eq. 7-8)."""
    return _lsgan("lsgan", "Mao et al. 2017, eq. 2 and 8", a, b, c)


def lsgan_01(a: float = 0.0, b: float = 1.0, c: float = 1.0) -> Objective:
    """The 0-1 coding of eq. 9: the generator wants its samples called real.

    With networks that take labels (a linear map of the label joins latent and features: `models.dcgan`) it is the conditional
    variant of section 3.3 there, 1/2 E (D(x | Phi(y)) - 1)² + 1/2 E D(G(z | Phi(y)))² (eq. 10): labels are the networks' matter.
    """
    return _lsgan("lsgan-01", "Mao et al. 2017, eq. 9 and, with labels, 10", a, b, c)
