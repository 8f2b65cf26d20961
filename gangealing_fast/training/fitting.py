# SPDX-License-Identifier: Apache-2.0
"""Fitting one network to one loss (`classify`, `contrast`): a cosine learning rate, one figure beside the loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from gangealing_fast.runtime.config import TrackerName
from gangealing_fast.training import loop
from gangealing_fast.training.loop import Means, Plan, Progress
from gangealing_fast.training.optim import Stateful
from gangealing_fast.training.parts import InParts

Lesson = Callable[[], tuple[Tensor, float]]


class FitConfig(Protocol):
    """The options that fitting reads."""

    @property
    def out(self) -> Path: ...
    @property
    def steps(self) -> int: ...
    @property
    def snapshot(self) -> int: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def tracker(self) -> TrackerName: ...


@dataclass
class Fitting(InParts):
    """The work of `fit` in the loop."""

    config: FitConfig
    optimizer: torch.optim.Optimizer
    parts: Mapping[str, Stateful]
    lesson: Lesson
    figure: str
    exported: Callable[[Mapping[str, Any]], None] | None

    def step(self, at: Progress, means: Means) -> int:
        rate = self.config.learning_rate * 0.5 * (1 + math.cos(math.pi * at.step / self.config.steps))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss, value = self.lesson()
        means.add({"loss": loss.item(), self.figure: value})
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return 1

    def measure(self, at: Progress, line: dict[str, Any]) -> None:
        """Loss and figure are all there is."""

    def show(self, at: Progress, line: Mapping[str, Any]) -> None:
        if self.exported is not None:
            self.exported(line)

    def named_parts(self) -> Mapping[str, Stateful]:
        return self.parts


def fit(
    config: FitConfig,
    command: str,
    optimizer: torch.optim.Optimizer,
    parts: Mapping[str, Stateful],
    lesson: Lesson,
    figure: str,
    *,
    resuming: bool,
    exported: Callable[[Mapping[str, Any]], None] | None = None,
) -> None:
    """Call `lesson()`, which returns a loss and one figure in [0, 1] called `figure`, and step `optimizer`, until `config.steps`.

    parts: what a checkpoint holds beside the optimiser, by name.
    resuming: whether the folder is this run's own. exported: called with the line of the log at each snapshot.
    Raises UserError if the loss is not finite; the last checkpoint stays.
    """
    everything = {**parts, "optimizer": optimizer}
    work = Fitting(config, optimizer, everything, lesson, figure, exported)
    plan = Plan(
        command,
        config.steps,
        config.snapshot,
        config.snapshot,
        postfix={"loss": ".3f", figure: ".2f"},
        draws=True,
        tracker=config.tracker,
    )
    loop.run(work, plan, config.out, loop.resume(work, plan, config.out) if resuming else Progress())
