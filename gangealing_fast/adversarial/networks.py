# SPDX-License-Identifier: Apache-2.0
"""The networks and optimisers that options name: generators and critics of either architecture, for any objective."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from gangealing_fast import checkpoint
from gangealing_fast.adversarial import objectives
from gangealing_fast.adversarial.codes import Codes
from gangealing_fast.adversarial.config import PretrainConfig
from gangealing_fast.adversarial.growing import start_critic, start_generator, start_options
from gangealing_fast.adversarial.objectives import Objective
from gangealing_fast.adversarial.projected import ProjectedDiscriminator
from gangealing_fast.errors import UserError
from gangealing_fast.foreign.reading import load_generator
from gangealing_fast.foreign.writing import export_generator
from gangealing_fast.models import Autoencoder, DcganCritic, DcganGenerator, Discriminator, EfficientNetPerceptual, Generator
from gangealing_fast.optim import AdamEma, RmsPropEma

CHECKPOINT_KIND = "pretrain"
PROJECTED_TAPS = (1, 2, 4, 6)
STYLEGAN2_LEARNING_RATE = 0.002
CLASSIFIER_DECAY = 0.998
PictureGenerator: TypeAlias = Generator | DcganGenerator


@dataclass
class Networks:
    """Everything trained that a checkpoint stores."""

    generator: PictureGenerator
    average: PictureGenerator
    critic: nn.Module
    generator_optimizer: AdamEma | RmsPropEma
    critic_optimizer: AdamEma | RmsPropEma
    classifier: nn.Module | None = None
    """The running average of a critic that learns classes."""

    def _stored(self) -> list[str]:
        return [field.name for field in dataclasses.fields(self) if getattr(self, field.name) is not None]

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name).state_dict() for name in self._stored()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in self._stored():
            getattr(self, name).load_state_dict(state[name])

    @torch.no_grad()
    def follow(self) -> None:
        """Give the averaged generator the statistics of batch normalisation, which the optimiser's average leaves out."""
        if isinstance(self.generator, DcganGenerator):
            for average, current in zip(self.average.buffers(), self.generator.buffers(), strict=True):
                average.copy_(current)


def make_objective(config: PretrainConfig) -> Objective:
    """The objective with the constants of `--objective-options`. Raises UserError where they are no numbers or not known."""
    options = {}
    for text in config.objective_options:
        name, _, value = text.partition("=")
        try:
            options[name] = float(value)
        except ValueError:
            raise UserError(f"--objective-options takes NAME=NUMBER, got {text}") from None
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
    if not 0 < config.labelled_share <= 1:
        raise UserError(f"--labelled-share must be above 0 and at most 1, got {config.labelled_share:g}")
    if config.conditional and (objective.classes or codes is not None):
        raise UserError(f"{name} tells the generator by itself what to show; leave out --conditional")
    if objective.outputs > 1 and config.discriminator == "projected":
        raise UserError(f"{name} needs a critic with {objective.outputs} outputs; leave out --discriminator projected")
    if codes is not None and config.latent_dim <= codes.length:
        raise UserError(f"{name} puts {codes.length} codes into the latent: give a --latent-dim above that")


def build(config: PretrainConfig, objective: Objective, device: torch.device) -> Networks:
    """Networks and optimisers of a fresh run, seeded by torch's default generator; `config` as `resolved`.

    Raises UserError for a critic that does not suit the objective, or for a start of another shape.
    """
    widths = {"channel_base": config.channel_base, "max_channels": config.max_channels}
    generator: PictureGenerator
    if config.architecture == "stylegan2":
        generator = Generator(config.size, config.latent_dim, config.mapping_layers, **widths)
    else:
        classes = len(config.digit) if config.conditional else 0
        generator = DcganGenerator(config.size, config.latent_dim, classes=classes, **widths)
    critic = _critic(config, objective, widths, device)
    if config.start_from is not None:
        if not isinstance(generator, Generator):
            raise UserError("--start-from continues a StyleGAN2 generator; leave out --architecture dcgan")
        start = _read_start(config.start_from, generator.config())
        start_generator(generator, start["generator"])
        if isinstance(critic, Discriminator) and _outputs(start.get("critic", {})) == critic.outputs:
            start_critic(critic, start["critic"])
    try:
        objectives.refuse_mixing(objective, critic, penalised=bool(config.r1))
    except ValueError as error:
        raise UserError(str(error)) from None
    generator, critic = generator.to(device), critic.to(device)
    average = _average_of(generator)
    classifier = _average_of(critic) if objective.categories else None
    optimizers = _optimizers(config, objective, generator, average, critic, classifier)
    return Networks(generator, average, critic, *optimizers, classifier)


def _average_of(network: Any) -> Any:
    return copy.deepcopy(network).eval().requires_grad_(False)


def _critic(config: PretrainConfig, objective: Objective, widths: dict[str, Any], device: torch.device) -> nn.Module:
    if config.discriminator == "projected":
        # Twice the size, 128 at least: the deepest tap of a 64² picture would otherwise be two pixels wide.
        features = EfficientNetPerceptual(PROJECTED_TAPS, min_size=max(128, config.size)).to(device)
        return ProjectedDiscriminator(features.features, config.size)
    if objective.output == "autoencoder":
        return Autoencoder(config.size, norm="none" if config.critic_norm == "auto" else config.critic_norm, **widths)
    if config.architecture == "stylegan2":
        alone = objective.alone or objective.categories > 0
        group, features = 1 if alone else 4, objective.match is not None
        return Discriminator(config.size, **widths, outputs=objective.outputs, group=group, features=features)
    norm = config.critic_norm
    if norm == "auto":
        norm = "layer" if objective.alone or config.r1 else "batch"
    classes = len(config.digit) if config.conditional else 0
    features = objective.match is not None
    return DcganCritic(config.size, outputs=objective.outputs, norm=norm, features=features, classes=classes, **widths)


def _optimizers(
    config: PretrainConfig,
    objective: Objective,
    generator: nn.Module,
    average: nn.Module,
    critic: nn.Module,
    classifier: nn.Module | None,
) -> tuple[AdamEma | RmsPropEma, AdamEma | RmsPropEma]:
    trained = [p for p in critic.parameters() if p.requires_grad]
    rates = config.generator_learning_rate, config.critic_learning_rate
    if objective.optimiser.kind == "rmsprop":
        alpha = objective.optimiser.betas[1]
        return (
            RmsPropEma(generator.parameters(), rates[0], alpha, averages=average.parameters()),
            RmsPropEma(trained, rates[1], alpha),
        )
    betas = (0.0, 0.99) if config.architecture == "stylegan2" else objective.optimiser.betas
    # A lazy penalty leaves out r1_interval - 1 of r1_interval updates: learning rate and moments shrink with it (StyleGAN2).
    lazy = config.r1_interval / (config.r1_interval + 1) if config.r1 else 1.0
    return (
        AdamEma(generator.parameters(), rates[0], betas, averages=average.parameters()),
        AdamEma(
            trained,
            rates[1] * lazy,
            (betas[0] ** lazy, betas[1] ** lazy),
            averages=None if classifier is None else classifier.parameters(),
        ),
    )


def picture_sampler(
    generator: PictureGenerator, style_mixing: float, codes: Codes | None = None
) -> Callable[[int, Tensor | None], Tensor]:
    """sample(n, labels) → pictures `[n, 3, S, S]` of random latents, with style mixing where the generator has styles.

    labels: codes `[n, C]` where there are `codes`, classes `[n]` for a conditional generator, else None.
    """

    def styles(n: int, labels: Tensor | None) -> Tensor:
        assert isinstance(generator, Generator)
        z = torch.randn(2 * n, generator.latent_dim, device=generator.input.input.device)
        w = generator.map(z if codes is None or labels is None else codes.into(z, labels.repeat(2, 1)))
        cut = generator.n_latent
        if torch.rand(()).item() < style_mixing:
            cut = int(torch.randint(1, generator.n_latent, ()).item())
        return generator.synthesize([w[:n]] * cut + [w[n:]] * (generator.n_latent - cut))

    def plain(n: int, labels: Tensor | None) -> Tensor:
        z = torch.randn(n, generator.latent_dim, device=next(generator.parameters()).device)
        if codes is not None and labels is not None:
            return generator(codes.into(z, labels))
        return generator(z) if labels is None else generator(z, labels)

    return styles if isinstance(generator, Generator) else plain


def latents(generator: PictureGenerator, n: int, codes: Codes | None = None) -> tuple[Tensor, ...]:
    """Arguments for n samples: z, with random codes where there are any, and for a conditional generator the classes in turn."""
    device = next(generator.parameters()).device
    z = torch.randn(n, generator.latent_dim, device=device)
    if codes is not None:
        return (codes.into(z, codes.draw(n, device)),)
    classes = getattr(generator, "classes", 0)
    return (z, torch.arange(n, device=device) % classes) if classes else (z,)


def table_latents(generator: PictureGenerator, codes: Codes, rows: int) -> Tensor:
    """z for a table of samples, row by row: one column for each category, everything else the same along a row."""
    device = next(generator.parameters()).device
    z, numbers = torch.randn(rows, generator.latent_dim, device=device), codes.draw(rows, device)[:, codes.categories :]
    category = torch.arange(codes.categories, device=device).repeat(rows)
    z, numbers = (values.repeat_interleave(codes.categories, 0) for values in (z, numbers))
    return codes.into(z, codes.of(category, numbers))


def export(generator: PictureGenerator, path: Path, statistics: dict[str, Any]) -> None:
    """Write the generator with its configuration; `load_plain_generator` or `foreign.reading.load_generator` read it."""
    if isinstance(generator, Generator):
        export_generator(generator, path, statistics)
        return
    about = {"kind": "dcgan", "generator": generator.config(), "statistics": statistics}
    checkpoint.export_safetensors(path, generator.state_dict(), about, half=True)


def load_plain_generator(path: Path) -> DcganGenerator:
    """The DCGAN generator that `pretrain --architecture dcgan` exported. Raises UserError for anything else."""
    tensors, about = checkpoint.load_safetensors(path)
    if about.get("kind") != "dcgan":
        raise UserError(f"{path} holds no DCGAN generator; give the generator.safetensors of pretrain --architecture dcgan")
    generator = DcganGenerator(**about["generator"])
    generator.load_state_dict(tensors)
    return generator.eval().requires_grad_(False)


def _outputs(critic: dict[str, Tensor]) -> int:
    """How many outputs the weights of a StyleGAN2 critic have; 0 for those of another critic, which has other layers."""
    last = critic.get("final_linear.1.weight")
    return 0 if last is None else last.shape[0]


def _read_start(path: Path, wanted: dict[str, Any]) -> dict[str, Any]:
    """Weights to begin with: "generator", and "critic" where `path` is the folder of a run of `pretrain`."""
    if path.is_dir():
        state = checkpoint.load_latest(path, kind=CHECKPOINT_KIND)
        config, start = state["config"], {"generator": state["average"], "critic": state["critic"]}
        if "mapping_layers" not in config:
            raise UserError(f"--start-from {path} is a run of --architecture dcgan, which has no StyleGAN2 generator to begin with")
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
