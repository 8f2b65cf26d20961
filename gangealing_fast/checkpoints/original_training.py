# SPDX-License-Identifier: Apache-2.0
"""Where the original's training stood: weights, running average, template and the moments of both optimisers, by names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gangealing_fast.checkpoints.pickles import read_torch
from gangealing_fast.checkpoints.reading import Parts, read
from gangealing_fast.models.spatial_transformer import CONSTANT_BUFFERS
from gangealing_fast.runtime.errors import UserError

MOMENTS = ("exp_avg", "exp_avg_sq")
BETAS, EPSILON = (0.9, 0.999), 1e-8
_NEEDED = ("t", "t_ema", "t_optim", "ll", "ll_optim")

Moments = dict[str, dict[str, Tensor]]
"""By a weight's name: `step` `[]`, the number of its updates; `exp_avg` and `exp_avg_sq`, of the weight's shape."""


@dataclass
class OriginalTraining:
    """parts: as `reading.read` finds them, their transformer the running average. transformer: the weights in training. step: how
    many updates there were. epoch: where the learning rates' schedule stands, None if the file does not say."""

    parts: Parts
    transformer: dict[str, Tensor]
    transformer_moments: Moments
    target_moments: Moments
    step: int
    epoch: int | None


def read_training(path: Path) -> OriginalTraining:
    """What a checkpoint of the original's training holds. Raises UserError for anything else, and for moments that do not fit."""
    parts = read(path)
    if parts.transformer is None or parts.target is None or parts.origin != "GANgealing (original)":
        raise UserError(f"{path} is no checkpoint of the original's training; give one to --start-from, or leave it out")
    content = read_torch(path)
    missing = [name for name in _NEEDED if not isinstance(content.get(name), dict)]
    if missing:
        raise UserError(
            f"{path} cannot be trained further, because {missing[0]} is missing in it; give the file that training wrote"
        )
    single = not any(key.startswith("stns.") for key in content["t"])
    weights = {key: value for key, value in content["t"].items() if key.rsplit(".", 1)[-1] not in CONSTANT_BUFFERS}
    transformer = {f"stns.0.{key}" if single else key: value.float() for key, value in weights.items()}
    _compare(path, transformer, parts.transformer.state_dict())
    moments = _moments(path, "t_optim", content["t_optim"], transformer)
    target_moments = _moments(path, "ll_optim", content["ll_optim"], {"coefficients": content["ll"]["coefficients"]})
    steps = {int(found["step"]) for found in moments.values()}
    if len(steps) > 1:
        raise UserError(f"{path} cannot be trained further: its weights were updated {min(steps)} to {max(steps)} times")
    schedule = content.get("t_sched")
    epoch = schedule.get("last_epoch") if isinstance(schedule, dict) else None
    return OriginalTraining(
        parts, transformer, moments, target_moments, steps.pop() if steps else 0, None if epoch is None else int(epoch)
    )


def _compare(path: Path, found: dict[str, Tensor], average: dict[str, Tensor]) -> None:
    """Raise UserError unless the weights in training are those of the running average in name and shape, and finite."""
    for name in sorted(found.keys() | average.keys()):
        if name not in found or name not in average or found[name].shape != average[name].shape:
            raise UserError(f"{path} cannot be trained further: {name} differs between t and t_ema")
        if not torch.isfinite(found[name]).all():
            raise UserError(f"{path} cannot be trained further: {name} of t holds values that are not finite")


def _moments(path: Path, name: str, optimizer: dict[str, Any], weights: dict[str, Tensor]) -> Moments:
    """The moments of Adam by the weights' names: it numbers them in the order in which the state dict lists them."""
    try:
        groups, state = optimizer["param_groups"], optimizer["state"]
        numbers = [number for group in groups for number in group["params"]]
        if len(numbers) != len(weights):
            raise ValueError(f"it has {len(numbers)} weights, the network {len(weights)}")
        for group in groups:
            if tuple(group["betas"]) != BETAS or group["eps"] != EPSILON or group.get("weight_decay") or group.get("amsgrad"):
                raise ValueError("it is not Adam with betas 0.9 and 0.999 and epsilon 1e-8")
        found: Moments = {}
        for number, (key, weight) in zip(numbers, weights.items(), strict=True):
            if number not in state:  # never updated, as the template's if that was frozen
                continue
            entry = {moment: state[number][moment].float() for moment in MOMENTS}
            for moment, value in entry.items():
                if value.shape != weight.shape or not torch.isfinite(value).all():
                    raise ValueError(f"{moment} of {key} is not finite or not of the shape {list(weight.shape)}")
            found[key] = {"step": torch.tensor(float(state[number]["step"])), **entry}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{path} cannot be trained further: {name} cannot be used ({reason[:160]})") from None
    return found
