# SPDX-License-Identifier: Apache-2.0
"""Options that depend on one another: the objective with its constants, learning rates, what does not go together."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from gangealing_fast.adversarial import objectives
from gangealing_fast.adversarial.objectives import Objective
from gangealing_fast.pretraining.config import PretrainConfig
from gangealing_fast.runtime.errors import UserError

STYLEGAN2_LEARNING_RATE = 0.002


def make_objective(config: PretrainConfig) -> Objective:
    """The objective with the constants of `--objective-options`. Raises UserError where they are no numbers or not known."""
    options = {}
    for text in config.objective_options:
        name, _, value = text.partition("=")
        try:
            options[name] = float(value)
        except ValueError:
            raise UserError(f"--objective-options takes NAME=NUMBER, got {text}") from None
        if not math.isfinite(options[name]):
            raise UserError(f"--objective-options takes finite numbers, got {text}")
    try:
        objective = objectives.make(config.objective, **options)
        told = objective.classes or (objective.categories and config.labels)
        if told and len(config.digit) > 1 and "classes" not in options:
            objective = objectives.make(config.objective, **options, classes=len(config.digit))
    except ValueError as error:
        raise UserError(str(error)) from None
    if config.critic_steps > 0:
        objective = dataclasses.replace(objective, critic_steps=lambda step: config.critic_steps)
    return objective


def resolved(config: PretrainConfig, objective: Objective) -> PretrainConfig:
    """`config` with numbers for what depends on architecture and objective. Raises UserError where options do not fit together."""
    stylegan2 = config.architecture == "stylegan2"
    suggested = objective.optimiser
    changes: dict[str, Any] = {}
    if config.generator_learning_rate is None:
        changes["generator_learning_rate"] = STYLEGAN2_LEARNING_RATE if stylegan2 else suggested.generator_learning_rate
    if config.critic_learning_rate is None:
        changes["critic_learning_rate"] = STYLEGAN2_LEARNING_RATE if stylegan2 else suggested.critic_learning_rate
    if config.r1 is None:
        changes["r1"] = objective.r1 if stylegan2 else 0.0
    config = dataclasses.replace(config, **changes)
    if config.conditional and (stylegan2 or not config.digit or objective.output == "autoencoder"):
        raise UserError("--conditional needs classes: give --digit and --architecture dcgan, and an objective without autoencoder")
    if config.conditional and config.discriminator == "projected":
        raise UserError("--conditional needs a critic that takes classes; leave out --discriminator projected")
    if objective.output == "autoencoder" and config.discriminator == "projected":
        raise UserError(f"--objective {objective.name} needs an autoencoder as its critic; leave out --discriminator projected")
    if objective.output == "autoencoder" and config.r1:
        raise UserError(f"--r1 penalises a score, but the critic of {objective.name} is an autoencoder; leave out --r1")
    _check_classes(config, objective)
    if not 0 <= config.truncation <= 1 or (config.truncation < 1 and not stylegan2):
        raise UserError(f"--truncation must be in [0, 1], below 1 with --architecture stylegan2 alone, got {config.truncation}")
    if config.path_length and not stylegan2:
        raise UserError("--path-length regularises how styles move the picture; it needs --architecture stylegan2")
    return config


def _check_classes(config: PretrainConfig, objective: Objective) -> None:
    """Raise UserError where classes, codes or a critic of several outputs do not go with the other options."""
    name, codes = f"--objective {objective.name}", objective.codes
    if (objective.classes or config.labels) and len(config.digit) < 2:
        raise UserError(f"{name} learns from the classes of pictures: give --digit with several classes of MNIST")
    if objective.classes and objective.classes != len(config.digit):
        given = f"{objective.classes} classes, but --digit names {len(config.digit)}"
        raise UserError(f"{name} has {given}; leave out classes=... or give as many")
    if config.labels and not objective.categories:
        raise UserError(f"{name} cannot learn from some labels; take catgan or semi-supervised, or leave out --labels")
    if config.labels and objective.categories < len(config.digit):
        raise UserError(f"{name} has {objective.categories} classes, but --digit names {len(config.digit)}; leave out classes=...")
    if config.conditional and (objective.classes or codes is not None):
        raise UserError(f"{name} tells the generator by itself what to show; leave out --conditional")
    if objective.outputs > 1 and config.discriminator == "projected":
        raise UserError(f"{name} needs a critic with {objective.outputs} outputs; leave out --discriminator projected")
    if codes is not None and config.latent_dim <= codes.length:
        raise UserError(f"{name} puts {codes.length} codes into the latent: give a --latent-dim above that")
