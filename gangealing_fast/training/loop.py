# SPDX-License-Identifier: Apache-2.0
"""The loop of every command that trains: ticks, sums to a log line, progress, finite-or-stop, checkpoint, resume.

A command says what one step is (`Work`) and how often something happens (`Plan`). A step is one update of the networks. Progress is
counted in the plan's unit: steps, or pictures if a step may show any number of them. A tick ends with one line of log.jsonl, a
snapshot with a checkpoint. The line comes first: what was logged after the last checkpoint is dropped on resuming, so that a run
that was killed at any moment leaves the same log as one that was not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from tqdm import tqdm

from gangealing_fast.runtime import memory, randomness
from gangealing_fast.runtime.config import TrackerName
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.runtime.text import printable
from gangealing_fast.storage import checkpoint
from gangealing_fast.storage.files import JsonLines
from gangealing_fast.storage.runs import changes_to_log, mark_logged
from gangealing_fast.storage.settings import is_whole
from gangealing_fast.training.optim import Stateful
from gangealing_fast.training.trackers import tracking


class NotFinite(RuntimeError):
    """A statistic of a step is NaN or infinite; the text says which."""


class Progress(NamedTuple):
    """How far a run is: steps done, and units of its plan done."""

    step: int = 0
    done: int = 0


class Means:
    """Statistics of the steps since the last line of the log."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}

    def add(self, statistics: Mapping[str, float]) -> None:
        """Count one value of each name. Raises NotFinite for a value that is NaN or infinite."""
        for name, value in statistics.items():
            if not math.isfinite(value):
                raise NotFinite(f"{name} is {value}")
            self._sums[name] = self._sums.get(name, 0.0) + value
            self._counts[name] = self._counts.get(name, 0) + 1

    def take(self) -> dict[str, float]:
        """The mean of every name over the values that were counted; begins anew."""
        means = {name: total / self._counts[name] for name, total in self._sums.items()}
        self._sums.clear()
        self._counts.clear()
        return means


class Work(Stateful, Protocol):
    """What a command does in the loop; its state is what a resumed run needs, beside the number of the step."""

    def step(self, at: Progress, means: Means) -> int:
        """One update; returns by how many units the run has advanced. Raises NotFinite if it cannot be made."""

    def measure(self, at: Progress, line: dict[str, Any]) -> None:
        """At the end of a tick, before its line is logged: add figures to it."""

    def show(self, at: Progress, line: Mapping[str, Any]) -> None:
        """Before a checkpoint is written: write pictures and exports."""


@dataclass(frozen=True)
class Plan:
    """How long a run is and how often it reports, all in units."""

    command: str
    """Names the progress bar and the kind of the checkpoint."""
    total: int
    tick: int
    """A line of the log every so many units; a snapshot ends a tick too."""
    snapshot: int
    """A checkpoint every so many units, and at the end."""
    unit: str = "step"
    pictures: int = 0
    """Pictures in a unit, for the log's "kimg"; 0 leaves that out."""
    units_per_step: int = 1
    """Units in a step, for checkpoints that hold the number of the step alone."""
    remedy: str = "lower --learning-rate or use --precision float32"
    """What to do about a loss that is not finite: options that a resumed run may change (`storage.runs.CHANGEABLE`)."""
    postfix: Mapping[str, str] = field(default_factory=dict)
    """Figures beside the progress bar, by name, and how they are formatted."""
    tracker: TrackerName = "none"
    kept: frozenset[int] = frozenset()
    """After these steps there is a checkpoint too, which stays under a name of its own."""
    draws: bool = False
    """Whether steps draw from torch's default generators: a checkpoint then holds their states, of every device."""


def saved_state(folder: Path, plan: Plan) -> dict[str, Any] | None:
    """The newest checkpoint of a run's folder; None if it has none. Raises UserError if it cannot be used."""
    if not checkpoint.has_checkpoint(folder):
        return None
    state = checkpoint.load_latest(folder, kind=plan.command)
    try:
        progress = progress_of(state, plan)
        if not (is_whole(progress.step, 0, 1 << 53) and is_whole(progress.done, 0, 1 << 53)):
            raise ValueError("its step is no number of a step")
    except (KeyError, ValueError, TypeError, OverflowError) as error:
        raise _unsuitable(error) from None
    print(f"resuming {printable(folder)} at {plan.unit} {progress.done} of {plan.total}")
    return state


def progress_of(state: Mapping[str, Any], plan: Plan) -> Progress:
    """How far the run was whose checkpoint holds `state`."""
    step = int(state["step"])
    return Progress(step, int(state.get("shown", step * plan.units_per_step)))


def resume(work: Work, plan: Plan, folder: Path) -> Progress:
    """Load a run's checkpoint into `work`; the beginning if there is none. Raises UserError if it cannot be used."""
    state = saved_state(folder, plan)
    if state is None:
        return Progress()
    load_state(work, plan, state)
    return progress_of(state, plan)


def load_state(work: Work, plan: Plan, state: dict[str, Any]) -> None:
    """Give `work`, and torch's generators if it draws from them, the state of a checkpoint.

    Raises UserError if it is one of other options, or makes no sense.
    """
    try:
        work.load_state_dict(state)
        if plan.draws:
            randomness.restore_generators(state)
    except UserError:
        raise
    except (KeyError, IndexError, RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise _unsuitable(error) from None


def _unsuitable(error: Exception) -> UserError:
    missing = f"{error.args[0]} is missing" if isinstance(error, KeyError) and error.args else str(error)
    return UserError(f"the checkpoint does not belong to these options ({' '.join(missing.split())[:120]}); choose another --out")


def run(work: Work, plan: Plan, folder: Path, start: Progress) -> None:
    """All steps from `start` to the end, with log, progress bar and checkpoints in `folder`.

    Raises UserError if a statistic is not finite, a file cannot be written or a package is missing; the last checkpoint stays.
    """
    at, means, began = start, Means(), time.perf_counter()
    bar = tqdm(total=plan.total, initial=at.done, unit=plan.unit, desc=plan.command, mininterval=1.0, dynamic_ncols=True)
    with tracking(plan.tracker, folder) as tracker, bar, JsonLines(folder / "log.jsonl", resume_step=at.step) as log:
        _log_changes(log, folder, at)
        while at.done < plan.total:
            before, at = at, advance(work, plan, folder, at, means)
            bar.update(at.done - before.done)
            saving = at.done >= plan.total or _passed(before, at, plan.snapshot) or at.step in plan.kept
            if saving:
                _check_state(work, plan, folder, at)
            if not saving and not _passed(before, at, plan.tick):
                continue
            line: dict[str, Any] = {"step": at.step}
            if plan.pictures:
                line["kimg"] = at.done * plan.pictures / 1000
            line |= means.take()
            work.measure(at, line)
            line["seconds"] = time.perf_counter() - began
            log.append(line)
            tracker.figures(line, at.step)
            bar.set_postfix({name: format(line[name], form) for name, form in plan.postfix.items() if name in line})
            if saving:
                work.show(at, line)
                tracker.pictures(at.step)
                checkpoint.save_latest(folder, state_of(work, at, plan), kind=plan.command)
                if at.step in plan.kept:
                    checkpoint.keep_newest(folder, f"checkpoint-{at.step:07d}.pt")


def advance(work: Work, plan: Plan, folder: Path, at: Progress, means: Means) -> Progress:
    """One step. Raises UserError if a statistic of it is not finite."""
    try:
        return Progress(at.step + 1, at.done + work.step(at, means))
    except NotFinite as error:
        raise _stopped(plan, folder, f"the loss is not finite at step {at.step + 1} ({error})") from None
    finally:
        memory.trim()


def _check_state(work: Work, plan: Plan, folder: Path, at: Progress) -> None:
    """Raise UserError instead of showing, exporting and saving weights that are not finite: the checkpoint before stays."""
    name = checkpoint.not_finite(state_of(work, at, plan))
    if name is not None:
        raise _stopped(plan, folder, f"the state is not finite after step {at.step} ({name})")


def _stopped(plan: Plan, folder: Path, what: str) -> UserError:
    """The sentence for a training that has diverged, with the advice that can be followed there."""
    if checkpoint.has_checkpoint(folder):
        kept = f"the last good state is in {folder / checkpoint.NEWEST}"
        advice = f"{plan.remedy} and give the same command again, which resumes from there, or start anew in another --out"
    else:
        kept = "there is no good state yet"
        advice = f"{plan.remedy} and give the same command again, which starts anew"
    return UserError(f"{what}, so training stopped, and {kept}: {advice}")


def _log_changes(log: JsonLines, folder: Path, at: Progress) -> None:
    """A line of the log for options that resuming changed. It comes before the note that it is there, so that none is lost."""
    changes = changes_to_log(folder)
    if changes:
        log.append({"step": at.step, "changed": {change["option"]: [change["from"], change["to"]] for change in changes}})
        mark_logged(folder, at.step)


def state_of(work: Work, at: Progress, plan: Plan) -> dict[str, Any]:
    """What a checkpoint holds."""
    return {"step": at.step, "shown": at.done, **work.state_dict(), **(randomness.generator_states() if plan.draws else {})}


def _passed(before: Progress, at: Progress, interval: int) -> bool:
    """Whether a multiple of `interval` units was reached since `before`."""
    return at.done // interval > before.done // interval
