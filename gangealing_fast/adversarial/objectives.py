# SPDX-License-Identifier: Apache-2.0
"""Adversarial objectives as small records: a critic loss and a generator loss over logits `[N]`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Objective:
    """critic(real_logits, fake_logits) and generator(fake_logits), each a scalar to be minimised."""

    name: str
    critic: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor], Tensor]
    source: str


def _nonsaturating_critic(real: Tensor, fake: Tensor) -> Tensor:
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def _nonsaturating_generator(fake: Tensor) -> Tensor:
    return F.softplus(-fake).mean()


def _hinge_critic(real: Tensor, fake: Tensor) -> Tensor:
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def _hinge_generator(fake: Tensor) -> Tensor:
    return -fake.mean()


OBJECTIVES = {
    objective.name: objective
    for objective in (
        Objective("nonsaturating", _nonsaturating_critic, _nonsaturating_generator, "Goodfellow et al. 2014, section 3"),
        Objective("hinge", _hinge_critic, _hinge_generator, "Lim and Ye 2017, arXiv 1705.02894"),
    )
}
