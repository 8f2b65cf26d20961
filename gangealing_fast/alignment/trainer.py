# SPDX-License-Identifier: Apache-2.0
"""The loop behind `python -m gangealing_fast.train`: step, tick, snapshot, one JSON line of statistics, report."""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from gangealing_fast import checkpoint, memory
from gangealing_fast.alignment.aligner import EXPORT_KIND
from gangealing_fast.alignment.config import ASSETS, TrainConfig
from gangealing_fast.alignment.evaluation import Evaluation, align_batches, evaluate_digits, evaluate_pictures, held_out
from gangealing_fast.alignment.frame import keep_area
from gangealing_fast.alignment.schedules import ema_decay, psi_at
from gangealing_fast.alignment.step import AlignmentStep, NotFinite, Samples
from gangealing_fast.data.digits import load_heldout_digits, random_similarity, warp_digits
from gangealing_fast.data.pictures import open_pictures
from gangealing_fast.errors import UserError
from gangealing_fast.files import JsonLines
from gangealing_fast.foreign.reading import load_generator
from gangealing_fast.metrics import average_image, identity_grid, inspect_warps
from gangealing_fast.models.latent_target import LatentTarget, principal_components
from gangealing_fast.models.layers import activation_format
from gangealing_fast.models.perceptual import build_perceptual
from gangealing_fast.models.spatial_transformer import SpatialTransformer
from gangealing_fast.optim import AdamEma
from gangealing_fast.precision import resolve
from gangealing_fast.randomness import private_stream
from gangealing_fast.report.pictures import save_grid
from gangealing_fast.report.run import write_run_report
from gangealing_fast.runs import choose_device, open_run, plain, prepare_process

CHECKPOINT_KIND = "train"
WATCHED = 16
# Samples of 128² whose activations fit comfortably beside everything else in a few GB.
PIXELS_PER_PASS = 8 * 256 * 256


def build(config: TrainConfig, device: torch.device) -> AlignmentStep:
    """Networks, optimisers and weights of a fresh run. Raises UserError for options that do not fit together."""
    if config.batch < 1 or config.steps < 1 or config.snapshot < 1:
        raise UserError("--batch, --steps and --snapshot must be at least 1")
    if ASSETS in config.generator.parents and not config.generator.exists():
        name = config.generator.parent.name
        raise UserError(
            f"this version ships no generator of {name}: train one with python -m gangealing_fast.pretrain --preset {name} "
            "--data YOUR_PICTURES, and name its generator.safetensors with --generator"
        )
    generator = load_generator(config.generator).to(device)
    if generator.size < config.flow_size or generator.size % config.flow_size:
        raise UserError(
            f"{config.generator} makes pictures of {generator.size}x{generator.size}, which --flow-size {config.flow_size} "
            "does not divide; choose a --flow-size of that size or a power of two below it"
        )
    if config.keep_area and (config.transforms != "similarity" or config.iters != 1):
        raise UserError("--keep-area needs --transforms similarity and --iters 1")
    if not 1 <= config.inject <= generator.n_latent:
        raise UserError(f"--inject must lie between 1 and the generator's {generator.n_latent} latents, got {config.inject}")
    try:
        transformer = SpatialTransformer(
            tuple(config.transforms.split(",")),
            config.flow_size,
            generator.size,
            config.channel_multiplier,
            max_channels=config.max_channels,
            channel_base=config.channel_base,
        ).to(device)
    except ValueError as error:
        raise UserError(f"the transformer's options do not fit: {error}") from None
    transformer.to(memory_format=activation_format())
    components = principal_components(
        generator.map, generator.latent_dim, components=config.directions, samples=config.principal_samples, device=device
    )
    target = LatentTarget(components.directions, components.mean).to(device)
    options: dict[str, Any] = {"min_size": config.perceptual_size} if config.perceptual == "efficientnet" else {}
    if config.perceptual == "lpips" and config.perceptual_weights is not None:
        options["backbone"] = config.perceptual_weights
    elif config.perceptual == "self":
        options["weights"] = config.perceptual_weights or learn_perceptual(config)
    micro = config.micro_batch or max(1, min(config.batch, PIXELS_PER_PASS // generator.size**2))
    average = copy.deepcopy(transformer).eval().requires_grad_(False)
    return AlignmentStep(
        generator=generator,
        transformer=transformer,
        average=average,
        target=target,
        perceptual=build_perceptual(config.perceptual, **options).to(device),
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
        freeze_target=config.freeze_target,
        sample_from_full_resolution=config.sample_from_full_resolution,
        dtype=resolve(config.precision, device),
    )


def learn_perceptual(config: TrainConfig) -> Path:
    """Weights of the self-supervised distance, learned (or gone on learning) beside the run's folder."""
    # Only here: few runs need it.
    from gangealing_fast.contrastive.config import ContrastConfig
    from gangealing_fast.contrastive.training import run as contrast

    folder = config.out.with_name(f"{config.out.name}-perceptual")
    print(f"learning the perceptual distance first, in {folder}")
    options = ContrastConfig(
        out=folder,
        data=config.data,
        generator=config.generator,
        size=max(16, config.flow_size),
        steps=config.perceptual_steps,
        mirror=config.digit is None,
        seed=config.seed,
        threads=config.threads,
        device=config.device,
    )
    with private_stream(config.seed):  # whether this was done before must not show in the run
        return contrast(options)


def real_pictures(config: TrainConfig, size: int) -> Tensor | None:
    """Held-out real pictures to watch the run on, `[N, 3, size, size]`; None where the options name none."""
    if config.digit is not None:
        digits = load_heldout_digits(config.digit)
        warps = random_similarity(len(digits.images), generator=torch.Generator().manual_seed(7))
        return warp_digits(digits.images, warps)
    if config.data is None:
        return None
    pictures = open_pictures(config.data, size=size, minimum=2)
    print(pictures.summary())
    return held_out(pictures, config.held_out)


def run(config: TrainConfig) -> None:
    """Train, or go on training, then evaluate and write the report. Raises UserError for a user's mistakes."""
    device = choose_device(config.device)
    prepare_process(config)
    torch.manual_seed(config.seed)
    trainer = build(config, device)
    real = real_pictures(config, trainer.generator.size)
    resuming = open_run(config.out, "train", config)
    start = 0
    if resuming and checkpoint.has_checkpoint(config.out):
        start = restore(checkpoint.load_latest(config.out, kind=CHECKPOINT_KIND), trainer)
        print(f"resuming {config.out} at step {start} of {config.steps}")
    with JsonLines(config.out / "log.jsonl", resume_step=start) as log:
        warnings = train(config, trainer, real, log, start)
    finish(config, trainer)
    export(config, trainer)
    evaluation = evaluate(config, trainer, real)
    write_report(config, trainer, evaluation, warnings)
    if evaluation is not None:
        for name, figure in evaluation.figures.items():
            print(f"  {name}: {_figure_text(figure)}")


def _figure_text(figure: dict[str, Any]) -> str:
    if "before" not in figure:
        return f"ratio {figure['ratio']:.3f}"
    return f"{figure['before']:.4g} -> {figure['after']:.4g} (ratio {figure['after'] / figure['before']:.3f})"


def train(config: TrainConfig, trainer: AlignmentStep, real: Tensor | None, log: JsonLines, start: int) -> list[str]:
    """All steps from `start` to the end; returns the warnings given on the way."""
    tick = max(1, config.snapshot // 10)
    sums: dict[str, float] = {}
    count, began, warnings = 0, time.perf_counter(), dict.fromkeys(())
    board = _tensorboard(config)
    progress = tqdm(total=config.steps, initial=start, unit="step", desc="train", mininterval=1.0, dynamic_ncols=True)
    for index in range(start, config.steps):
        try:
            statistics = trainer.step(index)
            memory.trim()
        except NotFinite as error:
            raise UserError(
                f"{error}; training stopped and the last good state is in {config.out}: lower --learning-rate, raise --batch "
                "or use --precision float32 in a new --out"
            ) from None
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
            for warning in health(trainer, step, config):
                if warning not in warnings:
                    warnings[warning] = None
                    progress.write(f"warning at step {step}: {warning}")
            line["seconds"] = time.perf_counter() - began
            log.append(line)
            for key, value in line.items() if board is not None else ():
                board.add_scalar(key, value, step)
            progress.set_postfix(loss=f"{line['loss']:.4f}", psi=f"{line['psi']:.2f}")
        if saving:
            pictures(config, trainer, real, step)
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


@torch.no_grad()
def watch(trainer: AlignmentStep, step: int) -> Samples:
    """Samples of fixed latents, aligned by the running average, at the target's current psi."""
    with private_stream(1):
        return trainer.samples(WATCHED, psi_at(step, trainer.anneal_psi, trainer.psi_shape), trainer.average)


def health(trainer: AlignmentStep, step: int, config: TrainConfig) -> list[str]:
    """Sentences on what is going wrong; empty where all is well."""
    samples = watch(trainer, step)
    found = inspect_warps(
        samples.aligned.grid.float(), samples.aligned.residual_flow, samples.unaligned.float(), samples.aligned.image.float()
    )
    return found.warnings(started=step > max(100, config.anneal_psi // 2))


def pictures(config: TrainConfig, trainer: AlignmentStep, real: Tensor | None, step: int) -> None:
    """Write samples (sample, target, aligned) and the averages of real pictures, before and after."""
    samples = watch(trainer, step)
    save_grid(torch.cat(list(sample_rows(samples).values())), config.out / f"samples-{step:07d}.png", columns=WATCHED)
    if real is not None:
        chosen = real[:200].to(trainer.target.lat_mean.device)
        aligned = align_batches(trainer.average, chosen, padding_mode=config.padding_mode, iters=config.iters)
        save_averages(trainer.average.network_input(chosen), aligned.image, config.out / f"average-{step:07d}.png")


def sample_rows(samples: Samples) -> dict[str, Tensor]:
    """Rows of pictures of one size, `[N, 3, F, F]` in [-1, 1] on the CPU: the samples, their targets, the samples aligned."""
    unaligned = F.interpolate(samples.unaligned.float(), size=samples.target.shape[2:], antialias=True, mode="bilinear")
    rows = {"Sample": unaligned, "Target": samples.target, "Aligned": samples.aligned.image}
    return {name: images.float().clamp(-1, 1).cpu() for name, images in rows.items()}


def save_averages(before: Tensor, after: Tensor, path: Path) -> None:
    """Write the averages of pictures `[N, 3, F, F]` before and after, side by side and large enough to see."""
    both = torch.cat([average_image(before), average_image(after)]).clamp(-1, 1).cpu()
    save_grid(both, path, columns=2, scale=max(1, 256 // both.shape[2]))


def state(trainer: AlignmentStep, step: int) -> dict[str, Any]:
    """Everything a resumed run needs."""
    return {
        "step": step,
        "transformer_config": trainer.transformer.config(),
        "transformer": trainer.transformer.state_dict(),
        "average": trainer.average.state_dict(),
        "target": trainer.target.state_dict(),
        "transformer_optimizer": trainer.transformer_optimizer.state_dict(),
        "target_optimizer": trainer.target_optimizer.state_dict(),
        "random_state": torch.get_rng_state(),
        "cuda_random_state": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore(saved: dict[str, Any], trainer: AlignmentStep) -> int:
    """Load what `state` returned; the number of steps done."""
    try:
        trainer.transformer.load_state_dict(saved["transformer"])
        trainer.average.load_state_dict(saved["average"])
        trainer.target.load_state_dict(saved["target"])
        trainer.transformer_optimizer.load_state_dict(saved["transformer_optimizer"])
        trainer.target_optimizer.load_state_dict(saved["target_optimizer"])
        torch.set_rng_state(saved["random_state"])
        if torch.cuda.is_available() and saved["cuda_random_state"]:
            torch.cuda.set_rng_state_all(saved["cuda_random_state"])
        return int(saved["step"])
    except (KeyError, RuntimeError, ValueError, TypeError) as error:
        raise UserError(f"the checkpoint does not belong to these options ({str(error)[:120]}); choose another --out") from None


@torch.no_grad()
def finish(config: TrainConfig, trainer: AlignmentStep) -> None:
    """What is done to the averaged transformer after the last step; the checkpoint keeps it as it was trained."""
    if config.keep_area:
        with private_stream(2):
            samples = torch.cat([trainer.samples(64, 0.0, trainer.average).unaligned.float() for _ in range(16)])
        factor = keep_area(trainer.average, samples, padding_mode=config.padding_mode)
        print(f"the template's frame is scaled by {factor:.3f}, so that the objects keep their area")


def export(config: TrainConfig, trainer: AlignmentStep) -> None:
    """Write aligner.safetensors: the averaged transformer, the template's latent and what is needed to use them."""
    tensors = {f"transformer.{key}": value for key, value in trainer.average.state_dict().items()}
    tensors |= {f"target.{key}": value for key, value in trainer.target.state_dict().items()}
    use = {"padding_mode": config.padding_mode, "iters": config.iters}
    about: dict[str, Any] = {"kind": EXPORT_KIND, "transformer": trainer.average.config(), **use}
    checkpoint.export_safetensors(config.out / "aligner.safetensors", tensors, about)


def evaluate(config: TrainConfig, trainer: AlignmentStep, real: Tensor | None) -> Evaluation | None:
    """Figures on held-out real pictures; None where there are none."""
    distance = build_perceptual("efficientnet")
    transformer = copy.deepcopy(trainer.average).to("cpu")
    if config.digit is not None:
        return evaluate_digits(transformer, config.digit, distance, padding_mode=config.padding_mode, iters=config.iters)
    if real is None:
        return None
    return evaluate_pictures(transformer, real, distance, padding_mode=config.padding_mode, iters=config.iters)


def write_report(
    config: TrainConfig, trainer: AlignmentStep, evaluation: Evaluation | None, warnings: list[str]
) -> None:
    """report.html in the results folder."""
    content: dict[str, Any] = {}
    if evaluation is not None:
        content["metrics"], content["baseline"] = evaluation.figures, evaluation.baseline
        content["averages"] = [
            (f"Average of {len(evaluation.before)} held-out pictures before", average_image(evaluation.before)),
            ("The same pictures aligned", average_image(evaluation.after)),
        ]
        content["real"] = {"Before": evaluation.before[:12], "After": evaluation.after[:12]}
        height, width = evaluation.grid.shape[1:3]
        content["flows"] = (evaluation.grid - identity_grid(height, width))[:12]
        save_averages(evaluation.before, evaluation.after, config.out / "average.png")
        save_grid(
            torch.cat([evaluation.before[:16], evaluation.after[:16]]).clamp(-1, 1), config.out / "aligned.png", columns=16
        )
    write_run_report(
        config.out,
        title=f"Alignment: {config.out.name}",
        summary=f"{config.steps} steps of {config.batch} samples, {config.transforms.replace(',', ' and ')}",
        warnings=warnings,
        samples=sample_rows(watch(trainer, config.steps)),
        configuration=plain(config),
        commands=[("Align pictures of your own", align_command(config))],
        next_steps=["Align pictures of your own with the command below.", "Train longer with a larger --steps in a new --out."],
        **content,
    )


def align_command(config: TrainConfig) -> str:
    """The command that uses what was learned."""
    return f"python -m gangealing_fast.align --checkpoint {config.out} --data YOUR_PICTURES --out aligned"
