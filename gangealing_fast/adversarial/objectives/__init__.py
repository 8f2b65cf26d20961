# SPDX-License-Identifier: Apache-2.0
"""Adversarial objectives by name: `make("wgan-gp", weight=0.1)`. The formulas are in the families' files and docs/objectives.md."""

from __future__ import annotations

import inspect
from collections.abc import Callable

from gangealing_fast.adversarial.objectives import auxiliary, classes, classic, energy, least_squares, wasserstein
from gangealing_fast.adversarial.objectives.record import (
    Critic,
    Objective,
    Optimiser,
    Output,
    Reconstruction,
    Side,
    State,
    refuse_mixing,
)

OBJECTIVES: dict[str, Callable[..., Objective]] = {
    "minimax": classic.minimax,
    "nonsaturating": classic.nonsaturating,
    "hinge": classic.hinge,
    "lsgan": least_squares.lsgan,
    "lsgan-01": least_squares.lsgan_01,
    "wgan": wasserstein.wgan,
    "wgan-gp": wasserstein.wgan_gp,
    "dragan": wasserstein.dragan,
    "ebgan": energy.ebgan,
    "began": energy.began,
    "catgan": classes.catgan,
    "semi-supervised": classes.semi_supervised,
    "acgan": auxiliary.acgan,
    "infogan": auxiliary.infogan,
}


def make(name: str, **options: float) -> Objective:
    """The objective `name` with `options`, its function's arguments. Raises ValueError for an unknown name or option."""
    if name not in OBJECTIVES:
        raise ValueError(f"there is no objective {name}; there are {', '.join(OBJECTIVES)}")
    known = list(inspect.signature(OBJECTIVES[name]).parameters)
    unknown = [option for option in options if option not in known]
    if unknown:
        raise ValueError(f"the objective {name} has no option {unknown[0]}; it has {', '.join(known) or 'none'}")
    return OBJECTIVES[name](**options)


__all__ = ["OBJECTIVES", "Critic", "Objective", "Optimiser", "Output", "Reconstruction", "Side", "State", "make", "refuse_mixing"]
