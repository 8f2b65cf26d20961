# SPDX-License-Identifier: Apache-2.0
"""The options of `train` as records of what belongs together, and what does not go together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gangealing_fast.alignment.config import ASSETS, TrainConfig
from gangealing_fast.alignment.schedules import PsiShape, learning_rate_factor, psi_at
from gangealing_fast.geometry.warping import Warping
from gangealing_fast.runtime.errors import UserError

if TYPE_CHECKING:
    from gangealing_fast.models.generator import Generator


@dataclass(frozen=True)
class Schedule:
    """What changes with the step: psi falls to 0 within `anneal_psi` steps, then the learning rates follow cosines, the first of
    `period` steps (0: they stay)."""

    anneal_psi: int
    psi_shape: PsiShape = "cosine"
    period: int = 0
    learning_rate: float = 1e-3
    target_learning_rate: float = 1e-2

    @classmethod
    def of(cls, config: TrainConfig) -> Schedule:
        return cls(config.anneal_psi, config.psi_shape, config.period, config.learning_rate, config.target_learning_rate)

    def psi(self, step: int) -> float:
        """Weight of the sample's own latent in its target."""
        return psi_at(step, self.anneal_psi, self.psi_shape)

    def rates(self, step: int) -> tuple[float, float]:
        """Learning rates of the transformer and of the target."""
        factor = learning_rate_factor(step, self.anneal_psi, self.period)
        return self.learning_rate * factor, self.target_learning_rate * factor


@dataclass(frozen=True)
class Weights:
    """How much the terms of the loss count beside the perceptual distance (`losses`)."""

    tv: float = 0.0
    identity: float = 0.0
    equivariance: float = 0.0

    @classmethod
    def of(cls, config: TrainConfig) -> Weights:
        return cls(config.tv_weight, config.identity_weight, config.equivariance_weight)


@dataclass(frozen=True)
class Clusters:
    """flips: whether a sample or its mirror image is aligned. single_steps: so many steps with head 0 alone, before the templates
    are chosen among `candidates` aligned samples; 0 starts with all clusters."""

    flips: bool = False
    single_steps: int = 0
    candidates: int = 256

    @classmethod
    def of(cls, config: TrainConfig) -> Clusters:
        return cls(config.flips, config.single_steps, config.cluster_candidates)


@dataclass(frozen=True)
class Targets:
    """How a sample's target is made: the first `inject` latents are blended with the template's; frozen: the template stays at the
    generator's mean."""

    inject: int
    frozen: bool = False

    @classmethod
    def of(cls, config: TrainConfig) -> Targets:
        return cls(config.inject, config.freeze_target)


def warping_in_training(config: TrainConfig) -> Warping:
    """How samples are warped while the transformer learns."""
    return Warping(config.padding_mode, config.iters)


def warping_in_use(config: TrainConfig) -> Warping:
    """How real pictures are warped: in evaluation, and by whoever uses the aligner."""
    return Warping(config.padding_mode, config.iters_in_use)


def check(config: TrainConfig, *, processes: int, on_cuda: bool) -> None:
    """Raise UserError for options that do not fit together, as far as that shows without the generator."""
    if config.batch < processes:
        raise UserError(f"--batch {config.batch} is less than one sample for each of the {processes} processes; raise it")
    if config.generator is None:
        raise UserError("name what is learned from: --generator generator.safetensors, or --teach-from a set that congeal wrote")
    if ASSETS in config.generator.parents and not config.generator.exists():
        name = config.generator.parent.name
        raise UserError(
            f"this version ships no generator of {name}: train one with python -m gangealing_fast.pretrain --preset {name} "
            "--data YOUR_PICTURES, and name its generator.safetensors with --generator"
        )
    if config.cuda_graphs and not on_cuda:
        raise UserError("--cuda-graphs needs a CUDA device; leave it out here")
    _check_clusters(config)
    _check_templates(config)
    _check_poses(config)


def check_truncation(truncation: float) -> None:
    """Raise UserError for a truncation that is none."""
    if not 0 <= truncation <= 1:
        raise UserError(f"--truncation must be in [0, 1], got {truncation}")


def _check_clusters(config: TrainConfig) -> None:
    if config.cluster_candidates < config.clusters:
        raise UserError(f"--cluster-candidates {config.cluster_candidates} are fewer than --clusters {config.clusters}; raise them")
    if config.single_steps and (config.clusters == 1 or not config.anneal_psi <= config.single_steps < config.steps):
        raise UserError("--single-steps needs --clusters 2 or more, and must lie between --anneal-psi and --steps")
    if config.keep_area and (config.transforms != "similarity" or config.clusters > 1 or config.flips):
        raise UserError("--keep-area needs --transforms similarity, one cluster and no flips")


def _check_templates(config: TrainConfig) -> None:
    if not config.template:
        if config.inverter is not None:
            raise UserError("--inverter finds the latents of --template: name a picture, or leave it out")
        return
    if len(config.template) != config.clusters:
        raise UserError(f"--template takes a picture for each cluster, but there are {len(config.template)} for {config.clusters}")
    if config.single_steps:
        raise UserError("--single-steps chooses templates among samples: leave it out (--single-steps 0) with --template")
    if config.start_from is not None:
        raise UserError("--start-from brings a template with it: leave --template out")
    if config.inverter is None and not config.template_steps:
        raise UserError("--template needs --inverter or --template-steps, as the latent of the picture is to be found")


def _check_poses(config: TrainConfig) -> None:
    low, high = config.pose_scale
    if low > high:
        raise UserError(f"--pose-scale takes two factors, the smaller first, got {low} {high}")


def check_generator(config: TrainConfig, generator: Generator) -> None:
    """Raise UserError for options that do not fit the generator."""
    if generator.size < config.flow_size or generator.size % config.flow_size:
        raise UserError(
            f"{config.generator} makes pictures of {generator.size}x{generator.size}, which --flow-size {config.flow_size} "
            "does not divide; choose a --flow-size of that size or a power of two below it"
        )
    if not 1 <= config.inject <= generator.n_latent:
        raise UserError(f"--inject must lie between 1 and the generator's {generator.n_latent} latents, got {config.inject}")
