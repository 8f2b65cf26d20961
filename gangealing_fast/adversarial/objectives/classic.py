# SPDX-License-Identifier: Apache-2.0
"""Objectives on logits: minimax, non-saturating, hinge. D(x) below is the critic's logit, sigma the logistic function."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from gangealing_fast.adversarial.objectives.record import Objective, Optimiser, Output, Side, State, mean_of


def cross_entropy_critic(real: Output, fake: Output) -> Tensor:
    """-E log sigma(D(x)) - E log(1 - sigma(D(G(z)))), Goodfellow et al. 2014 (arXiv 1406.2661), eq. 1, negated.

    real, fake: logits `[N, ...]`, or a list of them, one per scale. The softplus form is finite for every logit.
    """
    return mean_of(real, lambda d: F.softplus(-d)) + mean_of(fake, F.softplus)


def minimax_generator(fake: Output) -> Tensor:
    """E log(1 - sigma(D(G(z)))), eq. 1 there: its gradient vanishes where the critic is sure. Logits as above."""
    return -mean_of(fake, F.softplus)


def nonsaturating_generator(fake: Output) -> Tensor:
    """-E log sigma(D(G(z))), section 3 there. Logits as above."""
    return mean_of(fake, lambda d: F.softplus(-d))


def hinge_critic(real: Output, fake: Output) -> Tensor:
    """E max(0, 1 - D(x)) + E max(0, 1 + D(G(z))), Lim and Ye 2017 (arXiv 1705.02894), eq. 6. Scores `[N, ...]`, or a list."""
    return mean_of(real, lambda d: F.relu(1 - d)) + mean_of(fake, lambda d: F.relu(1 + d))


def hinge_generator(fake: Output) -> Tensor:
    """-E D(G(z)), eq. 7 there."""
    return -mean_of(fake, lambda d: d)


def _critic(real: Side, fake: Side, state: State) -> Tensor:
    return cross_entropy_critic(real.output, fake.output)


def minimax() -> Objective:
    """The original game: both networks play for the value V(D, G) of eq. 1."""
    return Objective(
        "minimax", "Goodfellow et al. 2014, eq. 1", critic=_critic, generator=lambda fake, state: minimax_generator(fake.output)
    )


def nonsaturating() -> Objective:
    """The same critic; the generator maximises log D(G(z)) instead, whose gradient is strong where it is losing."""
    return Objective(
        "nonsaturating",
        "Goodfellow et al. 2014, section 3",
        critic=_critic,
        generator=lambda fake, state: nonsaturating_generator(fake.output),
    )


def hinge() -> Objective:
    """Margins instead of probabilities."""
    return Objective(
        "hinge",
        "Lim and Ye 2017, eq. 6-7",
        critic=lambda real, fake, state: hinge_critic(real.output, fake.output),
        generator=lambda fake, state: hinge_generator(fake.output),
        output="score",
        optimiser=Optimiser(betas=(0.0, 0.9)),
    )
