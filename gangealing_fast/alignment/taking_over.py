# SPDX-License-Identifier: Apache-2.0
"""Training of the original that goes on here: its checkpoint as the state of a run, and a sentence on what that does not hold."""

from __future__ import annotations

from typing import Any

import torch

from gangealing_fast.alignment.config import TrainConfig
from gangealing_fast.alignment.step import AlignmentStep
from gangealing_fast.checkpoints.original_training import Moments, OriginalTraining, read_training
from gangealing_fast.models.generator import Generator
from gangealing_fast.runtime.errors import UserError

OPTIONS = {
    "anneal_psi": "anneal_psi",
    "anneal_fn": "psi_shape",
    "period": "period",
    "inject": "inject",
    "tv_weight": "tv_weight",
    "flow_identity_weight": "identity_weight",
    "freeze_ll": "freeze_target",
    "stn_lr": "learning_rate",
    "ll_lr": "target_learning_rate",
    "padding_mode": "padding_mode",
    "flips": "flips",
    "sample_from_full_res": "sample_from_full_resolution",
}
"""The original's names of options, and ours."""
FIXED = {"decay": 0.9, "tm": 2}
"""What the original has options for, and this package has not."""


def taken_over(config: TrainConfig, trainer: AlignmentStep) -> dict[str, Any]:
    """The state of a run, as its checkpoints hold it, from the original's checkpoint that the options name.

    Prints what is taken over and what cannot be, and which training options differ from those of the file. Raises UserError for a
    file that cannot be used, or networks that the options do not describe.
    """
    assert config.start_from is not None
    found = read_training(config.start_from)
    _check_networks(config, trainer, found)
    if config.steps <= found.step:
        raise UserError(f"{config.start_from} has {found.step} steps behind it: give a larger --steps than {config.steps}")
    assert found.parts.transformer is not None and found.parts.target is not None
    names = [name for name, _ in trainer.transformer.named_parameters()]
    print(
        f"{config.start_from}: transformer, running average, template and both optimisers are taken over after {found.step} steps; "
        "not its random numbers, which follow from --seed and the step here, nor its perceptual network and log"
    )
    for sentence in _differences(config, trainer, found):
        print(f"notice: {sentence}")
    return {
        "step": found.step,
        "shown": found.step,
        "transformer": found.transformer,
        "average": found.parts.transformer.state_dict(),
        "target": found.parts.target.state_dict(),
        "transformer_optimizer": _state(trainer.transformer_optimizer, names, found.transformer_moments),
        "target_optimizer": _state(trainer.target_optimizer, ["coefficients"], found.target_moments),
        "loss_scale": trainer.loss_scale.state_dict(),
    }


def _state(optimizer: torch.optim.Optimizer, names: list[str], moments: Moments) -> dict[str, Any]:
    """The optimiser's state dict with these moments, of its parameters' `names` in order."""
    state = {number: moments[name] for number, name in enumerate(names) if name in moments}
    return optimizer.state_dict() | {"state": state}


def _check_networks(config: TrainConfig, trainer: AlignmentStep, found: OriginalTraining) -> None:
    """Raise UserError, with the options to give, if the run's networks are not those of the file."""
    there, target = found.parts.transformer, found.parts.target
    assert there is not None and target is not None
    shapes = [{name: value.shape for name, value in module.state_dict().items()} for module in (there, trainer.transformer)]
    if shapes[0] != shapes[1]:
        options = {
            "--transforms": ",".join(there.transforms),
            "--flow-size": there.flow_size,
            "--clusters": there.heads,
            "--channel-multiplier": there.widths.multiplier,
            "--max-channels": there.widths.maximum,
        } | ({} if there.widths.base is None else {"--channel-base": there.widths.base})
        given = " ".join(f"{name} {value}" for name, value in options.items())
        raise UserError(f"{config.start_from} has another transformer than these options say; give {given}")
    if target.directions.shape != trainer.target.directions.shape:
        directions, dimension = target.directions.shape
        raise UserError(
            f"{config.start_from} has {directions} directions of latents of {dimension} numbers: give --directions {directions} "
            "and its own generator"
        )


def _differences(config: TrainConfig, trainer: AlignmentStep, found: OriginalTraining) -> list[str]:
    """Sentences on what the file says that this run does otherwise."""
    path, said = config.start_from, found.parts.options
    sentences = []
    for theirs, ours in OPTIONS.items():
        value = getattr(config, ours)
        if said.get(theirs) is not None and said[theirs] != value:
            option = f"--{ours.replace('_', '-')}"
            sentences.append(f"{path} was trained with {option} {said[theirs]}, this run has {value}")
    for theirs, fixed in FIXED.items():
        if said.get(theirs, fixed) != fixed:
            sentences.append(f"{path} was trained with --{theirs} {said[theirs]}, which is fixed at {fixed} here")
    passed = max(0, found.step - config.anneal_psi)
    epoch = passed // config.period if config.period else 0
    if found.epoch is not None and found.epoch != epoch:
        sentences.append(
            f"its learning rates stand at period {found.epoch}; from its {found.step} steps this run takes period {epoch}"
        )
    if said.get("loss_fn") not in (None, config.perceptual):
        sentences.append(f"{path} was trained with the perceptual distance {said['loss_fn']}, this run has {config.perceptual}")
    if found.parts.generator is not None and not _same(found.parts.generator, trainer.generator):
        sentences.append(f"{config.generator} is another generator than that in {path}")
    return sentences


def _same(a: Generator, b: Generator) -> bool:
    """Whether two generators start from the same constant, which no two trainings share."""
    first, second = a.input.input, b.input.input
    return first.shape == second.shape and torch.equal(first.cpu(), second.cpu())
