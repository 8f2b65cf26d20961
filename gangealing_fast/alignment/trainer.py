# SPDX-License-Identifier: Apache-2.0
"""What `python -m gangealing_fast.train` does: steps in the loop of `training.loop`, then figures and the report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from gangealing_fast.alignment import options, results, teaching
from gangealing_fast.alignment.building import build
from gangealing_fast.alignment.config import TrainConfig
from gangealing_fast.alignment.evaluation import Evaluation
from gangealing_fast.alignment.schedules import zero_learning_rate_steps
from gangealing_fast.alignment.step import AlignmentStep, Samples
from gangealing_fast.alignment.taking_over import taken_over
from gangealing_fast.checkpoints.recover import complete
from gangealing_fast.checkpoints.writing import settings_of
from gangealing_fast.models.spatial_transformer import FLOW_BLOCKS, halving_blocks
from gangealing_fast.ops.environment import print_notice
from gangealing_fast.runtime.distributed import Group, join
from gangealing_fast.runtime.setup import prepare_process
from gangealing_fast.storage.checkpoint import has_checkpoint, load_latest
from gangealing_fast.storage.runs import open_run
from gangealing_fast.training import loop
from gangealing_fast.training.loop import Means, Plan, Progress
from gangealing_fast.training.optim import restore

COMMAND = "train"
STORED = ("transformer", "average", "target", "transformer_optimizer", "target_optimizer", "loss_scale")
"""What of the training step a checkpoint holds."""


@dataclass
class Training:
    """The work of `train` in the loop. real: pictures `[N, 3, S, S]` to watch the run on, if any."""

    config: TrainConfig
    trainer: AlignmentStep
    real: Tensor | None = None
    warnings: dict[str, None] = field(default_factory=dict)
    """What went wrong on the way, each once, in order."""
    watched: tuple[int, Samples] | None = None
    """The samples that were looked at last, and after which step."""

    def step(self, at: Progress, means: Means) -> int:
        means.add(self.trainer.step(at.step))
        return 1

    def watch(self, step: int) -> Samples:
        """Samples of fixed latents as they are aligned after `step`; made once for all that look at them."""
        if self.watched is None or self.watched[0] != step:
            self.watched = (step, results.watch(self.trainer, step))
        return self.watched[1]

    def measure(self, at: Progress, line: dict[str, Any]) -> None:
        """Nothing is added to the line; warnings are said when they come up first."""
        for warning in results.health(self.watch(at.step), at.step, self.config):
            if warning not in self.warnings:
                self.warnings[warning] = None
                tqdm.write(f"warning at step {at.step}: {warning}")

    def show(self, at: Progress, line: Mapping[str, Any]) -> None:
        results.pictures(self.config, self.trainer, self.watch(at.step), self.real, at.step)

    def state_dict(self) -> dict[str, Any]:
        """Whatever the number of processes: random numbers are derived from seed, step and row."""
        trainer = self.trainer
        state = {name: getattr(trainer, name).state_dict() for name in STORED}
        use = settings_of(options.warping_in_use(self.config), self.config.inject)
        return {"transformer_config": trainer.transformer.config(), "use": use, **state}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        trainer = self.trainer
        for name in STORED:
            restore(getattr(trainer, name), state[name])
        # The step of that number is still to come, and begins with the split.
        trainer.is_split = int(state["step"]) > trainer.clusters.single_steps or trainer.is_split


def plan_of(config: TrainConfig) -> Plan:
    """Ten lines of the log for each checkpoint."""
    return Plan(
        COMMAND,
        config.steps,
        tick=max(1, config.snapshot // 10),
        snapshot=config.snapshot,
        pictures=config.batch,
        remedy="lower --learning-rate and --target-learning-rate or use --precision float32",
        postfix={"loss": ".4f", "psi": ".2f"},
        tracker=config.tracker,
        kept=frozenset(
            zero_learning_rate_steps(config.anneal_psi, config.period, config.steps) if config.zero_learning_rate else ()
        ),
    )


def run(config: TrainConfig) -> Evaluation | None:
    """Train, or go on training, then evaluate and write the report; returns the evaluation, None in all processes but the first.

    Raises UserError for a user's mistakes.
    """
    print_notice(config.ops)
    if config.teach_from is not None:
        teaching.run(config)
        return None
    with join(config.device, config.patience) as group:
        return _run(config, group)


def _run(config: TrainConfig, group: Group) -> Evaluation | None:
    prepare_process(config)
    if not group.lead:
        return _train(config, group, resuming=False)
    with open_run(config.out, COMMAND, config, pictures={"--data": config.data}) as resuming:
        return _train(config, group, resuming=resuming)


def _train(config: TrainConfig, group: Group, *, resuming: bool) -> Evaluation | None:
    torch.manual_seed(config.seed)
    begun = {"flow_blocks": begun_flow_blocks(config) if group.lead else FLOW_BLOCKS}
    blocks = group.from_lead(begun, "the size of the flow's trunk")["flow_blocks"]
    work, plan = Training(config, build(config, group, flow_blocks=blocks)), plan_of(config)
    start = _begin(work, plan, group, resuming=resuming)
    if not group.lead:
        while start.step < config.steps:
            start = loop.advance(work, plan, config.out, start, Means())
        return None
    loop.run(work, plan, config.out, start)
    return results.finish(config, work.trainer, work.watch(config.steps), work.real, list(work.warnings))


def begun_flow_blocks(config: TrainConfig) -> int:
    """Residual blocks of the flow's trunk in the run that the folder holds: earlier versions began theirs with other numbers than
    the published one, which a new run has. Raises UserError for a checkpoint that cannot be used."""
    if "flow" not in config.transforms or halving_blocks(config.flow_size) == FLOW_BLOCKS or not has_checkpoint(config.out):
        return FLOW_BLOCKS
    begun = load_latest(config.out, kind=COMMAND, say=lambda _: None)["transformer_config"]
    return int(complete(begun)["flow_blocks"])


def _begin(work: Training, plan: Plan, group: Group, *, resuming: bool) -> Progress:
    """Give all processes the weights to begin with: the first ones, those of the checkpoint, or those of the
    original that the run starts from."""
    config, saved = work.config, None
    if group.lead:
        work.real = results.real_pictures(config, work.trainer.generator.size)
        begun = None
        if config.start_from is not None and not has_checkpoint(config.out):
            begun = taken_over(config, work.trainer)
        saved = loop.saved_state(config.out, plan) if resuming else None
        saved = begun if saved is None else saved
    first = loop.state_of(work, Progress(), plan) if saved is None else saved
    state = group.from_lead(first, "the first weights")
    loop.load_state(work, plan, state)
    return loop.progress_of(state, plan)
