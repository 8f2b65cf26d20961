# SPDX-License-Identifier: Apache-2.0
"""Generators that are told what to show, and critics that say what they see: ACGAN and infoGAN.

The critic's first number D is the logit of "real", the others are about class or codes. Both networks play the non-saturating game
(arXiv 1406.2661, section 3) with D. Generated samples are made from codes: the first entries of z (`adversarial.codes`).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from gangealing_fast.adversarial.codes import Codes
from gangealing_fast.adversarial.objectives.classic import cross_entropy_critic, nonsaturating_generator
from gangealing_fast.adversarial.objectives.record import Objective, Optimiser, Side, State, first_column, scales, whole_number
from gangealing_fast.ops._common import compute_dtype

LOG_DEVIATION = 3.0


def _numbers(side: Side, count: int) -> Tensor:
    """What the critic says beside its logit, `[N, count]`."""
    output = torch.cat(list(scales(side.output)))
    if output.dim() != 2 or output.shape[1] != 1 + count:
        raise ValueError(f"this objective needs a critic with {1 + count} outputs for each sample, got {list(output.shape)}")
    return output[:, 1:].to(compute_dtype(output.dtype))


def _codes(side: Side, codes: Codes) -> tuple[Tensor, Tensor]:
    if side.labels is None:
        raise ValueError("this objective needs the codes that generated samples were made from")
    return codes.split(side.labels)


def known_classes(name: str, side: Side, classes: int) -> Tensor:
    """Classes `[N]` of real samples, -1 where unknown. Raises ValueError where there are none or they do not fit."""
    labels = side.labels
    if labels is None or labels.dim() != 1 or labels.is_floating_point():
        raise ValueError(f"{name} needs the class of each real sample as int64 [N], -1 where it is unknown")
    if labels.numel() and not -1 <= labels.min() <= labels.max() < classes:
        raise ValueError(f"{name} has classes from 0 to {classes - 1}, got {labels.min().item()} to {labels.max().item()}")
    return labels


def class_loss(scores: Tensor, classes: Tensor) -> Tensor:
    """-E log P(C = c | x), the negative of one term of L_C, over samples of known class; 0 where there are none."""
    known = (classes >= 0).sum().clamp(min=1)
    return F.cross_entropy(scores, classes, ignore_index=-1, reduction="sum") / known


def _agreement(scores: Tensor, classes: Tensor) -> float:
    known = classes >= 0
    return ((scores.argmax(1) == classes) & known).sum().item() / max(1, known.sum().item())


def acgan(classes: int = 10, weight: float = 1.0, generated: float = 1.0) -> Objective:
    """Odena et al. 2017 (arXiv 1610.09585), eq. 2-3: L_S, the log-likelihood of real and generated, and L_C, that of the classes.

    The critic maximises L_S + weight · L_C over real and generated samples, the generator weight · L_C - L_S, with -L_S in its
    non-saturating form. A category of the generator's codes is a class of the data. generated: how much generated samples count in
    the critic's L_C; 1 is the paper's, with 0 it learns classes from real samples alone and does not come to meet the generator.
    """
    classes = whole_number("classes", classes, 2)
    codes = Codes(classes)

    def critic(real: Side, fake: Side, state: State) -> Tensor:
        loss = cross_entropy_critic(first_column(real.output), first_column(fake.output))
        of_real = class_loss(_numbers(real, classes), known_classes("acgan", real, classes))
        return loss + weight * (of_real + generated * class_loss(_numbers(fake, classes), _codes(fake, codes)[0]))

    def generator(fake: Side, state: State) -> Tensor:
        loss = nonsaturating_generator(first_column(fake.output))
        return loss + weight * class_loss(_numbers(fake, classes), _codes(fake, codes)[0])

    def statistics(real: Side, fake: Side, state: State) -> dict[str, float]:
        return {
            "real_classified": _agreement(_numbers(real, classes), known_classes("acgan", real, classes)),
            "fake_classified": _agreement(_numbers(fake, classes), _codes(fake, codes)[0]),
        }

    return Objective(
        "acgan",
        "Odena et al. 2017, eq. 2-3",
        critic=critic,
        generator=generator,
        statistics=statistics,
        outputs=1 + classes,
        classes=classes,
        codes=codes,
        realness=first_column,
    )


def gaussian_log_likelihood(numbers: Tensor, mean: Tensor, log_deviation: Tensor) -> Tensor:
    """log N(numbers; mean, exp(log_deviation)²) of independent numbers `[N, C]`, summed over a row: `[N]`."""
    squares = ((numbers - mean) * torch.exp(-log_deviation)).square()
    return -(0.5 * squares + log_deviation + 0.5 * math.log(2 * math.pi)).sum(1)


def infogan(categories: int = 10, continuous: int = 2, weight: float = 1.0, continuous_weight: float = 0.1) -> Objective:
    """Chen et al. 2016 (arXiv 1606.03657), eq. 6: the game's value - weight · L_I, L_I = E log Q(c | G(z, c)) + H(c) of eq. 5.

    L_I never exceeds the mutual information of codes and samples. Q says a softmax for the category, mean and log-deviation of a
    Gaussian for each continuous code (appendix C.1), and shares the critic's body: it is trained with the critic, on generated
    samples. The log has `information`, L_I of the category in nats, at most log categories, and `continuous_information`.
    """
    categories = whole_number("categories", categories, 2)
    codes = Codes(categories, whole_number("continuous", continuous, 0))
    outputs = categories + 2 * codes.continuous

    def bounds(fake: Side) -> tuple[Tensor, Tensor]:
        """L_I of the category and of the continuous codes; H is log K of the one and log 2 of each other."""
        category, numbers = _codes(fake, codes)
        scores, mean, log_deviation = _numbers(fake, outputs).split([categories, codes.continuous, codes.continuous], 1)
        # Q may not become so sure of one sample that its gradient drowns the others'.
        spread = LOG_DEVIATION * torch.tanh(log_deviation / LOG_DEVIATION)
        of_numbers = gaussian_log_likelihood(numbers.to(mean), mean, spread).mean()
        return math.log(categories) - F.cross_entropy(scores, category), of_numbers + codes.continuous * math.log(2)

    def information(fake: Side) -> Tensor:
        of_category, of_numbers = bounds(fake)
        return weight * of_category + continuous_weight * of_numbers

    def critic(real: Side, fake: Side, state: State) -> Tensor:
        return cross_entropy_critic(first_column(real.output), first_column(fake.output)) - information(fake)

    def generator(fake: Side, state: State) -> Tensor:
        return nonsaturating_generator(first_column(fake.output)) - information(fake)

    def statistics(real: Side, fake: Side, state: State) -> dict[str, float]:
        of_category, of_numbers = (bound.item() for bound in bounds(fake))
        return {"information": of_category} | ({"continuous_information": of_numbers} if codes.continuous else {})

    return Objective(
        "infogan",
        "Chen et al. 2016, eq. 5-6",
        critic=critic,
        generator=generator,
        statistics=statistics,
        outputs=1 + outputs,
        codes=codes,
        realness=first_column,
        optimiser=Optimiser("adam", 1e-3, 2e-4, (0.5, 0.999)),
    )
