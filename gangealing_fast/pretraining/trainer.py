# SPDX-License-Identifier: Apache-2.0
"""What `python -m gangealing_fast.pretrain` does: critic, generator, average, score, in the loop of `training.loop`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gangealing_fast.adversarial.augment import Augmentation
from gangealing_fast.adversarial.objectives import Objective
from gangealing_fast.adversarial.step import AdversarialStep
from gangealing_fast.models import DcganCritic, Discriminator
from gangealing_fast.ops.environment import print_notice
from gangealing_fast.pretraining.classification import Examination, export_classifier, settle_statistics
from gangealing_fast.pretraining.config import PretrainConfig
from gangealing_fast.pretraining.networks import CLASSIFIER_DECAY, COMMAND, Networks, build, export
from gangealing_fast.pretraining.options import make_objective, resolved
from gangealing_fast.pretraining.sampling import columns, picture_sampler, samples
from gangealing_fast.pretraining.score import Score
from gangealing_fast.pretraining.source import Source, open_source
from gangealing_fast.report import Configuration, Curves, Pictures, write_report
from gangealing_fast.report.pictures import save_grid
from gangealing_fast.report.sections import Section
from gangealing_fast.runtime.precision import resolve
from gangealing_fast.runtime.randomness import derived_seed
from gangealing_fast.runtime.setup import choose_device, prepare_process
from gangealing_fast.storage.claims import plain
from gangealing_fast.storage.files import read_json_lines
from gangealing_fast.storage.runs import open_run
from gangealing_fast.training import loop
from gangealing_fast.training.loop import Means, Plan, Progress

STATISTICS = 2000


@dataclass
class Pretraining:
    """The work of `pretrain` in the loop; its units are real pictures shown to the critic."""

    config: PretrainConfig
    objective: Objective
    networks: Networks
    trainer: AdversarialStep
    augmentation: Augmentation
    source: Source
    device: torch.device
    score: Score | None = None
    examine: Examination | None = None
    best: float = math.inf

    def step(self, at: Progress, means: Means) -> int:
        """The critic's updates, then one of the generator."""
        config, shown = self.config, 0
        labels: Tensor | None = None
        wanted = config.conditional or self.objective.classes > 0 or config.labels > 0
        for _ in range(self.objective.critic_steps(at.step)):
            images, classes = self.source.next(config.batch)
            labels = classes.to(self.device) if classes is not None and wanted else None
            means.add(self.trainer.critic_step(images.to(self.device), labels))
            shown += config.batch
        half_life = max(1.0, min(config.ema_kimg * 1000, (at.done + shown) * 0.05))
        means.add(self.trainer.generator_step(config.batch, 0.5 ** (config.batch / half_life), labels))
        self.networks.follow()
        return shown

    def measure(self, at: Progress, line: dict[str, Any]) -> None:
        """The score, and what the averaged critic knows of classes."""
        line["augment_p"] = self.augmentation.p
        if self.score is not None:
            line |= self.score(self.networks.average)
        if self.examine is not None:
            line |= self._examined(self.examine)

    def _examined(self, examine: Examination) -> dict[str, float]:
        """Export the averaged critic as a classifier; its figures."""
        network = self.networks.classifier
        assert isinstance(network, DcganCritic | Discriminator)
        device = next(network.parameters()).device
        settle_statistics(network, (batch.to(device) for batch in self.source.fixed(STATISTICS)))
        names, figures = examine(network)
        export_classifier(network, names, self.config.out / "classifier.safetensors", figures)
        return figures

    def show(self, at: Progress, line: Mapping[str, Any]) -> None:
        """Sample pictures, and the exported generator if its score is the best so far."""
        codes, out = self.objective.codes, self.config.out
        shown = samples(self.networks.average, codes, truncation=self.config.truncation)
        save_grid(shown, out / f"samples-{at.done // 1000:06d}.png", columns=columns(codes))
        score = line.get("score", -at.step)
        if score <= self.best:
            # Not the time that was needed: equal runs write equal bytes.
            figures = {name: value for name, value in line.items() if name != "seconds"}
            export(self.networks.average, out / "generator.safetensors", figures)
            self.best = score

    def state_dict(self) -> dict[str, Any]:
        return {
            "best": self.best,
            "config": self.networks.generator.config(),
            **self.networks.state_dict(),
            "objective": self.trainer.state_dict(),
            "augment_p": self.augmentation.p,
            "source": self.source.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        self.best = state["best"]
        self.networks.load_state_dict(state)
        # Checkpoints from before objectives had a state count one critic update for each step.
        self.trainer.load_state_dict(state.get("objective", {"critic_count": state["step"], "generator_count": state["step"]}))
        if not 0 <= state["augment_p"] <= 1:
            raise ValueError(f"augment_p is {state['augment_p']}")
        self.augmentation.p = state["augment_p"]
        self.source.load_state_dict(state["source"])

    def report(self) -> None:
        """report.html: samples, curves, options."""
        codes, config = self.objective.codes, self.config
        about = "Of the averaged generator, from fixed latents" + (", one column for each category" if codes else "")
        if config.truncation < 1:
            about += f", truncated to {config.truncation:g}"
        shown = samples(self.networks.average, codes, truncation=config.truncation)
        sections: list[Section] = [
            Pictures("Samples", [(about, shown)], columns=columns(codes), width=512),
            Curves(
                "Training",
                read_json_lines(config.out / "log.jsonl"),
                text="score, kid: distance to real pictures on EfficientNet features, lower is better.",
            ),
            Configuration("Configuration", plain(config)),
        ]
        write_report(config.out, f"Generator by {self.objective.name}", sections, subtitle=f"Objective: {self.objective.source}.")


def run(config: PretrainConfig) -> Path:
    """Train, or go on training; returns the exported generator's path. Raises UserError for a user's mistakes."""
    print_notice(config.ops)
    device = choose_device(config.device)
    objective = make_objective(config)
    config = resolved(config, objective)
    with open_run(config.out, COMMAND, config, pictures={} if config.digit else {"--data": config.data}) as resuming:
        return _run(config, objective, device, resuming)


def _run(config: PretrainConfig, objective: Objective, device: torch.device, resuming: bool) -> Path:
    source = open_source(config)
    print(source.summary())
    prepare_process(config)
    # Not the seed itself: the first weights would be the very numbers that a user's torch.manual_seed(0) gives as latents, and such
    # latents, rows of the mapping network's first layer, make samples unlike all others.
    torch.manual_seed(derived_seed(config.seed, "pretrain"))
    work = make_work(config, objective, source, device)
    plan = plan_of(config)
    start = loop.resume(work, plan, config.out) if resuming else Progress()
    loop.run(work, plan, config.out, start)
    work.report()
    return config.out / "generator.safetensors"


def plan_of(config: PretrainConfig) -> Plan:
    """Whole batches: length and snapshots in real pictures shown."""
    interval = max(1, round(config.snapshot_kimg * 1000 / config.batch)) * config.batch
    return Plan(
        COMMAND,
        math.ceil(config.kimg * 1000 / config.batch) * config.batch,
        tick=interval,
        snapshot=interval,
        unit="picture",
        pictures=1,
        units_per_step=config.batch,
        remedy="lower --generator-learning-rate and --critic-learning-rate or use --precision float32",
        postfix={"score": ".3f", "augment_p": ".2f"},
        draws=True,
        tracker=config.tracker,
    )


def make_work(config: PretrainConfig, objective: Objective, source: Source, device: torch.device) -> Pretraining:
    """Networks and everything beside them of a fresh run; `config` as `resolved`."""
    dtype = resolve(config.precision, device)
    networks = build(config, objective, device)
    augmentation = make_augmentation(config, objective)
    return Pretraining(
        config,
        objective,
        networks,
        make_trainer(config, objective, networks, augmentation, dtype),
        augmentation,
        source,
        device,
        Score(source, config.score_pictures, dtype, device, objective.codes) if config.score_pictures > 0 else None,
        Examination(config, objective.categories, dtype) if objective.categories else None,
    )


def make_trainer(
    config: PretrainConfig, objective: Objective, networks: Networks, augmentation: Augmentation | None, dtype: torch.dtype
) -> AdversarialStep:
    """The training step of these networks; `config` as `resolved`."""
    assert config.r1 is not None
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


def make_augmentation(config: PretrainConfig, objective: Objective) -> Augmentation:
    """What the critic sees of pictures. Says so if an adaptive one has nothing to adapt to."""
    adaptive = config.augment == "adaptive"
    if adaptive and objective.boundary is None:
        print(f"no augmentation: no output of the critic of {objective.name} tells how sure it is (--augment fixed is possible)")
    return Augmentation(
        p=config.augment_p if config.augment == "fixed" else 0.0,
        target=config.augment_target if adaptive else None,
    )
