# SPDX-License-Identifier: Apache-2.0
"""What `python -m gangealing_fast.translate train` does, in the loop of `training.loop`."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from gangealing_fast.adversarial.objectives import OBJECTIVES, Objective, make
from gangealing_fast.data.pictures import to_float
from gangealing_fast.models import EfficientNetPerceptual
from gangealing_fast.ops.environment import print_notice
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.runtime.precision import resolve
from gangealing_fast.runtime.randomness import derived_seed
from gangealing_fast.runtime.setup import choose_device, prepare_process
from gangealing_fast.storage.runs import open_run
from gangealing_fast.training import loop
from gangealing_fast.training.loop import Means, Plan, Progress
from gangealing_fast.training.optim import AdamEma
from gangealing_fast.training.parts import InParts
from gangealing_fast.translation import results
from gangealing_fast.translation.config import TranslateTrainConfig
from gangealing_fast.translation.critics import MultiScaleCritic
from gangealing_fast.translation.domains import Batches, Domains, open_domains
from gangealing_fast.translation.figures import COLLAPSED, Classifier, quick_figures
from gangealing_fast.translation.losses import Weights
from gangealing_fast.translation.networks import TranslationNetworks
from gangealing_fast.translation.reader import DigitReader, reader_of
from gangealing_fast.translation.step import TranslationStep
from gangealing_fast.translation.translator import EXPORT_NAME, NAMES, Translator

COMMAND = "translate train"
BETAS = (0.5, 0.999)


class Training(InParts):
    """The work of `translate train` in the loop."""

    def __init__(self, config: TranslateTrainConfig, domains: Domains, device: torch.device, reader: DigitReader | None) -> None:
        self.config, self.domains, self.device, self.reader = config, domains, device, reader
        self.networks = build(config).to(device)
        about = {"domains": [domains.first.name, domains.second.name], "size": config.size}
        average = copy.deepcopy(self.networks).requires_grad_(False).eval()
        self.average = Translator(average, about).eval()
        self.critics = nn.ModuleList(
            MultiScaleCritic(config.size, width=config.critic_width, layers=config.critic_layers, scales=config.critic_scales)
            for _ in NAMES
        ).to(device)
        self.optimizer = AdamEma(
            self.networks.parameters(), config.learning_rate, BETAS, averages=average.parameters(), decay=config.ema
        )
        self.critic_optimizer = AdamEma(self.critics.parameters(), config.critic_learning_rate, BETAS)
        # Figures are taken on the CPU, where the pictures are.
        self.perceptual = EfficientNetPerceptual(min_size=64)
        self.trainer = TranslationStep(
            self.networks,
            self.critics,
            self.optimizer,
            self.critic_optimizer,
            make_objective(config),
            weights_of(config),
            dtype_of(config, device),
            copy.deepcopy(self.perceptual).to(device) if config.perceptual_weight else None,
        )
        self.batches = [Batches(domains[k].training, derived_seed(config.seed, k), mirror=config.mirror) for k in (0, 1)]
        first, second = (to_float(domains[k].training[:200]) for k in (0, 1))
        self.average.learn_features(first, second, self.perceptual)
        self.said: set[str] = set()

    def step(self, at: Progress, means: Means) -> int:
        config = self.config
        share = min(1.0, 2 * (1 - at.step / config.steps))
        for optimizer, rate in ((self.optimizer, config.learning_rate), (self.critic_optimizer, config.critic_learning_rate)):
            for group in optimizer.param_groups:
                group["lr"] = rate * share
        images = [batch.next(config.batch).to(self.device) for batch in self.batches]
        drawn: list[Tensor] = [torch.randn(config.batch, config.style).to(self.device) for _ in NAMES]
        # Less at first, so that the average forgets where it began.
        means.add(self.trainer(images, drawn, min(config.ema, (1 + at.step) / (10 + at.step))))
        return 1

    def measure(self, at: Progress, line: dict[str, Any]) -> None:
        if at.step % self.config.snapshot and at.step != self.config.steps:
            return
        line |= quick_figures(self.average, self.domains, self.reader, self.perceptual)
        for name in NAMES:
            if line[f"diversity_{name}_ratio"] < COLLAPSED and name not in self.said:
                self.said.add(name)
                tqdm.write(
                    f"step {at.step}: all styles give nearly the same translations into the {name} domain; if that stays, raise "
                    "--style-weight or lower --image-weight"
                )

    def show(self, at: Progress, line: Mapping[str, Any]) -> None:
        results.write_sheets(self.average, self.domains, self.config.out)
        self.average.about["steps"] = at.step
        self.average.save(self.config.out / EXPORT_NAME)

    def named_parts(self) -> dict[str, Any]:
        names = ("networks", "critics", "optimizer", "critic_optimizer", "trainer")
        parts: dict[str, Any] = {name: getattr(self, name) for name in names}
        return parts | {"average": self.average.networks, "first": self.batches[0], "second": self.batches[1]}


def dtype_of(config: TranslateTrainConfig, device: torch.device) -> torch.dtype:
    """What --precision says; auto is float32 on a CPU, where bfloat16 takes longer for networks of few channels."""
    return resolve("float32" if config.precision == "auto" and device.type == "cpu" else config.precision, device)


def weights_of(config: TranslateTrainConfig) -> Weights:
    """The losses' weights. Raises UserError if they leave nothing to learn."""
    names = ("image", "content", "style", "adversarial", "cycle", "perceptual")
    weights = Weights(**{name: getattr(config, f"{name}_weight") for name in names})
    if not weights.image and not weights.adversarial:
        raise UserError("without --image-weight and --adversarial-weight nothing says what pictures look like; give one of them")
    return weights


def make_objective(config: TranslateTrainConfig) -> Objective:
    """What --objective names. Raises UserError if there is none, or if it needs more than a number for each patch."""
    if config.objective not in OBJECTIVES:
        raise UserError(f"--objective {config.objective} is not known; there are {', '.join(OBJECTIVES)}")
    objective = make(config.objective)
    if objective.output not in ("logit", "score") or objective.outputs != 1 or objective.codes is not None:
        raise UserError(f"--objective {config.objective} needs a critic of its own kind; choose lsgan-01, nonsaturating or hinge")
    return objective


def build(config: TranslateTrainConfig) -> TranslationNetworks:
    """Networks for the options. Raises UserError for a size that they cannot have."""
    networks = TranslationNetworks(
        width=config.width,
        halvings=config.halvings,
        blocks=config.blocks,
        style=config.style,
        hidden=config.hidden,
        style_halvings=config.style_halvings,
        outer_kernel=config.outer_kernel,
    )
    if config.size % networks.stride or config.size < networks.least:
        raise UserError(
            f"--size {config.size} must be a multiple of {networks.stride} and at least {networks.least}; change it, or lower "
            "--halvings and --style-halvings"
        )
    if config.size >> (config.critic_scales - 1) < 4:
        raise UserError(f"--critic-scales {config.critic_scales} leaves pictures below 4 pixels of --size {config.size}; lower it")
    return networks


def classifier_of(path: Path | None, domains: Domains) -> Classifier | None:
    """The user's program. Raises UserError if it is none, or does not take the pictures."""
    if path is None:
        return None
    try:
        if path.suffix == ".pt2":
            module: Classifier = torch.export.load(str(path)).module()
        else:
            module = torch.jit.load(str(path), map_location="cpu").eval()
        with torch.no_grad():
            found = module(torch.zeros(2, *domains.second.test.shape[1:]))
    except (RuntimeError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"--classifier {path} is no .pt2 or TorchScript file that takes these pictures ({reason})") from None
    if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != 2 or found.shape[1] < 2:
        raise UserError(f"--classifier {path} must return logits [N, K] of pictures [N, 3, H, W], K of 2 or more")
    return module


def plan_of(config: TranslateTrainConfig) -> Plan:
    """Ticks, snapshots and length in steps."""
    return Plan(
        COMMAND,
        config.steps,
        tick=config.tick,
        snapshot=config.snapshot,
        pictures=config.batch,
        remedy="lower --learning-rate and --critic-learning-rate or use --precision float32",
        postfix={"image": ".3f", "style_second": ".3f", "readable": ".2f"},
        draws=True,
        tracker=config.tracker,
    )


def run(config: TranslateTrainConfig) -> Path:
    """Train, or go on, then examine and write the report; returns the exported file. Raises UserError for a user's mistakes."""
    print_notice(config.ops)
    weights_of(config)
    make_objective(config)
    pictures = {"--first": config.first, "--second": config.second}
    with open_run(config.out, COMMAND, config, pictures=pictures) as resuming:
        device = choose_device(config.device)
        domains = open_domains(config)
        print(domains.summary())
        classifier = classifier_of(config.classifier, domains)
        prepare_process(config)
        reader = None
        if domains.labelled is not None:
            reader = reader_of(config.out, *domains.labelled, domains.kinds, config.seed)
        torch.manual_seed(derived_seed(config.seed, COMMAND))
        work, plan = Training(config, domains, device, reader), plan_of(config)
        start = loop.resume(work, plan, config.out) if resuming else Progress()
        loop.run(work, plan, config.out, start)
        results.report(work.average, domains, config, reader, work.perceptual, classifier)
        return config.out / EXPORT_NAME
