# SPDX-License-Identifier: Apache-2.0
"""Wasserstein GAN by clipping and by a gradient penalty, and DRAGAN. f(x) is the critic's score, unbounded."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gangealing_fast.adversarial.objectives.classic import cross_entropy_critic, nonsaturating_generator
from gangealing_fast.adversarial.objectives.penalties import gradient_penalty, lines_between, near
from gangealing_fast.adversarial.objectives.record import Critic, Objective, Optimiser, Output, Side, State, mean_of, whole_number

WARM_UP, WARM_UP_STEPS = 25, 100
INITIAL_DEVIATION = 0.02


def wasserstein_estimate(real: Output, fake: Output) -> Tensor:
    """E f(x) - E f(G(z)), Arjovsky et al. 2017 (arXiv 1701.07875), eq. 2-3: for the best 1-Lipschitz f the distance W(P_r, P_g)."""
    return mean_of(real, lambda f: f) - mean_of(fake, lambda f: f)


@torch.no_grad()
def clip_weights(critic: nn.Module, limit: float) -> None:
    """Clip every weight to [-limit, limit], algorithm 1 there, line 7.

    The paper's networks start with weights of deviation 0.02; layers with an equalised learning rate store weights of deviation 1
    beside a run-time factor `scale`, so theirs are clipped to ±limit / 0.02.
    """
    for module in critic.modules():
        equalised = isinstance(getattr(module, "scale", None), float)
        for name, weight in module.named_parameters(recurse=False):
            bound = limit / INITIAL_DEVIATION if equalised and name == "weight" else limit
            weight.clamp_(-bound, bound)


def _score_statistics(real: Side, fake: Side, state: State) -> dict[str, float]:
    return {"wasserstein": wasserstein_estimate(real.output, fake.output).item()}


def _critic(real: Side, fake: Side, state: State) -> Tensor:
    return -wasserstein_estimate(real.output, fake.output)


def _generator(fake: Side, state: State) -> Tensor:
    return -mean_of(fake.output, lambda f: f)


def wgan(clip: float = 0.01, critic_steps: int = 5) -> Objective:
    """Algorithm 1 of Arjovsky et al. 2017: weights in ±clip, RMSProp, `critic_steps` critic updates for one of the generator.

    For the first 25 generator updates it is 100: the estimate means little before the critic is near its best.
    """

    usual = whole_number("critic_steps", critic_steps)

    def schedule(step: int) -> int:
        return WARM_UP_STEPS if step < WARM_UP else usual

    return Objective(
        "wgan",
        "Arjovsky et al. 2017, algorithm 1",
        critic=_critic,
        generator=_generator,
        post_step=lambda critic: clip_weights(critic, clip),
        statistics=_score_statistics,
        critic_steps=schedule,
        output="score",
        boundary=None,
        r1=0.0,
        optimiser=Optimiser("rmsprop", 5e-5, 5e-5, (0.0, 0.99)),
    )


def wgan_gp(weight: float = 10.0, critic_steps: int = 5) -> Objective:
    """Gulrajani et al. 2017 (arXiv 1704.00028), eq. 3: + weight · E (|∇f(x̂)| - 1)², x̂ on lines between real and generated samples.

    Two-sided; one line and one uniform position for each pair of samples; the norm is over all axes but the batch's.
    """

    usual = whole_number("critic_steps", critic_steps)

    def regulariser(critic: Critic, real: Side, fake: Side) -> Tensor:
        return weight * gradient_penalty(critic, lines_between(real.samples, fake.samples))

    return Objective(
        "wgan-gp",
        "Gulrajani et al. 2017, eq. 3",
        critic=_critic,
        generator=_generator,
        regulariser=regulariser,
        statistics=_score_statistics,
        critic_steps=lambda step: usual,
        output="score",
        boundary=None,
        alone=True,
        r1=0.0,
        optimiser=Optimiser("adam", 1e-4, 1e-4, (0.0, 0.9)),
    )


def dragan(weight: float = 10.0, deviation: float = 0.1, target: float = 1.0) -> Objective:
    """Kodali et al. 2017 (arXiv 1705.07215), eq. 1: the non-saturating game, + weight · E (|∇D(x + δ)| - target)².

    δ ~ N(0, deviation² I) for each sample and element: the critic is held back near the data only.
    """

    def regulariser(critic: Critic, real: Side, fake: Side) -> Tensor:
        return weight * gradient_penalty(critic, near(real.samples, deviation), target)

    return Objective(
        "dragan",
        "Kodali et al. 2017, eq. 1",
        critic=lambda real, fake, state: cross_entropy_critic(real.output, fake.output),
        generator=lambda fake, state: nonsaturating_generator(fake.output),
        regulariser=regulariser,
        alone=True,
        r1=0.0,
        optimiser=Optimiser("adam", 1e-4, 1e-4, (0.5, 0.9)),
    )
