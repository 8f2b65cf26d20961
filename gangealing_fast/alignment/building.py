# SPDX-License-Identifier: Apache-2.0
"""Networks, optimisers and the training step of a fresh run, from its options."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from torch import nn

from gangealing_fast.alignment import options
from gangealing_fast.alignment.chosen import begin_at_pictures
from gangealing_fast.alignment.config import TrainConfig
from gangealing_fast.alignment.options import Clusters, Schedule, Targets, Weights
from gangealing_fast.alignment.poses import PoseRange
from gangealing_fast.alignment.schedules import ema_decay
from gangealing_fast.alignment.step import AlignmentStep
from gangealing_fast.alignment.templates import start_templates
from gangealing_fast.checkpoints.reading import load_generator
from gangealing_fast.models.generator import Generator
from gangealing_fast.models.latent_target import LatentTarget, principal_components
from gangealing_fast.models.layers import activation_format
from gangealing_fast.models.perceptual import build_perceptual
from gangealing_fast.models.spatial_transformer import FLOW_BLOCKS, SpatialTransformer
from gangealing_fast.runtime.distributed import Group
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.runtime.precision import autocast, resolve
from gangealing_fast.runtime.randomness import private_stream
from gangealing_fast.runtime.text import printable
from gangealing_fast.training.optim import AdamEma

# Samples of 128² whose activations fit comfortably beside everything else in a few GB.
PIXELS_PER_PASS = 8 * 256 * 256


def build(config: TrainConfig, group: Group, *, flow_blocks: int = FLOW_BLOCKS) -> AlignmentStep:
    """Networks, optimisers and weights of a fresh run; what takes long, process 0 alone computes, and hands to the others later.

    flow_blocks: residual blocks of the flow's trunk, for runs that earlier versions began.
    Raises UserError for options that do not fit together.
    """
    device = group.device
    options.check(config, processes=group.world, on_cuda=device.type == "cuda")
    assert config.generator is not None  # as options.check made sure
    generator = load_generator(config.generator).to(device)
    options.check_generator(config, generator)
    transformer = make_transformer(config, generator.size, flow_blocks).to(device)
    transformer.to(memory_format=activation_format())
    perceptual = make_perceptual(config, group)
    target = make_target(config, generator, group)
    if config.template:
        target = begin_at_pictures(config, target, generator, perceptual, group)
    dtype = resolve(config.precision, device)
    if config.clusters > 1 and not config.single_steps and not config.template and group.lead:
        with autocast(device, dtype):
            start_templates(
                target,
                generator,
                perceptual,
                config.flow_size,
                candidates=config.cluster_candidates,
                inject=config.inject,
                truncation=config.truncation,
            )
    average = copy.deepcopy(transformer).eval().requires_grad_(False)
    decay = ema_decay(half_life=config.average_half_life)
    return AlignmentStep(
        generator=generator,
        transformer=transformer,
        average=average,
        target=target,
        perceptual=perceptual,
        transformer_optimizer=AdamEma(transformer.parameters(), config.learning_rate, averages=average.parameters(), decay=decay),
        target_optimizer=AdamEma(target.parameters(), config.target_learning_rate),
        batch=config.batch,
        micro_batch=config.micro_batch or max(1, min(config.batch, PIXELS_PER_PASS // generator.size**2)),
        schedule=Schedule.of(config),
        weights=Weights.of(config),
        warping=options.warping_in_training(config),
        targets=Targets.of(config),
        clusters=Clusters.of(config),
        poses=PoseRange.of(config),
        sample_from_full_resolution=config.sample_from_full_resolution,
        truncation=config.truncation,
        dtype=dtype,
        seed=config.seed,
        group=group,
        compiled=config.compile,
        cuda_graphs=config.cuda_graphs,
    )


def make_transformer(config: TrainConfig, size: int, flow_blocks: int = FLOW_BLOCKS) -> SpatialTransformer:
    """A fresh transformer for samples of side `size`. Raises UserError for options that it refuses."""
    try:
        return SpatialTransformer(
            tuple(config.transforms.split(",")),
            config.flow_size,
            size,
            config.channel_multiplier,
            config.clusters,
            max_channels=config.max_channels,
            channel_base=config.channel_base,
            trunk=config.trunk,
            flow_blocks=flow_blocks,
            flow_trunk=config.flow_trunk,
        )
    except ValueError as error:
        raise UserError(f"the transformer's options do not fit: {error}") from None


def make_target(config: TrainConfig, generator: Generator, group: Group) -> LatentTarget:
    """The templates' latents, at the generator's mean, free along its principal directions."""
    components = principal_components(
        generator.map,
        generator.latent_dim,
        components=config.directions,
        samples=config.principal_samples if group.lead else 2,
        device=group.device,
    )
    return LatentTarget(components.directions, components.mean, config.clusters).to(group.device)


def make_perceptual(config: TrainConfig, group: Group) -> Any:
    """The perceptual distance that the options name; one that has to be learned first is."""
    choices: dict[str, Any] = {}
    if config.perceptual == "efficientnet":
        choices["min_size"] = config.perceptual_size
    elif config.perceptual == "self":
        choices["weights"] = config.perceptual_weights or learn_perceptual(config, group)
    elif config.perceptual_weights is not None:
        choices["backbone"] = config.perceptual_weights
    perceptual: nn.Module = build_perceptual(config.perceptual, **choices)
    return perceptual.to(group.device)


def learn_perceptual(config: TrainConfig, group: Group) -> Path:
    """Weights of the self-supervised distance, learned (or gone on learning) by process 0 beside the run's folder."""
    # Only here: few runs need it.
    from gangealing_fast.contrastive.config import ContrastConfig
    from gangealing_fast.contrastive.training import run as contrast

    folder = config.out.with_name(f"{config.out.name}-perceptual")
    if not group.lead:
        group.wait("the perceptual distance")
        return folder
    print(f"learning the perceptual distance first, in {printable(folder)}")
    options = ContrastConfig(
        out=folder,
        data=config.data,
        generator=config.generator,
        size=max(16, config.flow_size),
        steps=config.perceptual_steps,
        mirror=not config.digit,
        truncation=config.truncation,
        ops=config.ops,
        reuse_memory=config.reuse_memory,
        seed=config.seed,
        threads=config.threads,
        device=config.device,
    )
    with private_stream(config.seed):  # whether this was done before must not show in the run
        contrast(options)
    group.wait("the perceptual distance")
    return folder
