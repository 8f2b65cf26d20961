# SPDX-License-Identifier: Apache-2.0
"""The loop behind `python -m gangealing_fast.train`: step, tick, snapshot, one JSON line of statistics, report."""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from gangealing_fast.alignment import results
from gangealing_fast.alignment.config import ASSETS, TrainConfig
from gangealing_fast.alignment.evaluation import Evaluation
from gangealing_fast.alignment.poses import PoseRange
from gangealing_fast.alignment.schedules import ema_decay
from gangealing_fast.alignment.step import AlignmentStep, NotFinite
from gangealing_fast.alignment.templates import start_templates
from gangealing_fast.checkpoints.reading import load_generator
from gangealing_fast.models.latent_target import LatentTarget, principal_components
from gangealing_fast.models.layers import activation_format
from gangealing_fast.models.perceptual import build_perceptual
from gangealing_fast.models.spatial_transformer import SpatialTransformer
from gangealing_fast.runtime import memory
from gangealing_fast.runtime.distributed import Group, join
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.runtime.precision import autocast, resolve
from gangealing_fast.runtime.randomness import private_stream
from gangealing_fast.runtime.setup import prepare_process
from gangealing_fast.storage import checkpoint
from gangealing_fast.storage.files import JsonLines
from gangealing_fast.storage.runs import open_run
from gangealing_fast.training.optim import AdamEma

CHECKPOINT_KIND = "train"
# Samples of 128² whose activations fit comfortably beside everything else in a few GB.
PIXELS_PER_PASS = 8 * 256 * 256


def build(config: TrainConfig, group: Group) -> AlignmentStep:
    """Networks, optimisers and weights of a fresh run; what takes long, process 0 alone computes, for `run` to hand to the others.

    Raises UserError for options that do not fit together.
    """
    device = group.device
    if config.batch < 1 or config.steps < 1 or config.snapshot < 1:
        raise UserError("--batch, --steps and --snapshot must be at least 1")
    if config.batch < group.world:
        raise UserError(f"--batch {config.batch} is less than one sample for each of the {group.world} processes; raise it")
    if ASSETS in config.generator.parents and not config.generator.exists():
        name = config.generator.parent.name
        raise UserError(
            f"this version ships no generator of {name}: train one with python -m gangealing_fast.pretrain --preset {name} "
            "--data YOUR_PICTURES, and name its generator.safetensors with --generator"
        )
    if config.cuda_graphs and device.type != "cuda":
        raise UserError("--cuda-graphs needs a CUDA device; leave it out here")
    generator = load_generator(config.generator).to(device)
    if generator.size < config.flow_size or generator.size % config.flow_size:
        raise UserError(
            f"{config.generator} makes pictures of {generator.size}x{generator.size}, which --flow-size {config.flow_size} "
            "does not divide; choose a --flow-size of that size or a power of two below it"
        )
    if config.clusters < 1 or config.cluster_candidates < config.clusters:
        raise UserError("--clusters must be at least 1, and --cluster-candidates no fewer")
    if config.single_steps and (config.clusters == 1 or not config.anneal_psi <= config.single_steps < config.steps):
        raise UserError("--single-steps needs --clusters 2 or more, and must lie between --anneal-psi and --steps")
    if min(config.iters, config.iters_in_use) < 1:
        raise UserError(f"--iters and --iters-in-use must be at least 1, got {config.iters} and {config.iters_in_use}")
    if config.keep_area and (config.transforms != "similarity" or config.clusters > 1 or config.flips):
        raise UserError("--keep-area needs --transforms similarity, one cluster and no flips")
    low, high = config.pose_scale
    if not (0 < low <= high and config.pose_rotation >= 0 and config.pose_shift >= 0 and config.equivariance_weight >= 0):
        raise UserError(
            "--pose-scale takes two factors above 0, the smaller first; --pose-rotation, --pose-shift and --equivariance-weight "
            f"must not be negative; got {low} {high}, {config.pose_rotation}, {config.pose_shift}, {config.equivariance_weight}"
        )
    if not 1 <= config.inject <= generator.n_latent:
        raise UserError(f"--inject must lie between 1 and the generator's {generator.n_latent} latents, got {config.inject}")
    try:
        transformer = SpatialTransformer(
            tuple(config.transforms.split(",")),
            config.flow_size,
            generator.size,
            config.channel_multiplier,
            config.clusters,
            max_channels=config.max_channels,
            channel_base=config.channel_base,
            trunk=config.trunk,
        ).to(device)
    except ValueError as error:
        raise UserError(f"the transformer's options do not fit: {error}") from None
    transformer.to(memory_format=activation_format())
    components = principal_components(
        generator.map,
        generator.latent_dim,
        components=config.directions,
        samples=config.principal_samples if group.lead else 2,
        device=device,
    )
    target = LatentTarget(components.directions, components.mean, config.clusters).to(device)
    options: dict[str, Any] = {"min_size": config.perceptual_size} if config.perceptual == "efficientnet" else {}
    if config.perceptual == "lpips" and config.perceptual_weights is not None:
        options["backbone"] = config.perceptual_weights
    elif config.perceptual == "self":
        options["weights"] = config.perceptual_weights or learn_perceptual(config, group)
    micro = config.micro_batch or max(1, min(config.batch, PIXELS_PER_PASS // generator.size**2))
    perceptual = build_perceptual(config.perceptual, **options).to(device)
    dtype = resolve(config.precision, device)
    if config.clusters > 1 and not config.single_steps and group.lead:
        with autocast(device, dtype):
            start_templates(
                target, generator, perceptual, config.flow_size, candidates=config.cluster_candidates, inject=config.inject
            )
    average = copy.deepcopy(transformer).eval().requires_grad_(False)
    return AlignmentStep(
        generator=generator,
        transformer=transformer,
        average=average,
        target=target,
        perceptual=perceptual,
        transformer_optimizer=AdamEma(
            transformer.parameters(),
            config.learning_rate,
            averages=average.parameters(),
            decay=ema_decay(half_life=config.average_half_life),
        ),
        target_optimizer=AdamEma(target.parameters(), config.target_learning_rate),
        batch=config.batch,
        micro_batch=micro,
        anneal_psi=config.anneal_psi,
        psi_shape=config.psi_shape,
        period=config.period,
        inject=config.inject,
        learning_rate=config.learning_rate,
        target_learning_rate=config.target_learning_rate,
        tv_weight=config.tv_weight,
        identity_weight=config.identity_weight,
        padding_mode=config.padding_mode,
        iters=config.iters,
        poses=PoseRange.of(config),
        equivariance_weight=config.equivariance_weight,
        freeze_target=config.freeze_target,
        flips=config.flips,
        sample_from_full_resolution=config.sample_from_full_resolution,
        dtype=dtype,
        single_steps=config.single_steps,
        cluster_candidates=config.cluster_candidates,
        seed=config.seed,
        group=group,
        compiled=config.compile,
        cuda_graphs=config.cuda_graphs,
    )


def learn_perceptual(config: TrainConfig, group: Group) -> Path:
    """Weights of the self-supervised distance, learned (or gone on learning) by process 0 beside the run's folder."""
    # Only here: few runs need it.
    from gangealing_fast.contrastive.config import ContrastConfig
    from gangealing_fast.contrastive.training import run as contrast

    folder = config.out.with_name(f"{config.out.name}-perceptual")
    if not group.lead:
        group.wait("the perceptual distance")
        return folder
    print(f"learning the perceptual distance first, in {folder}")
    options = ContrastConfig(
        out=folder,
        data=config.data,
        generator=config.generator,
        size=max(16, config.flow_size),
        steps=config.perceptual_steps,
        mirror=not config.digit,
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


def run(config: TrainConfig) -> Evaluation | None:
    """Train, or go on training, then evaluate and write the report; returns the evaluation, None in all processes but the first.

    Raises UserError for a user's mistakes.
    """
    with join(config.device, config.patience) as group:
        return _run(config, group)


def _run(config: TrainConfig, group: Group) -> Evaluation | None:
    prepare_process(config)
    torch.manual_seed(config.seed)
    trainer = build(config, group)
    real, saved = None, state(trainer, 0)
    if group.lead:
        real = results.real_pictures(config, trainer.generator.size)
        if open_run(config.out, "train", config) and checkpoint.has_checkpoint(config.out):
            saved = checkpoint.load_latest(config.out, kind=CHECKPOINT_KIND)
            print(f"resuming {config.out} at step {saved['step']} of {config.steps}")
    start = restore(group.from_lead(saved, "the first weights"), trainer)
    if not group.lead:
        for index in range(start, config.steps):
            _step(config, trainer, index)
        return None
    with JsonLines(config.out / "log.jsonl", resume_step=start) as log:
        warnings = train(config, trainer, real, log, start)
    results.finish(config, trainer)
    results.export(config, trainer)
    evaluation = results.evaluate(config, trainer, real)
    results.write_report(config, trainer, evaluation, warnings)
    results.print_figures(evaluation.figures)
    return evaluation


def _step(config: TrainConfig, trainer: AlignmentStep, index: int) -> dict[str, float]:
    try:
        return trainer.step(index)
    except NotFinite as error:
        raise UserError(
            f"{error}; training stopped and the last good state is in {config.out}: lower --learning-rate, raise --batch "
            "or use --precision float32 in a new --out"
        ) from None
    finally:
        memory.trim()


def train(config: TrainConfig, trainer: AlignmentStep, real: Tensor | None, log: JsonLines, start: int) -> list[str]:
    """All steps from `start` to the end; returns the warnings given on the way."""
    tick = max(1, config.snapshot // 10)
    sums: dict[str, float] = {}
    count, began, warnings = 0, time.perf_counter(), dict.fromkeys(())
    board = _tensorboard(config)
    progress = tqdm(total=config.steps, initial=start, unit="step", desc="train", mininterval=1.0, dynamic_ncols=True)
    for index in range(start, config.steps):
        statistics = _step(config, trainer, index)
        step = index + 1
        count += 1
        for key, value in statistics.items():
            sums[key] = sums.get(key, 0.0) + value
        progress.update()
        last = step == config.steps
        saving = step % config.snapshot == 0 or last
        # A checkpoint ends a tick too: what a tick has summed up is not part of the state.
        if step % tick == 0 or saving:
            line = {"step": step, "kimg": step * config.batch / 1000} | {key: value / count for key, value in sums.items()}
            sums, count = {}, 0
            for warning in results.health(trainer, step, config):
                if warning not in warnings:
                    warnings[warning] = None
                    progress.write(f"warning at step {step}: {warning}")
            line["seconds"] = time.perf_counter() - began
            log.append(line)
            for key, value in line.items() if board is not None else ():
                board.add_scalar(key, value, step)
            progress.set_postfix(loss=f"{line['loss']:.4f}", psi=f"{line['psi']:.2f}")
        if saving:
            results.pictures(config, trainer, real, step)
            checkpoint.save_latest(config.out, state(trainer, step), kind=CHECKPOINT_KIND)
    progress.close()
    return list(warnings)


def _tensorboard(config: TrainConfig) -> Any:
    if not config.tensorboard:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError("--tensorboard needs the package tensorboard (pip install tensorboard)") from None
    return SummaryWriter(str(config.out / "tensorboard"))


def state(trainer: AlignmentStep, step: int) -> dict[str, Any]:
    """Everything a resumed run needs, whatever the number of its processes: random numbers are derived from seed, step and row."""
    return {
        "step": step,
        "transformer_config": trainer.transformer.config(),
        "transformer": trainer.transformer.state_dict(),
        "average": trainer.average.state_dict(),
        "target": trainer.target.state_dict(),
        "transformer_optimizer": trainer.transformer_optimizer.state_dict(),
        "target_optimizer": trainer.target_optimizer.state_dict(),
        "loss_scale": trainer.loss_scale.state_dict(),
    }


def restore(saved: dict[str, Any], trainer: AlignmentStep) -> int:
    """Load what `state` returned; the number of steps done."""
    try:
        trainer.transformer.load_state_dict(saved["transformer"])
        trainer.average.load_state_dict(saved["average"])
        trainer.target.load_state_dict(saved["target"])
        trainer.transformer_optimizer.load_state_dict(saved["transformer_optimizer"])
        trainer.target_optimizer.load_state_dict(saved["target_optimizer"])
        trainer.loss_scale.load_state_dict(saved["loss_scale"])
        # The step of that number is still to come, and begins with the split.
        trainer.is_split = int(saved["step"]) > trainer.single_steps or trainer.is_split
        return int(saved["step"])
    except (KeyError, RuntimeError, ValueError, TypeError) as error:
        raise UserError(f"the checkpoint does not belong to these options ({str(error)[:120]}); choose another --out") from None
