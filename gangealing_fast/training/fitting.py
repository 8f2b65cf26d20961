# SPDX-License-Identifier: Apache-2.0
"""The loop of the commands that fit one network to one loss (`classify`, `contrast`): rate, log, checkpoints, exact resume."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from gangealing_fast.runtime import memory
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.storage import checkpoint
from gangealing_fast.storage.files import JsonLines


class Stateful(Protocol):
    """Whatever a checkpoint holds under one name: networks, optimisers, samplers."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any], /) -> Any: ...


class FitConfig(Protocol):
    """The options that the loop reads."""

    out: Path
    steps: int
    snapshot: int
    learning_rate: float


def fit(
    config: FitConfig,
    kind: str,
    optimizer: torch.optim.Optimizer,
    parts: dict[str, Stateful],
    lesson: Callable[[], tuple[Tensor, float]],
    figure: str,
    *,
    resuming: bool,
    exported: Callable[[dict[str, float]], None] | None = None,
) -> None:
    """Call `lesson()`, which returns a loss and one figure in [0, 1] called `figure`, and step `optimizer`, until `config.steps`.

    kind: the command, which the checkpoint records. parts: what a checkpoint holds beside the optimiser, by name.
    resuming: whether the folder is this run's own. exported: called with each line of the log before it is written.
    Raises UserError where the loss is not finite; the last checkpoint stays.
    """
    parts = {**parts, "optimizer": optimizer}
    step = 0
    if resuming and checkpoint.has_checkpoint(config.out):
        state = checkpoint.load_latest(config.out, kind=kind)
        for name, part in parts.items():
            part.load_state_dict(state[name])
        torch.set_rng_state(state["random_state"])
        step = state["step"]
        print(f"resuming {config.out} at step {step} of {config.steps}")
    sums, count, began = [0.0, 0.0], 0, time.perf_counter()
    progress = tqdm(total=config.steps, initial=step, unit="step", desc=kind, mininterval=1.0, dynamic_ncols=True)
    with JsonLines(config.out / "log.jsonl", resume_step=step) as log:
        while step < config.steps:
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * 0.5 * (1 + math.cos(math.pi * step / config.steps))
            loss, value = lesson()
            if not math.isfinite(loss.item()):
                raise UserError(f"the loss is {loss.item()} at step {step}: lower --learning-rate or use --precision float32")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            memory.trim()
            step += 1
            sums[0] += loss.item()
            sums[1] += value
            count += 1
            progress.update()
            if step % config.snapshot == 0 or step == config.steps:
                line = {"step": step, "loss": sums[0] / count, figure: sums[1] / count, "seconds": time.perf_counter() - began}
                sums, count = [0.0, 0.0], 0
                if exported is not None:
                    exported(line)
                state = {name: part.state_dict() for name, part in parts.items()}
                checkpoint.save_latest(config.out, {"step": step, "random_state": torch.get_rng_state(), **state}, kind=kind)
                log.append(line)
                progress.set_postfix({"loss": f"{line['loss']:.3f}", figure: f"{line[figure]:.2f}"})
    progress.close()
