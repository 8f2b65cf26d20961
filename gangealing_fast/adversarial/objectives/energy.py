# SPDX-License-Identifier: Apache-2.0
"""Autoencoders as critics: EBGAN and BEGAN. What a critic reconstructs badly is called generated."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from gangealing_fast.adversarial.objectives.record import Objective, Optimiser, Reconstruction, Side, State
from gangealing_fast.ops._common import compute_dtype


def _reconstruction(side: Side) -> Reconstruction:
    if not isinstance(side.output, Reconstruction):
        raise TypeError("this objective needs an autoencoder as its critic")
    return side.output


def energy(side: Side, power: float = 2.0) -> Tensor:
    """`[N]`: the mean over a sample's elements of |sample - reconstruction|^power, in float32 at least."""
    found = _reconstruction(side).samples
    difference = side.samples.to(compute_dtype(found.dtype)) - found
    return difference.abs().pow(power).flatten(1).mean(1)


def pulling_away(code: Tensor) -> Tensor:
    """Mean over ordered pairs i ≠ j of the squared cosine of codes `[N, C]`, Zhao et al. 2017 (arXiv 1609.03126), eq. 4.

    0 where all codes are orthogonal, 1 where all are parallel; 0 for fewer than two samples.
    """
    n = code.shape[0]
    if n < 2:
        return code.sum() * 0
    direction = F.normalize(code.flatten(1).to(compute_dtype(code.dtype)), dim=1)
    cosine = direction @ direction.T
    return (cosine.square().sum() - cosine.diagonal().square().sum()) / (n * (n - 1))


def ebgan(margin: float = 1.0, pulling: float = 0.1) -> Objective:
    """Zhao et al. 2017, eq. 1-2 with the energy of eq. 3: E D(x) + E max(0, margin - D(G(z))) and E D(G(z)) + pulling · eq. 4.

    D is the mean squared error of the reconstruction (per element, so that the margin does not depend on the pictures' size;
    the paper takes the norm of the difference).
    """

    def critic(real: Side, fake: Side, state: State) -> Tensor:
        return energy(real).mean() + F.relu(margin - energy(fake)).mean()

    def generator(fake: Side, state: State) -> Tensor:
        loss = energy(fake).mean()
        return loss + pulling * pulling_away(_reconstruction(fake).code) if pulling else loss

    def statistics(real: Side, fake: Side, state: State) -> dict[str, float]:
        return {
            "real_energy": energy(real).mean().item(),
            "fake_energy": energy(fake).mean().item(),
            "pulling_away": pulling_away(_reconstruction(fake).code).item(),
        }

    return Objective(
        "ebgan",
        "Zhao et al. 2017, eq. 1-4",
        critic=critic,
        generator=generator,
        statistics=statistics,
        output="autoencoder",
        boundary=None,
        r1=0.0,
        optimiser=Optimiser("adam", 1e-3, 1e-3, (0.5, 0.999)),
    )


def began(gamma: float = 0.5, rate: float = 0.001) -> Objective:
    """Berthelot et al. 2017 (arXiv 1703.10717), section 3.4: L(x) - k L(G(z)) for the critic, L(G(z)) for the generator.

    L is the mean absolute error of the reconstruction. After each step k moves by rate · (gamma L(x) - L(G(z))), within [0, 1],
    so that E L(G(z)) / E L(x) comes to gamma (eq. 4-5). The convergence measure (section 3.4.1) is L(x) + |gamma L(x) - L(G(z))|.
    """

    def balance(real: Side, fake: Side) -> tuple[float, float]:
        good = energy(real, 1).mean().item()
        return good, gamma * good - energy(fake, 1).mean().item()

    def update(state: State, real: Side, fake: Side) -> State:
        return {"k": min(1.0, max(0.0, state["k"] + rate * balance(real, fake)[1]))}

    def statistics(real: Side, fake: Side, state: State) -> dict[str, float]:
        good, gap = balance(real, fake)
        return {"real_energy": good, "fake_energy": gamma * good - gap, "convergence": good + abs(gap), "k": state["k"]}

    return Objective(
        "began",
        "Berthelot et al. 2017, section 3.4",
        critic=lambda real, fake, state: energy(real, 1).mean() - state["k"] * energy(fake, 1).mean(),
        generator=lambda fake, state: energy(fake, 1).mean(),
        state={"k": 0.0},
        update=update,
        statistics=statistics,
        output="autoencoder",
        boundary=None,
        r1=0.0,
        optimiser=Optimiser("adam", 1e-4, 1e-4, (0.5, 0.999)),
    )
