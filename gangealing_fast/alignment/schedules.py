# SPDX-License-Identifier: Apache-2.0
"""What changes with the training step: psi, the learning rates and the decay of the averaged weights.

All of it is closed-form in the step (no hidden state), so that a resumed run continues exactly.
Formulas: "GAN-Supervised Dense Visual Alignment" (arXiv 2112.05143); warm restarts: arXiv 1608.03983.
"""

from __future__ import annotations

import math
from typing import Literal

PsiShape = Literal["cosine", "linear"]


def psi_at(step: int, anneal_steps: int, shape: PsiShape = "cosine") -> float:
    """Weight of the sample's own latent in its target, from 1 at step 0 to 0 at `anneal_steps` and after.

    cosine: `(1 + cos(pi t)) / 2`; linear: `1 - t`; with `t = step / anneal_steps`. With `anneal_steps = 0` it is 0.
    """
    if step < 0 or anneal_steps < 0:
        raise ValueError(f"step and anneal_steps must be 0 or more, got {step} and {anneal_steps}.")
    if shape not in ("cosine", "linear"):
        raise ValueError(f"the shape of the psi schedule must be 'cosine' or 'linear', got {shape!r}.")
    if step >= anneal_steps:
        return 0.0
    progress = step / anneal_steps
    return 1.0 - progress if shape == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))


class DecayingCosineRestarts:
    """Factor on a learning rate: cosine from 1 to 0 with restarts, each cycle longer and starting lower.

    Cycle n lasts `period * multiplier**n` and starts at `decay**n`. The argument is a real-valued epoch: in training
    `(step - anneal_steps) / period_steps`, held at 0 while psi is annealed (`learning_rate_factor` below).
    """

    def __init__(self, period: float = 1.0, multiplier: int = 2, decay: float = 0.9) -> None:
        if not period > 0 or multiplier < 1 or not 0 < decay <= 1:
            raise ValueError(f"restarts need period > 0, multiplier >= 1 and 0 < decay <= 1, got {period}, {multiplier}, {decay}.")
        self.period, self.multiplier, self.decay = float(period), int(multiplier), float(decay)

    def position(self, epoch: float) -> tuple[int, float, float]:
        """(cycle number, time since its start, its length) at `epoch >= 0`."""
        if epoch < 0:
            raise ValueError(f"epoch must be 0 or more, got {epoch}.")
        if self.multiplier == 1:
            cycle = math.floor(epoch / self.period)
            return cycle, epoch - cycle * self.period, self.period
        cycle, start, length = 0, 0.0, self.period
        while epoch >= start + length:  # logarithmic in epoch; no rounding of a logarithm at the restarts
            start, length, cycle = start + length, length * self.multiplier, cycle + 1
        return cycle, epoch - start, length

    def __call__(self, epoch: float) -> float:
        cycle, elapsed, length = self.position(epoch)
        return self.decay**cycle * 0.5 * (1.0 + math.cos(math.pi * elapsed / length))

    def ends(self, until: float) -> list[float]:
        """The epochs up to `until` at which a cycle has come down to 0: the natural ends of a training run."""
        ends, length = [self.period], self.period
        while ends[-1] <= until:
            length *= self.multiplier
            ends.append(ends[-1] + length)
        return ends[:-1]


def learning_rate_factor(step: int, anneal_steps: int, period_steps: int, restarts: DecayingCosineRestarts | None = None) -> float:
    """Factor on both learning rates at `step`: 1 while psi falls, then cosine restarts of `period_steps`, doubling.

    `period_steps = 0` switches the restarts off (constant factor 1).
    """
    if period_steps == 0 or step <= anneal_steps:
        return 1.0
    return (restarts or DecayingCosineRestarts())((step - anneal_steps) / period_steps)


def zero_learning_rate_steps(anneal_steps: int, period_steps: int, total_steps: int, multiplier: int = 2) -> list[int]:
    """Last step before each restart, up to `total_steps`: where the learning rate is lowest and a run may well end.

    The first entry is the last step of the annealing itself.
    """
    steps, length, end = [], period_steps, anneal_steps
    while end <= total_steps:
        steps.append(end - 1)
        end, length = end + length, length * multiplier
        if length <= 0:
            break
    return steps


def ema_decay(batch: int = 32, half_life: float = 10_000) -> float:
    """Factor by which the running average of the weights keeps its old value in one step of `batch` samples.

    `0.5 ** (batch / half_life)`, the half-life in samples. The published value is `batch = 32` whatever the real batch.
    """
    if batch <= 0 or half_life <= 0:
        raise ValueError(f"batch and half_life must be positive, got {batch} and {half_life}.")
    return 0.5 ** (batch / half_life)
