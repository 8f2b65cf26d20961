# SPDX-License-Identifier: Apache-2.0
"""The loop behind `python -m gangealing_fast.pretrain`: step, average, tick, snapshot, one JSON line of statistics."""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from gangealing_fast import checkpoint, memory
from gangealing_fast.adversarial.augment import Augmentation
from gangealing_fast.adversarial.config import PretrainConfig
from gangealing_fast.adversarial.growing import start_critic, start_generator, start_options
from gangealing_fast.adversarial.objectives import OBJECTIVES
from gangealing_fast.adversarial.projected import ProjectedDiscriminator
from gangealing_fast.adversarial.source import Source, open_source
from gangealing_fast.adversarial.step import AdversarialStep
from gangealing_fast.errors import UserError
from gangealing_fast.files import JsonLines
from gangealing_fast.foreign.reading import load_generator
from gangealing_fast.foreign.writing import export_generator
from gangealing_fast.metrics import FeatureStatistics, frechet_distance
from gangealing_fast.models import Discriminator, EfficientNetPerceptual, Generator
from gangealing_fast.optim import AdamEma
from gangealing_fast.precision import autocast, resolve
from gangealing_fast.randomness import private_stream
from gangealing_fast.report.pictures import save_grid
from gangealing_fast.runs import choose_device, open_run, prepare_process

CHECKPOINT_KIND = "pretrain"
PROJECTED_TAPS = (1, 2, 4, 6)


@dataclass
class Networks:
    """Everything that a checkpoint stores."""

    generator: Generator
    average: Generator
    critic: nn.Module
    generator_optimizer: AdamEma
    critic_optimizer: AdamEma


def build(config: PretrainConfig, device: torch.device) -> Networks:
    """Networks and optimisers of a fresh run, seeded by torch's default generator."""
    generator = Generator(
        config.size,
        config.latent_dim,
        config.mapping_layers,
        channel_base=config.channel_base,
        max_channels=config.max_channels,
    )
    critic: nn.Module
    if config.discriminator == "projected":
        # Twice the size, 128 at least: the deepest tap of a 64² picture would otherwise be two pixels wide.
        features = EfficientNetPerceptual(PROJECTED_TAPS, min_size=max(128, config.size)).to(device)
        critic = ProjectedDiscriminator(features.features, config.size)
    else:
        critic = Discriminator(config.size, max_channels=config.max_channels, channel_base=config.channel_base)
    if config.start_from is not None:
        start = _read_start(config.start_from, generator.config())
        start_generator(generator, start["generator"])
        if config.discriminator == "stylegan2" and "critic" in start:
            start_critic(critic, start["critic"])
    generator, critic = generator.to(device), critic.to(device)
    # A lazy penalty leaves out r1_interval - 1 of r1_interval updates: learning rate and moments shrink with it (StyleGAN2).
    lazy = config.r1_interval / (config.r1_interval + 1) if config.r1 > 0 else 1.0
    trained = [p for p in critic.parameters() if p.requires_grad]
    average = copy.deepcopy(generator).eval().requires_grad_(False)
    return Networks(
        generator=generator,
        average=average,
        critic=critic,
        generator_optimizer=AdamEma(
            generator.parameters(), config.generator_learning_rate, (0.0, 0.99), averages=average.parameters()
        ),
        critic_optimizer=AdamEma(trained, config.critic_learning_rate * lazy, (0.0, 0.99**lazy)),
    )


def _read_start(path: Path, wanted: dict[str, Any]) -> dict[str, Any]:
    """Weights to begin with: "generator", and "critic" where `path` is the folder of a run of `pretrain`."""
    if path.is_dir():
        state = checkpoint.load_latest(path, kind=CHECKPOINT_KIND)
        config, start = state["config"], {"generator": state["average"], "critic": state["critic"]}
        if not any(key.startswith("final_linear") for key in start["critic"]):
            del start["critic"]  # a projected critic has other layers
    else:
        generator = load_generator(path)
        config, start = generator.config(), {"generator": generator.state_dict()}
    differing = start_options(config, wanted)
    if differing:
        raise UserError(
            f"--start-from {path} has another shape ({', '.join(f'{k} {config[k]}' for k in differing)}); give the options that "
            "it was trained with (--size may be twice its size)"
        )
    return start


class Score:
    """Fréchet distance between real and generated pictures on EfficientNet features: like FID, not comparable with it."""

    def __init__(self, source: Source, count: int, dtype: torch.dtype, device: torch.device) -> None:
        self.network = EfficientNetPerceptual(min_size=64).to(device)
        self.count, self.dtype, self.device = count, dtype, device
        self.real = FeatureStatistics()
        for batch in source.fixed(count):
            self.real.update(self._embed(batch.to(device)))

    @torch.no_grad()
    def _embed(self, images: Tensor) -> Tensor:
        with autocast(self.device, self.dtype):
            return self.network.embedding(images.clamp(-1, 1))

    @torch.no_grad()
    def __call__(self, generator: Generator) -> float:
        statistics = FeatureStatistics()
        with private_stream(1234):
            for start in range(0, self.count, 64):
                z = torch.randn(min(64, self.count - start), generator.latent_dim, device=self.device)
                with autocast(self.device, self.dtype):
                    images = generator(z)
                statistics.update(self._embed(images))
        return float(frechet_distance(self.real, statistics))


@torch.no_grad()
def sample_grid(generator: Generator, path: Path, *, columns: int = 8, seed: int = 1) -> None:
    """Write `columns`² samples of fixed latents."""
    with private_stream(seed):
        images = generator(torch.randn(columns * columns, generator.latent_dim, device=generator.input.input.device))
    save_grid(images.clamp(-1, 1).cpu(), path, columns=columns)


def run(config: PretrainConfig) -> Path:
    """Train, or go on training; returns the exported generator's path. Raises UserError for a user's mistakes."""
    device = choose_device(config.device)
    if config.batch < 2:
        raise UserError(f"--batch must be at least 2, got {config.batch}")
    source = open_source(config)
    print(source.summary())
    resuming = open_run(config.out, "pretrain", config)
    dtype = resolve(config.precision, device)
    prepare_process(config)
    torch.manual_seed(config.seed)
    networks = build(config, device)
    augmentation = Augmentation(
        p={"adaptive": 0.0, "fixed": config.augment_p, "none": 0.0}[config.augment],
        target=config.augment_target if config.augment == "adaptive" else None,
    )
    step, best = 0, math.inf
    if resuming and checkpoint.has_checkpoint(config.out):
        state = checkpoint.load_latest(config.out, kind=CHECKPOINT_KIND)
        step, best = state["step"], state["best"]
        _restore(state, networks, augmentation, source)
        print(f"resuming {config.out} at {step * config.batch / 1000:.1f} kimg")
    trainer = AdversarialStep(
        networks.generator,
        networks.critic,
        networks.generator_optimizer,
        networks.critic_optimizer,
        OBJECTIVES[config.objective],
        augmentation,
        dtype,
        config.r1,
        config.r1_interval,
        config.style_mixing,
    )
    score = Score(source, config.score_pictures, dtype, device) if config.score_pictures > 0 else None
    log = JsonLines(config.out / "log.jsonl", resume_step=step)
    total = math.ceil(config.kimg * 1000 / config.batch)
    interval = max(1, round(config.snapshot_kimg * 1000 / config.batch))
    sums: dict[str, list[float]] = {}
    started = time.perf_counter()
    progress = tqdm(total=total, initial=step, unit="step", desc="pretrain", mininterval=1.0, dynamic_ncols=True)
    while step < total:
        statistics = trainer.critic_step(source.next(config.batch).to(device), step)
        step += 1
        shown = step * config.batch
        half_life = max(1.0, min(config.ema_kimg * 1000, shown * 0.05))
        memory.trim()
        statistics |= trainer.generator_step(config.batch, 0.5 ** (config.batch / half_life))
        if not all(math.isfinite(value) for value in statistics.values()):
            raise UserError(
                f"the loss is not finite at step {step} ({statistics}); the last good state is in {config.out}: "
                "lower the learning rates or use --precision float32, and resume"
            )
        for key, value in statistics.items():
            sums.setdefault(key, []).append(value)
        progress.update()
        if step % interval == 0 or step == total:
            line: dict[str, Any] = {"step": step, "kimg": shown / 1000}
            line |= {key: sum(values) / len(values) for key, values in sums.items()}
            line["augment_p"] = augmentation.p
            if score is not None:
                line["score"] = score(networks.average)
            line["seconds"] = time.perf_counter() - started
            sums.clear()
            sample_grid(networks.average, config.out / f"samples-{shown // 1000:06d}.png")
            best = _snapshot(config, networks, augmentation, source, step, best, line)
            log.append(line)
            progress.set_postfix(score=f"{line.get('score', float('nan')):.3f}", p=f"{augmentation.p:.2f}")
    progress.close()
    log.close()
    return config.out / "generator.safetensors"


def _snapshot(
    config: PretrainConfig,
    networks: Networks,
    augmentation: Augmentation,
    source: Source,
    step: int,
    best: float,
    line: dict[str, Any],
) -> float:
    """Write the checkpoint, and the exported generator where its score is the best so far."""
    score = line.get("score", -step)
    if score <= best:
        export_generator(networks.average, config.out / "generator.safetensors", line)
        best = score
    state = {
        "step": step,
        "best": best,
        "config": networks.generator.config(),
        "generator": networks.generator.state_dict(),
        "average": networks.average.state_dict(),
        "critic": networks.critic.state_dict(),
        "generator_optimizer": networks.generator_optimizer.state_dict(),
        "critic_optimizer": networks.critic_optimizer.state_dict(),
        "augment_p": augmentation.p,
        "source": source.state_dict(),
        "random_state": torch.get_rng_state(),
    }
    checkpoint.save_latest(config.out, state, kind=CHECKPOINT_KIND)
    return best


def _restore(state: dict[str, Any], networks: Networks, augmentation: Augmentation, source: Source) -> None:
    networks.generator.load_state_dict(state["generator"])
    networks.average.load_state_dict(state["average"])
    networks.critic.load_state_dict(state["critic"])
    networks.generator_optimizer.load_state_dict(state["generator_optimizer"])
    networks.critic_optimizer.load_state_dict(state["critic_optimizer"])
    augmentation.p = state["augment_p"]
    source.load_state_dict(state["source"])
    torch.set_rng_state(state["random_state"])
