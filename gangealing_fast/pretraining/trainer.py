# SPDX-License-Identifier: Apache-2.0
"""The loop behind `python -m gangealing_fast.pretrain`: step, average, tick, snapshot, one JSON line of statistics."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from gangealing_fast.adversarial.augment import Augmentation
from gangealing_fast.adversarial.codes import Codes
from gangealing_fast.adversarial.objectives import Objective
from gangealing_fast.adversarial.step import AdversarialStep
from gangealing_fast.models import DcganCritic, Discriminator
from gangealing_fast.pretraining.classification import Examination, export_classifier, settle_statistics
from gangealing_fast.pretraining.config import PretrainConfig
from gangealing_fast.pretraining.networks import CHECKPOINT_KIND, CLASSIFIER_DECAY, Networks, build, export
from gangealing_fast.pretraining.options import make_objective, resolved
from gangealing_fast.pretraining.sampling import PictureGenerator, latents, picture_sampler, table_latents
from gangealing_fast.pretraining.score import Score
from gangealing_fast.pretraining.source import Source, open_source
from gangealing_fast.report import Configuration, Curves, Pictures, write_report
from gangealing_fast.report.pictures import save_grid
from gangealing_fast.runtime import memory
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.runtime.precision import resolve
from gangealing_fast.runtime.randomness import derived_seed, private_stream
from gangealing_fast.runtime.setup import choose_device, prepare_process
from gangealing_fast.storage import checkpoint
from gangealing_fast.storage.files import JsonLines, read_json_lines
from gangealing_fast.storage.runs import open_run, plain

COLUMNS, ROWS = 8, 8
STATISTICS = 2000


@torch.no_grad()
def samples(generator: PictureGenerator, codes: Codes | None = None, *, seed: int = 1) -> torch.Tensor:
    """Rows of pictures `[N, 3, S, S]` in [-1, 1] of fixed latents, on the CPU: a column for each category, or eight columns."""
    with private_stream(seed):
        if codes is not None:
            return generator(table_latents(generator, codes, ROWS)).clamp(-1, 1).cpu()
        return generator(*latents(generator, ROWS * COLUMNS)).clamp(-1, 1).cpu()


def columns(codes: Codes | None) -> int:
    """How many columns the pictures of `samples` are meant for."""
    return COLUMNS if codes is None else codes.categories


def run(config: PretrainConfig) -> Path:
    """Train, or go on training; returns the exported generator's path. Raises UserError for a user's mistakes."""
    device = choose_device(config.device)
    if config.batch < 2:
        raise UserError(f"--batch must be at least 2, got {config.batch}")
    objective = make_objective(config)
    config = resolved(config, objective)
    source = open_source(config)
    print(source.summary())
    resuming = open_run(config.out, "pretrain", config)
    dtype = resolve(config.precision, device)
    prepare_process(config)
    # Not the seed itself: the first weights would be the very numbers that a user's torch.manual_seed(0) gives as latents, and such
    # latents, rows of the mapping network's first layer, make samples unlike all others.
    torch.manual_seed(derived_seed(config.seed, "pretrain"))
    networks = build(config, objective, device)
    augmentation = make_augmentation(config, objective)
    trainer = make_trainer(config, objective, networks, augmentation, dtype)
    step, shown, best = 0, 0, math.inf
    if resuming and checkpoint.has_checkpoint(config.out):
        state = checkpoint.load_latest(config.out, kind=CHECKPOINT_KIND)
        step, best = state["step"], state["best"]
        shown = state.get("shown", step * config.batch)
        _restore(state, networks, trainer, augmentation, source)
        print(f"resuming {config.out} at {shown / 1000:.1f} kimg")
    score = Score(source, config.score_pictures, dtype, device, objective.codes) if config.score_pictures > 0 else None
    examine = Examination(config, objective.categories, dtype) if objective.categories else None
    log = JsonLines(config.out / "log.jsonl", resume_step=step)
    total = math.ceil(config.kimg * 1000 / config.batch) * config.batch
    interval = max(1, round(config.snapshot_kimg * 1000 / config.batch)) * config.batch
    sums: dict[str, list[float]] = {}
    started = time.perf_counter()
    progress = tqdm(total=total, initial=shown, unit="picture", desc="pretrain", mininterval=1.0, dynamic_ncols=True)
    while shown < total:
        before = shown
        statistics: dict[str, float] = {}
        for _ in range(objective.critic_steps(step)):
            images, labels = source.next(config.batch)
            wanted = config.conditional or objective.classes > 0 or config.labels > 0
            labels = labels.to(device) if labels is not None and wanted else None
            statistics = trainer.critic_step(images.to(device), labels)
            shown += config.batch
            for key, value in statistics.items():
                sums.setdefault(key, []).append(value)
        step += 1
        memory.trim()
        half_life = max(1.0, min(config.ema_kimg * 1000, shown * 0.05))
        learned = trainer.generator_step(config.batch, 0.5 ** (config.batch / half_life), labels)
        networks.follow()
        for key, value in learned.items():
            sums.setdefault(key, []).append(value)
        statistics |= learned
        if not all(math.isfinite(value) for value in statistics.values()):
            raise UserError(
                f"the loss is not finite at step {step} ({statistics}); the last good state is in {config.out}: "
                "lower the learning rates or use --precision float32, and resume"
            )
        progress.update(shown - before)
        if shown // interval > before // interval or shown >= total:
            line: dict[str, Any] = {"step": step, "kimg": shown / 1000}
            line |= {key: sum(values) / len(values) for key, values in sums.items()}
            line["augment_p"] = augmentation.p
            if score is not None:
                line |= score(networks.average)
            if examine is not None:
                line |= _examined(config, networks, source, examine)
            line["seconds"] = time.perf_counter() - started
            sums.clear()
            path = config.out / f"samples-{shown // 1000:06d}.png"
            save_grid(samples(networks.average, objective.codes), path, columns=columns(objective.codes))
            best = _snapshot(config, networks, trainer, augmentation, source, shown, step, best, line)
            log.append(line)
            progress.set_postfix(score=f"{line.get('score', float('nan')):.3f}", p=f"{augmentation.p:.2f}")
    progress.close()
    log.close()
    _report(config, objective, networks)
    return config.out / "generator.safetensors"


def make_trainer(
    config: PretrainConfig, objective: Objective, networks: Networks, augmentation: Augmentation | None, dtype: torch.dtype
) -> AdversarialStep:
    """The training step of these networks; `config` as `resolved`."""
    return AdversarialStep(
        networks.generator,
        networks.critic,
        networks.generator_optimizer,
        networks.critic_optimizer,
        objective,
        picture_sampler(networks.generator, config.style_mixing, objective.codes),
        augmentation,
        config.conditional,
        dtype,
        config.r1,
        config.r1_interval,
        config.path_length,
        noise=config.critic_noise,
        critic_decay=None if networks.classifier is None else CLASSIFIER_DECAY,
    )


def _examined(config: PretrainConfig, networks: Networks, source: Source, examine: Examination) -> dict[str, float]:
    """Export the averaged critic as a classifier; its figures."""
    network = networks.classifier
    assert isinstance(network, DcganCritic | Discriminator)
    device = next(network.parameters()).device
    settle_statistics(network, (batch.to(device) for batch in source.fixed(STATISTICS)))
    names, figures = examine(network)
    export_classifier(network, names, config.out / "classifier.safetensors", figures)
    return figures


def make_augmentation(config: PretrainConfig, objective: Objective) -> Augmentation:
    """What the critic sees of pictures. Says so where an adaptive one has nothing to adapt to."""
    adaptive = config.augment == "adaptive"
    if adaptive and objective.boundary is None:
        print(f"no augmentation: no output of the critic of {objective.name} tells how sure it is (--augment fixed is possible)")
    return Augmentation(
        p=config.augment_p if config.augment == "fixed" else 0.0,
        target=config.augment_target if adaptive else None,
    )


def _report(config: PretrainConfig, objective: Objective, networks: Networks) -> None:
    records = read_json_lines(config.out / "log.jsonl")
    pictures = samples(networks.average, objective.codes)
    about = "Of the averaged generator, from fixed latents" + (", one column for each category" if objective.codes else "")
    sections = [
        Pictures("Samples", [(about, pictures)], columns=columns(objective.codes), width=512),
        Curves("Training", records, text="score, kid: distance to real pictures on EfficientNet features, lower is better."),
        Configuration("Configuration", plain(config)),
    ]
    write_report(config.out, f"Generator by {objective.name}", sections, subtitle=f"Objective: {objective.source}.")


def _snapshot(
    config: PretrainConfig,
    networks: Networks,
    trainer: AdversarialStep,
    augmentation: Augmentation,
    source: Source,
    shown: int,
    step: int,
    best: float,
    line: dict[str, Any],
) -> float:
    """Write the checkpoint, and the exported generator where its score is the best so far."""
    score = line.get("score", -step)
    if score <= best:
        export(networks.average, config.out / "generator.safetensors", line)
        best = score
    state = {
        "step": step,
        "shown": shown,
        "best": best,
        "config": networks.generator.config(),
        **networks.state_dict(),
        "objective": trainer.state_dict(),
        "augment_p": augmentation.p,
        "source": source.state_dict(),
        "random_state": torch.get_rng_state(),
    }
    checkpoint.save_latest(config.out, state, kind=CHECKPOINT_KIND)
    return best


def _restore(
    state: dict[str, Any], networks: Networks, trainer: AdversarialStep, augmentation: Augmentation, source: Source
) -> None:
    networks.load_state_dict(state)
    # Checkpoints from before objectives had a state count one critic update for each step.
    trainer.load_state_dict(state.get("objective", {"critic_count": state["step"], "generator_count": state["step"]}))
    augmentation.p = state["augment_p"]
    source.load_state_dict(state["source"])
    torch.set_rng_state(state["random_state"])
