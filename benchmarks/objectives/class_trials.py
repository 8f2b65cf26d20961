# SPDX-License-Identifier: Apache-2.0
"""The trials of critics that classify: catGAN and the semi-supervised GAN on MNIST digits, with few labels or none."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.objectives.digits import CPU, Training, options
from gangealing_fast.adversarial.objectives.classes import cross_entropy_of_known
from gangealing_fast.adversarial.objectives.record import scales
from gangealing_fast.pretraining.classification import Examination, settle_statistics
from gangealing_fast.pretraining.networks import CLASSIFIER_DECAY
from gangealing_fast.pretraining.source import DigitSource
from gangealing_fast.runtime.precision import autocast

PICTURES_OF_STATISTICS = 2000
SEMI_SUPERVISED = {"labelled_share": 0.5, "batch": 64, "objective_options": ("matching=1",)}
LOOKS = (100, 200, 400, 800)


def small(mnist: Path, objective: str, seed: int, **changes: Any) -> Training:
    """A narrow DCGAN with batch normalisation and noise on what its critic sees, at learning rates for short runs."""
    common = {"channel_base": 256, "generator_learning_rate": 1e-3, "critic_learning_rate": 1e-3, "critic_noise": 0.3}
    return Training(options(mnist, objective, seed, **common | changes))


def error_of(training: Training, examine: Examination) -> float:
    """Of the averaged critic, with the statistics of real pictures."""
    classifier = training.networks.classifier
    assert classifier is not None
    settle_statistics(classifier, training.source.fixed(PICTURES_OF_STATISTICS))
    return examine(classifier)[1]["test_error"]


def with_generator(mnist: Path, objective: str, seed: int, steps: int, **changes: Any) -> tuple[float, Training, dict[str, float]]:
    """The test error after the last step, which no label of another digit has chosen; the run; its last statistics."""
    training = small(mnist, objective, seed, **changes)
    examine = Examination(training.config, training.objective.categories, training.dtype)
    *_, statistics = training.steps(steps)
    return error_of(training, examine), training, statistics


def without_generator(mnist: Path, labels: int, seed: int) -> tuple[float, int]:
    """The same critic, optimiser, noise and average, on the labelled digits alone: lowest test error of four looks, its step.

    To choose the step by the test digits favours this side.
    """
    training = small(mnist, "semi-supervised", seed, labels=labels, **SEMI_SUPERVISED | {"labelled_share": 1.0, "batch": 64})
    networks, source = training.networks, training.source
    examine = Examination(training.config, training.objective.categories, training.dtype)
    assert isinstance(source, DigitSource)
    best = (1.0, 0)
    for step in range(1, LOOKS[-1] + 1):
        images, classes = source.next(training.config.batch)
        with autocast(CPU, training.dtype):
            seen = images + training.config.critic_noise * torch.randn_like(images)
            loss = cross_entropy_of_known(scales(networks.critic(seen))[0][:, :10], classes)
        networks.critic_optimizer.zero_grad(set_to_none=True)
        loss.backward()
        networks.critic_optimizer.step(decay=min(CLASSIFIER_DECAY, step / (9 + step)))
        if step in LOOKS:
            best = min(best, (error_of(training, examine), step))
    return best


def catgan_unsupervised(mnist: Path, seed: int, steps: int = 1400) -> dict[str, Any]:
    """K = 20 outputs without labels, each assigned the digit that most of the first 10 000 training digits have which it takes."""
    error, training, statistics = with_generator(mnist, "catgan", seed, steps, batch=100, objective_options=("classes=20",))
    entropies = {name: statistics[name] for name in ("real_entropy", "real_marginal_entropy", "fake_entropy")}
    return {"test_error": error, **entropies, "cpu_seconds": training.cpu_seconds}


def catgan_labelled(mnist: Path, seed: int, steps: int = 1000, labels: int = 100) -> dict[str, Any]:
    """K = 10 outputs and 100 labels; the critic sees digits slightly moved, turned, scaled and shaded."""
    augmented = {"augment": "fixed", "augment_p": 0.5}
    error, training, _ = with_generator(mnist, "catgan", seed, steps, labels=labels, batch=32, **augmented)
    return {"test_error": error, "cpu_seconds": training.cpu_seconds}


def semi_supervised(labels: int) -> Callable[[Path, int], dict[str, Any]]:
    """K + 1 outputs and so many labels, beside the same network on the same labels without the generator."""

    def run(mnist: Path, seed: int, steps: int = 800) -> dict[str, Any]:
        error, training, _ = with_generator(mnist, "semi-supervised", seed, steps, labels=labels, **SEMI_SUPERVISED)
        started = time.process_time()
        alone, best_step = without_generator(mnist, labels, seed)
        figures = {"accuracy": 1 - error, "without_generator": 1 - alone, "gain": alone - error, "its_best_step": best_step}
        return figures | {"cpu_seconds": training.cpu_seconds, "cpu_seconds_without": time.process_time() - started}

    return run


TRIALS: dict[str, Callable[[Path, int], dict[str, Any]]] = {
    "catgan-unsupervised": catgan_unsupervised,
    "catgan-100": catgan_labelled,
    **{f"semi-supervised-{labels}": semi_supervised(labels) for labels in (25, 50, 100, 1000)},
}
GOALS: dict[str, dict[str, tuple[float, float]]] = {name: {} for name in TRIALS} | {
    "catgan-unsupervised": {"test_error": (0.0, 0.20)},
    "catgan-100": {"test_error": (0.0, 0.06)},
    "semi-supervised-100": {"gain": (0.02, 1.0)},
}
