# SPDX-License-Identifier: Apache-2.0
"""The trials behind `python -m benchmarks.objectives`: each returns figures for one seed. Those on digits: `digit_trials`."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from benchmarks.objectives import class_trials, digit_trials
from benchmarks.objectives.circles import circles_trial
from benchmarks.objectives.distances import spearman, wasserstein
from benchmarks.objectives.plane import Trial, quality, ring
from gangealing_fast.adversarial.objectives import make
from gangealing_fast.adversarial.objectives.penalties import gradient_norms, lines_between
from gangealing_fast.runtime.errors import UserError

DEVIATION = 0.02
SAMPLES = 2500


def ring_trial(name: str, steps: int, options: dict[str, float]) -> Callable[[int], dict[str, Any]]:
    """Eight Gaussians of deviation 0.02 on a circle of radius 2; judged is the averaged generator."""

    def run(seed: int) -> dict[str, Any]:
        trial = Trial(make(name, **options), steps, (1e-3, 1e-3), last_rate=0.01)
        for _ in trial.train(DEVIATION, seed):
            pass
        with torch.no_grad():
            points = trial.sample(trial.average, SAMPLES)
        modes, good = quality(points, DEVIATION)
        norms = gradient_norms(trial.critic, lines_between(ring(SAMPLES, DEVIATION), points))
        return {"modes": modes, "good": good, "gradient_norm": norms.mean().item()}

    return run


def wasserstein_trial(seed: int, steps: int = 200, every: int = 5, offset: float = 3.0) -> dict[str, Any]:
    """WGAN by clipping while its generator moves to a ring 3 away: the critic's estimate beside the exact distance."""
    objective = make("wgan", clip=0.1)
    trial = Trial(objective, steps, (5e-5, 1e-3), width=64, offset=offset)
    estimates, exact, recent = [], [], []
    for done, statistics in trial.train(DEVIATION, seed):
        recent.append(statistics["wasserstein"])
        if done % every == 0:
            with torch.no_grad():
                exact.append(wasserstein(ring(256, DEVIATION, offset), trial.sample(trial.generator, 256)))
            estimates.append(fmean(recent))
            recent.clear()
    return {"spearman": spearman(estimates, exact), "first": exact[0], "last": exact[-1], "estimates": estimates, "exact": exact}


TRIALS: dict[str, Callable[[int], dict[str, Any]]] = {
    "ring-wgan-gp": ring_trial("wgan-gp", 4000, {"weight": 0.1, "critic_steps": 2}),
    "ring-dragan": ring_trial("dragan", 3500, {"weight": 1.0, "deviation": 0.1}),
    "ring-nonsaturating": ring_trial("nonsaturating", 3500, {}),
    "wasserstein": wasserstein_trial,
    "circles": circles_trial,
}
ON_DIGITS = digit_trials.TRIALS | class_trials.TRIALS
# figure, lowest and highest value that the median over seeds must have
GOALS: dict[str, dict[str, tuple[float, float]]] = {
    "ring-wgan-gp": {"modes": (8, 8), "good": (0.85, 1.0), "gradient_norm": (0.8, 1.2)},
    "ring-dragan": {"modes": (8, 8), "good": (0.85, 1.0)},
    "ring-nonsaturating": {},
    "wasserstein": {"spearman": (0.4, 1.0)},
    "circles": {"accuracy": (0.98, 1.0), "without_generator": (0.5, 0.75)},
    **digit_trials.GOALS,
    **class_trials.GOALS,
}


def measure(name: str, seed: int, mnist: Path | None = None) -> dict[str, Any]:
    """The figures of trial `name` for `seed`, with the CPU seconds it took on one thread.

    Raises UserError for a trial on digits without `mnist`, the folder of MNIST's files.
    """
    if name in TRIALS:
        trial = functools.partial(TRIALS[name], seed)
    elif mnist is not None:
        trial = functools.partial(ON_DIGITS[name], mnist, seed)
    else:
        raise UserError(f"the trial {name} trains on digits: give --mnist with the folder of MNIST's IDX files")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        started = time.process_time()
        figures = trial()
        return {"trial": name, "seed": seed} | {"cpu_seconds": time.process_time() - started} | figures
    finally:
        torch.set_num_threads(threads)
