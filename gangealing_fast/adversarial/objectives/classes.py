# SPDX-License-Identifier: Apache-2.0
"""Critics that classify: catGAN (K outputs, sure about what is real) and the semi-supervised GAN (K classes and one for generated).

p(y | x) is the softmax of the critic's logits, H an entropy in nats. Everything is computed from log-probabilities, so that no
logit is too large. Labels are classes `[N]`, -1 where unknown.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from gangealing_fast.adversarial.objectives.record import Objective, Optimiser, Output, Side, State, whole_number
from gangealing_fast.models.dcgan import Described
from gangealing_fast.ops._common import compute_dtype


def conditional_entropy(logits: Tensor) -> Tensor:
    """`[N]`: H[p(y | x)] of logits `[N, K]`, between 0 and log K (arXiv 1511.06390, eq. 3)."""
    log_p = F.log_softmax(logits, 1)
    return -(log_p.exp() * log_p).sum(1)


def marginal_entropy(logits: Tensor) -> Tensor:
    """H[E p(y | x)] of logits `[N, K]`, a scalar from 0 to log K: the entropy of the batch's mean probabilities (eq. 4-5 there).

    It couples the samples of a batch on purpose; a batch of fewer than K samples cannot reach log K with certain samples.
    """
    log_mean = F.log_softmax(logits, 1).logsumexp(0) - math.log(logits.shape[0])
    return -(log_mean.exp() * log_mean).sum()


def realness(logits: Tensor, classes: int) -> Tensor:
    """`[N]`: log p(real | x) / p(generated | x) of logits `[N, classes + 1]`, the last one of them for generated samples.

    Logits `[N, classes]` stand for those with a last one of 0 (arXiv 1606.03498, section 5: softmax does not see a constant).
    """
    real = logits[:, :classes].logsumexp(1)
    return real if logits.shape[1] == classes else real - logits[:, classes]


def cross_entropy_of_known(logits: Tensor, labels: Tensor | None) -> Tensor:
    """Mean of -log p(y | x) over the samples with a label; 0 where none has one. Logits `[N, K]`, labels `[N]`, -1 for unknown.

    Raises ValueError for labels of another shape or outside of the classes.
    """
    if labels is None:
        return logits.sum() * 0
    n, classes = logits.shape
    if labels.shape != (n,) or labels.dtype.is_floating_point:
        raise ValueError(f"labels must be one class for each of the {n} samples, got {labels.dtype} {list(labels.shape)}")
    outside = (labels < -1) | (labels >= classes)
    if outside.any():
        raise ValueError(f"label {int(labels[outside][0])} is none of the {classes} classes 0 to {classes - 1}, nor -1 for unknown")
    known = labels >= 0
    losses = F.cross_entropy(logits, labels, ignore_index=-1, reduction="sum")
    return losses / known.sum().clamp(min=1)


def _logits(found: Output, *counts: int) -> Tensor:
    """The critic's logits in float32 at least. Raises TypeError or ValueError where it returned something else."""
    if isinstance(found, Described):
        found = found.numbers
    if not isinstance(found, Tensor):
        raise TypeError("this objective needs a critic that returns one tensor of class logits")
    if found.dim() != 2 or found.shape[1] not in counts:
        raise ValueError(f"this objective needs a critic that returns logits [N, {counts[0]}], got {list(found.shape)}")
    return found.to(compute_dtype(found.dtype))


def feature_distance(real: Output, fake: Output) -> Tensor:
    """|E f(x) - E f(G(z))|² per feature, a scalar, of the features f `[N, C]` that the critic describes samples with (eq. 4 there).

    Raises TypeError for a critic that gives none.
    """
    if not (isinstance(real, Described) and isinstance(fake, Described)):
        raise TypeError("feature matching needs a critic that returns its features")
    return (real.features.mean(0) - fake.features.mean(0)).square().mean()


def _accuracy(logits: Tensor, labels: Tensor | None) -> dict[str, float]:
    if labels is None or not bool((labels >= 0).any()):
        return {}
    known = labels >= 0
    return {"labelled_accuracy": (logits[known].argmax(1) == labels[known]).float().mean().item()}


def catgan(classes: int = 10, labelled: float = 1.0) -> Objective:
    """Springenberg 2016 (arXiv 1511.06390), eq. 7: the critic is sure about real samples, evenly for all classes, unsure of others.

    Critic: -H[E p(y | x)] + E H[p(y | x)] - E H[p(y | G(z))], + labelled · cross entropy of samples with a label (eq. 9).
    Generator: -H[E p(y | G(z))] + E H[p(y | G(z))]: samples of all classes, each of them surely of one.
    """
    k = whole_number("classes", classes, 2)

    def critic(real: Side, fake: Side, state: State) -> Tensor:
        seen, made = _logits(real.output, k), _logits(fake.output, k)
        loss = conditional_entropy(seen).mean() - marginal_entropy(seen) - conditional_entropy(made).mean()
        return loss + labelled * cross_entropy_of_known(seen, real.labels)

    def generator(fake: Side, state: State) -> Tensor:
        made = _logits(fake.output, k)
        return conditional_entropy(made).mean() - marginal_entropy(made)

    def statistics(real: Side, fake: Side, state: State) -> dict[str, float]:
        seen, made = _logits(real.output, k), _logits(fake.output, k)
        return {
            "real_entropy": conditional_entropy(seen).mean().item(),
            "real_marginal_entropy": marginal_entropy(seen).item(),
            "fake_entropy": conditional_entropy(made).mean().item(),
            "fake_marginal_entropy": marginal_entropy(made).item(),
        } | _accuracy(seen, real.labels)

    return Objective(
        "catgan",
        "Springenberg 2016, eq. 7 and, with labels, 9",
        critic=critic,
        generator=generator,
        statistics=statistics,
        output="classes",
        outputs=k,
        categories=k,
        realness=lambda output: -conditional_entropy(_logits(output, k)),
        boundary=None,
        r1=0.0,
    )


def semi_supervised(classes: int = 10, labelled: float = 1.0, matching: float = 0.0) -> Objective:
    """Odena 2016 (arXiv 1606.01583): K classes and one more for generated samples, in the form of Salimans et al. 2016, section 5.

    With s(x) = log p(y <= K | x) / p(y = K + 1 | x), the logit of being real:
    critic: E log(1 + exp(-s(x))) + E log(1 + exp(s(G(z)))) + labelled · E -log p(y | x, y <= K) over the samples with a label;
    generator: E log(1 + exp(-s(G(z)))), or where matching > 0 that times |E f(x) - E f(G(z))|², f the critic's features.
    """
    k = whole_number("classes", classes, 2)

    def logits(output: Output) -> Tensor:
        return _logits(output, k + 1, k)

    def critic(real: Side, fake: Side, state: State) -> Tensor:
        seen, made = logits(real.output), logits(fake.output)
        game = F.softplus(-realness(seen, k)).mean() + F.softplus(realness(made, k)).mean()
        return game + labelled * cross_entropy_of_known(seen[:, :k], real.labels)

    def generator(fake: Side, state: State) -> Tensor:
        made = logits(fake.output)
        return made.sum() * 0 if matching else F.softplus(-realness(made, k)).mean()

    def statistics(real: Side, fake: Side, state: State) -> dict[str, float]:
        return _accuracy(logits(real.output)[:, :k], real.labels)

    return Objective(
        "semi-supervised",
        "Odena 2016, section 2; Salimans et al. 2016, section 5",
        critic=critic,
        generator=generator,
        match=(lambda real, fake, state: matching * feature_distance(real.output, fake.output)) if matching else None,
        statistics=statistics,
        output="classes",
        outputs=k + 1,
        classes=k,
        categories=k,
        realness=lambda output: realness(logits(output), k),
        r1=0.0,
        optimiser=Optimiser("adam", 3e-4, 3e-4, (0.5, 0.999)),
    )
