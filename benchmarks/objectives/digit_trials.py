# SPDX-License-Identifier: Apache-2.0
"""The trials on MNIST digits: each trains one objective and returns figures for one seed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from benchmarks.objectives.digits import Training, judge, options
from benchmarks.objectives.distances import assignment

SAMPLES = 5000
# R1 and layer normalisation: with batch normalisation instead, the samples of a category soon become the same.
PENALISED: dict[str, Any] = {"r1": 1.0, "generator_learning_rate": 1e-3, "critic_learning_rate": 1e-3}


def _codes(training: Training) -> torch.Tensor:
    """Codes `[5000, C]` of every category equally often; continuous ones are drawn."""
    codes = training.objective.codes
    assert codes is not None
    drawn = codes.draw(SAMPLES)
    return codes.of(torch.arange(SAMPLES) % codes.categories, drawn[:, codes.categories :])


def acgan(mnist: Path, seed: int, steps: int = 1600) -> dict[str, Any]:
    """The share of samples that the classifier takes for the digit they were asked for; of real ones that the critic classifies."""
    judged, training = judge(mnist), Training(options(mnist, "acgan", seed, objective_options=("generated=0",), **PENALISED))
    last = list(training.steps(steps))[-100:]
    codes = _codes(training)
    pictures = training.draw(SAMPLES, codes)
    agreeing = (judged(pictures)[0] == codes.argmax(1)).float().mean().item()
    real = fmean(statistics["real_classified"] for statistics in last)
    figures = {"agreeing": agreeing, "real_classified": real, **judged.quality(pictures)}
    return figures | {"classifier": judged.accuracy, "cpu_seconds": training.cpu_seconds}


# A category that Q must know from a moved, turned and cut picture is a digit rather than a slant; and with a small weight the
# generator learns what digits are before its categories are settled.
INVARIANT: dict[str, Any] = {
    **(PENALISED | {"r1": 0.5}),
    **{"augment": "fixed", "augment_p": 0.7, "objective_options": ("weight=0.15", "continuous_weight=0.02")},
}


def infogan(mnist: Path, seed: int, steps: int = 1500) -> dict[str, Any]:
    """Which digits the categories show, found without any label: agreement under the best one-to-one assignment, and the bound."""
    judged, training = judge(mnist), Training(options(mnist, "infogan", seed, **INVARIANT))
    for _ in training.steps(steps):
        pass
    codes = _codes(training)
    pictures = training.draw(SAMPLES, codes)
    table = torch.zeros(10, 10)
    table.index_put_((codes[:, :10].argmax(1), judged(pictures)[0]), torch.ones(SAMPLES), accumulate=True)
    digit_of = assignment(-table.double())
    agreeing = table[torch.arange(10), digit_of].sum().item() / SAMPLES
    bound = training.statistics(pictures, codes)["information"]
    figures = {"agreeing": agreeing, "information": bound, **judged.quality(pictures)}
    return figures | {"classifier": judged.accuracy, "cpu_seconds": training.cpu_seconds, "digit_of": digit_of.tolist()}


# Without normalisation the background makes all codes nearly parallel, where the pulling-away term has no slope.
AUTOENCODER: dict[str, Any] = {"channel_base": 256, "max_channels": 64, "critic_norm": "batch"}
AUTOENCODER |= {"generator_learning_rate": 1e-3, "critic_learning_rate": 1e-3}


def ebgan(mnist: Path, seed: int, steps: int = 700) -> dict[str, Any]:
    """Energies of real and generated digits at the end, the pulling-away term, and the quality of the samples."""
    judged, training = judge(mnist), Training(options(mnist, "ebgan", seed, objective_options=("margin=0.3",), **AUTOENCODER))
    last = list(training.steps(steps))[-100:]
    means = {key: fmean(line[key] for line in last) for key in ("real_energy", "fake_energy", "pulling_away")}
    return means | judged.quality(training.draw(SAMPLES)) | {"classifier": judged.accuracy, "cpu_seconds": training.cpu_seconds}


def began(mnist: Path, seed: int, steps: int = 600, gamma: float = 0.75, rate: float = 0.01) -> dict[str, Any]:
    """The extremes of k, E L(G(z)) / E L(x) over gamma in the last quarter, and how far the convergence measure falls."""
    judged = judge(mnist)
    training = Training(options(mnist, "began", seed, objective_options=(f"gamma={gamma}", f"rate={rate}"), **AUTOENCODER))
    lines = list(training.steps(steps))
    first, last = lines[: steps // 10], lines[-(steps // 4) :]
    mean = {key: fmean(line[key] for line in last) for key in ("real_energy", "fake_energy", "convergence")}
    figures = {
        "lowest_k": min(line["k"] for line in lines),
        "highest_k": max(line["k"] for line in lines),
        "ratio_over_gamma": mean["fake_energy"] / mean["real_energy"] / gamma,
        "convergence": mean["convergence"] / fmean(line["convergence"] for line in first),
    }
    return figures | judged.quality(training.draw(SAMPLES)) | {"classifier": judged.accuracy, "cpu_seconds": training.cpu_seconds}


TRIALS: dict[str, Callable[[Path, int], dict[str, Any]]] = {"acgan": acgan, "infogan": infogan, "ebgan": ebgan, "began": began}
# figure, lowest and highest value that the median over seeds must have
GOALS: dict[str, dict[str, tuple[float, float]]] = {
    "acgan": {"agreeing": (0.95, 1.0), "classifier": (0.99, 1.0)},
    "infogan": {"agreeing": (0.80, 1.0), "information": (2.0, 2.3026), "classifier": (0.99, 1.0)},
    "ebgan": {"classifier": (0.99, 1.0)},
    "began": {"lowest_k": (0.0, 1.0), "highest_k": (0.0, 1.0), "ratio_over_gamma": (0.9, 1.1), "convergence": (0.0, 0.9)},
}
