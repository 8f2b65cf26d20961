# SPDX-License-Identifier: Apache-2.0
"""What an objective is: a record of pure functions on tensors, the same for critics of pictures, latents or several scales."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from gangealing_fast.adversarial.codes import Codes
from gangealing_fast.models.dcgan import Described, Reconstruction
from gangealing_fast.ops._common import compute_dtype

# Numbers that an objective carries from step to step (BEGAN's k); part of every checkpoint.
State: TypeAlias = Mapping[str, float]


# [N], [N, ...] (one value per patch) or [N, K] (classes), alone or with features; a list of those, one per scale; or an
# autoencoder's reconstruction.
Output: TypeAlias = "Tensor | Sequence[Tensor] | Described | Reconstruction"
Critic: TypeAlias = Callable[[Tensor], Output]


@dataclass(frozen=True)
class Side:
    """One side of a step, real or generated.

    samples: what the critic saw, `[N, ...]`. output: what it said. labels: the classes `[N]` of real samples, -1 where unknown; the
    codes `[N, C]` or classes `[N]` that generated ones were made from; None where there are none.
    """

    samples: Tensor
    output: Output
    labels: Tensor | None = None

    def detached(self) -> Side:
        """The same values without their graph."""
        output = self.output
        if isinstance(output, Reconstruction | Described):
            output = type(output)(*(part.detach() for part in output))
        else:
            output = output.detach() if isinstance(output, Tensor) else [scale.detach() for scale in output]
        return Side(self.samples.detach(), output, self.labels)


@dataclass(frozen=True)
class Optimiser:
    """What the paper trains plain networks with. betas: Adam's; for RMSProp the second one is its smoothing constant."""

    kind: Literal["adam", "rmsprop"] = "adam"
    generator_learning_rate: float = 2e-4
    critic_learning_rate: float = 2e-4
    betas: tuple[float, float] = (0.5, 0.999)


def scales(output: Output) -> Sequence[Tensor]:
    """The critic's outputs, one per scale, each `[N, ...]`. Raises TypeError for an autoencoder's."""
    if isinstance(output, Reconstruction):
        raise TypeError("this objective needs a critic that returns numbers, not an autoencoder")
    if isinstance(output, Described):
        return [output.numbers]
    return [output] if isinstance(output, Tensor) else output


def every_number(output: Output) -> Tensor:
    """All numbers of all scales in one row."""
    return torch.cat([scale.flatten() for scale in scales(output)])


def first_column(output: Output) -> Tensor:
    """The first of each sample's numbers `[N, K]`, where the others are about classes or codes."""
    return torch.cat([scale[:, 0] for scale in scales(output)])


@dataclass(frozen=True)
class Objective:
    """An adversarial objective. Functions are pure: what must be remembered is in the state that they get and return.

    critic(real, fake, state), generator(fake, state): scalars to be minimised; `fake` is detached in the first.
    match(real, fake, state): a scalar added to the generator's loss, which compares the last real batch as the critic sees it now
    with the generated one; the critic then returns its features as well (`Described`).
    regulariser(critic, real, fake): a scalar added to the critic's loss in every step; it may call the critic again.
    post_step(critic): changes the critic's weights after each of its updates.
    update(state, real, fake): the state after a whole step, from the last critic batch and the generator's batch.
    statistics(real, fake, state): figures for the log.
    critic_steps(step): how many updates the critic gets before the generator's update number `step`, which counts from 0.
    output: what the critic must return. "logit": sigmoid(output) is a probability; "score": any number; "autoencoder": a
    `Reconstruction`; "classes": scores of classes. outputs: how many numbers the critic returns for a sample.
    classes: how many classes real samples have, which it must be told; 0 for none. categories: how many classes the critic itself
    learns to tell apart, with labels of none, some or all samples. codes: what the generator is told to show.
    alone: the critic must judge each sample for itself, as its gradient at single samples is penalised.
    realness(output): numbers that are larger the more real the samples seem, what R1 penalises. boundary: the realness that parts
    real from generated, to which augmentation adapts; None where there is none. r1: gamma of the R1 penalty that goes with it on
    networks that need one; 0 where it holds the critic by itself.
    """

    name: str
    source: str
    critic: Callable[[Side, Side, State], Tensor]
    generator: Callable[[Side, State], Tensor]
    match: Callable[[Side, Side, State], Tensor] | None = None
    regulariser: Callable[[Critic, Side, Side], Tensor] | None = None
    post_step: Callable[[nn.Module], None] | None = None
    state: State | None = None
    update: Callable[[State, Side, Side], State] | None = None
    statistics: Callable[[Side, Side, State], dict[str, float]] | None = None
    critic_steps: Callable[[int], int] = lambda step: 1
    output: Literal["logit", "score", "autoencoder", "classes"] = "logit"
    outputs: int = 1
    classes: int = 0
    categories: int = 0
    codes: Codes | None = None
    alone: bool = False
    realness: Callable[[Output], Tensor] = every_number
    boundary: float | None = 0.0
    r1: float = 1.0
    optimiser: Optimiser = Optimiser()


def mean_of(output: Output, function: Callable[[Tensor], Tensor]) -> Tensor:
    """Mean of `function(value)` over samples and patches, then over scales: coarse scales weigh as much as fine ones."""
    return torch.stack([function(scale.to(compute_dtype(scale.dtype))).mean() for scale in scales(output)]).mean()


def whole_number(name: str, value: float, lowest: int = 1) -> int:
    """An option that counts something. Raises ValueError for anything but a whole number of at least `lowest`."""
    if value < lowest or value != int(value):
        raise ValueError(f"{name} must be a whole number of at least {lowest}, got {value:g}")
    return int(value)


def refuse_mixing(objective: Objective, critic: nn.Module, *, penalised: bool = False) -> None:
    """Raise ValueError where `objective` (or R1: `penalised`) judges samples alone but batch normalisation mixes them."""
    mixing = [name for name, module in critic.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if mixing and (objective.alone or penalised):
        what = objective.name if objective.alone else "R1"
        raise ValueError(
            f"{what} penalises the critic's gradient at each sample, but batch normalisation ({mixing[0]}) makes an output depend "
            "on the other samples; use layer normalisation or none in the critic"
        )
