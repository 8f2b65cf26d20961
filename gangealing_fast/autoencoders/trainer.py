# SPDX-License-Identifier: Apache-2.0
"""The phases of an adversarial autoencoder (arXiv 1511.05644): reconstruction, regularisation, classification of what is told."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gangealing_fast.autoencoders import priors, results
from gangealing_fast.autoencoders.autoencoder import EXPORT_NAME, AdversarialAutoencoder
from gangealing_fast.autoencoders.collection import NEEDS_CLASSES, Batches, Collection, open_collection
from gangealing_fast.autoencoders.config import AutoencodeConfig
from gangealing_fast.autoencoders.game import Game, code_objective
from gangealing_fast.autoencoders.moves import moved
from gangealing_fast.autoencoders.networks import Code, CodeCritic, Decoder, Encoder, heads_too_near
from gangealing_fast.data.sampler import balanced
from gangealing_fast.ops.environment import print_notice
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.runtime.precision import autocast, resolve
from gangealing_fast.runtime.randomness import derived_seed
from gangealing_fast.runtime.setup import choose_device, prepare_process
from gangealing_fast.storage.runs import open_run
from gangealing_fast.training import loop
from gangealing_fast.training.loop import Means, Plan, Progress
from gangealing_fast.training.optim import AdamEma
from gangealing_fast.training.parts import InParts

COMMAND = "autoencode"
WITH_CATEGORIES = {"semi", "clusters", "map"}


class Training(InParts):
    """The work of `autoencode` in the loop."""

    def __init__(self, config: AutoencodeConfig, collection: Collection, device: torch.device) -> None:
        self.config, self.collection, self.device = config, collection, device
        self.dtype = resolve(config.precision, device)
        self.prior = priors.make(config.prior, config.style, config.prior_scale, config.generator)
        self.kinds = categories_of(config, collection)
        told = told_of(config, collection)
        self.batches = Batches(collection.training, told, config.seed)
        self.model = build(config, collection, self.kinds).to(device)
        self.average = copy.deepcopy(self.model).requires_grad_(False).eval()
        encoder = self.model.encoder.parameters
        betas = (0.9, 0.999)
        self.reconstructing = AdamEma(
            self.model.parameters(), config.learning_rate, betas, averages=self.average.parameters(), decay=config.ema
        )
        self.playing = AdamEma(encoder(), config.regularisation_rate, betas=(0.5, 0.999))
        self.classifying = AdamEma(encoder(), config.learning_rate, betas=betas)
        # An extra class stands for pictures whose class nobody has told. Of supervised every class is to have the whole prior: a
        # critic that is not told the class cannot see that styles of one class lie in a corner of it.
        self.told = {"conditional": self.prior.components + 1, "supervised": self.kinds}.get(config.use, 0)
        objective = code_objective(config.objective)
        critics = {"style": CodeCritic(config.style, self.told, config.critic_width)}
        if config.use in WITH_CATEGORIES:
            critics["category"] = CodeCritic(self.kinds, 0, config.critic_width)
        self.critic_rate, penalties = config.critic_rate or config.regularisation_rate, {"style": config.r1}
        self.games = {
            name: Game(critic.to(device), objective, self.critic_rate, penalties.get(name, 0.0)) for name, critic in critics.items()
        }
        self.categories = priors.categorical(self.kinds) if "category" in self.games else None
        self.steps = plan_of(config, collection).total

    def step(self, at: Progress, means: Means) -> int:
        self._set_rates(at.step)
        self.model.train()
        views, classes = self._batch()
        self._reconstruct(views, classes, at.step, means)
        self._regularise(views, classes, means)
        if self.config.use == "semi" or (self.config.use == "map" and self.config.labels):
            self._classify(means)
        return 1

    def _set_rates(self, step: int) -> None:
        share = min(1.0, 2 * (1 - step / self.steps))
        rates = [(self.reconstructing, self.config.learning_rate), (self.classifying, self.config.learning_rate)]
        rates += [(self.playing, self.config.regularisation_rate)]
        rates += [(game.optimizer, self.critic_rate) for game in self.games.values()]
        for optimizer, rate in rates:
            for group in optimizer.param_groups:
                group["lr"] = rate * share

    def _batch(self) -> tuple[Tensor, Tensor]:
        """Views `[V * N, C, S, S]` of N pictures, one or two, the other ones after the first; and their classes `[N]`, -1 if not
        told; where the decoder needs a class, of those that have one."""
        source = self.batches.known if self.config.use == "supervised" or not self.config.unlabelled else self.batches.any
        images, classes = source(self.config.batch)
        images = images.to(self.device)
        views = [moved(images, self.config.moves) for _ in range(1 + self.config.two_views)]
        return torch.cat(views), classes.to(self.device)

    def _seen(self, images: Tensor) -> Tensor:
        """What the encoder sees of pictures while it learns: without the pixels that fall out."""
        share = self.config.input_dropout
        return F.dropout(images, share) * (1 - share) if share else images

    def _encode(self, views: Tensor, count: int) -> Code:
        """Codes of `count` pictures: the style of the first view, the category of the last one."""
        with autocast(self.device, self.dtype):
            code: Code = self.model.encoder(self._seen(views))
        return Code(code.style[:count], None if code.logits is None else code.logits[-count:])

    def _category(self, code: Code, classes: Tensor) -> Tensor | None:
        """The categorical code that the decoder gets: the encoder's own, or the class that was told."""
        if self.config.use == "supervised":
            return F.one_hot(classes, self.kinds).float()
        if code.logits is None or not self.config.category_noise:
            return code.probabilities
        gumbel = -torch.empty_like(code.logits).exponential_().log()
        return (code.logits + self.config.category_noise * gumbel).softmax(1)

    def _reconstruct(self, views: Tensor, classes: Tensor, step: int, means: Means) -> None:
        code, count = self._encode(views, len(classes)), len(classes)
        category = self._category(code, classes)
        with autocast(self.device, self.dtype):
            made = self.model.decoder(code.style, category)
        loss = F.mse_loss(made, views[:count])
        means.add({"reconstruction": loss.item()})
        heads = self.model.decoder.heads
        if heads is not None and self.config.heads_apart:
            near = heads_too_near(heads, self.config.head_distance)
            means.add({"heads_too_near": near.item()})
            loss = loss + self.config.heads_apart * near
        self.reconstructing.zero_grad(set_to_none=True)
        loss.backward()
        # Less at first, so that the average forgets where it began.
        self.reconstructing.step(decay=min(self.config.ema, (1 + step) / (10 + step)))

    def _told(self, classes: Tensor) -> Tensor | None:
        """What the style's critic is told of each picture: its class, or that nobody knows it."""
        if not self.told:
            return None
        return F.one_hot(torch.where(classes < 0, self.told - 1, classes), self.told).float()

    def _regularise(self, views: Tensor, classes: Tensor, means: Means) -> None:
        code = self._encode(views, len(classes))
        for _ in range(self.games["style"].critic_steps):
            self._judge(code, classes, means)
        self._play(code, classes, means)

    def _judge(self, code: Code, classes: Tensor, means: Means) -> None:
        told = self._told(classes)
        parts = classes.cpu() if self.config.use == "conditional" else None
        real = self.prior.sample(len(classes), parts).to(self.device)
        found = {"style": self.games["style"].judge(real, code.style, told, told)}
        if self.categories is not None and code.probabilities is not None:
            drawn = self.categories.sample(len(classes)).to(self.device)
            found["category"] = self.games["category"].judge(self._blurred(drawn), self._blurred(code.probabilities))
        means.add({f"{name}_{figure}": value for name, figures in found.items() for figure, value in figures.items()})

    def _blurred(self, category: Tensor) -> Tensor:
        """A categorical code as its critic sees it."""
        return category + self.config.critic_noise * torch.randn_like(category) if self.config.critic_noise else category

    def _play(self, code: Code, classes: Tensor, means: Means) -> None:
        loss = self.games["style"].loss(code.style, self._told(classes))
        means.add({"style_encoder": loss.item()})
        if code.probabilities is not None and "category" in self.games:
            other = self.games["category"].loss(self._blurred(code.probabilities))
            means.add({"category_encoder": other.item()})
            loss = loss + other
        self.playing.zero_grad(set_to_none=True)
        loss.backward()
        self.playing.step()

    def _classify(self, means: Means) -> None:
        images, classes = (part.to(self.device) for part in self.batches.known(self.config.labelled_batch or self.config.batch))
        logits = self._encode(moved(images, self.config.moves), len(images)).logits
        assert logits is not None
        loss = F.cross_entropy(logits, classes)
        means.add({"classification": loss.item()})
        self.classifying.zero_grad(set_to_none=True)
        loss.backward()
        self.classifying.step()

    def measure(self, at: Progress, line: dict[str, Any]) -> None:
        self._settle()
        line |= results.quick_figures(self.average, self.collection, self.config)

    def _settle(self) -> None:
        """Give the averaged networks the statistics of batches that the newest ones have."""
        for average, newest in zip(self.average.buffers(), self.model.buffers(), strict=True):
            average.copy_(newest)

    def show(self, at: Progress, line: Mapping[str, Any]) -> None:
        self._settle()
        results.pictures(self.average, self.collection, self.prior, self.config)
        self.average.export(self.config.out / EXPORT_NAME)

    def named_parts(self) -> dict[str, Any]:
        names = ("model", "average", "reconstructing", "playing", "classifying", "batches")
        return {name: getattr(self, name) for name in names} | {f"{name}_game": game for name, game in self.games.items()}


def categories_of(config: AutoencodeConfig, collection: Collection) -> int:
    """Numbers of the categorical code; 0 for a use without one. Raises UserError for one that makes no sense."""
    if config.use in ("basic", "conditional"):
        if config.categories:
            raise UserError(f"--categories means nothing with --use {config.use}; leave it out, or choose semi, clusters or map")
        if config.two_views:
            raise UserError(f"--two-views needs --moves and a use with categories: semi, clusters or map, not {config.use}")
        return 0
    if config.two_views and (not config.moves or config.use == "supervised"):
        raise UserError("--two-views needs --moves, by which the views differ, and a use that finds categories")
    count = config.categories or collection.kinds
    if count < 2:
        raise UserError(f"--use {config.use} needs --categories of 2 or more, as nobody knows how many classes there are")
    told = config.use in NEEDS_CLASSES or (config.use == "map" and config.labels)
    if told and config.categories not in (0, collection.kinds):
        raise UserError(f"classes that are told are {collection.kinds}: leave --categories {config.categories} out")
    return count


def told_of(config: AutoencodeConfig, collection: Collection) -> Tensor | None:
    """Positions of the pictures whose class is told; None for all. Raises UserError if there are too few of a class."""
    classes = collection.training.classes
    if config.use == "conditional" and priors.make(config.prior, config.style, 1.0, config.generator).components < max(
        2, collection.kinds
    ):
        raise UserError(f"--use conditional needs a prior of {collection.kinds} parts: --prior mixture or swiss-roll")
    if config.use == "clusters" and config.labels:
        raise UserError("--use clusters looks at no label; leave --labels out, or choose --use semi")
    if config.use == "semi" and not config.labels:
        raise UserError("--use semi learns from few labels: say how many with --labels, such as 100")
    if not config.unlabelled and not (config.use in ("semi", "map") and config.labels):
        raise UserError("--no-unlabelled leaves the pictures of --labels: give these, with --use semi or map")
    if not config.labels or classes is None:
        return None
    if config.labels >= len(classes) and config.use == "semi":
        raise UserError(f"--labels {config.labels} tells every class, and there are no unlabelled pictures; use --use supervised")
    return balanced(classes, config.labels, config.seed)


def build(config: AutoencodeConfig, collection: Collection, kinds: int) -> AdversarialAutoencoder:
    """Encoder and decoder for the options. Raises UserError for a size that the architecture cannot have."""
    _, channels, side, _ = collection.training.images.shape
    try:
        encoder = Encoder(
            side,
            channels,
            config.style,
            kinds if config.use in WITH_CATEGORIES else 0,
            kind=config.encoder,
            architecture=config.architecture,
            width=config.width,
            batch_norm=config.batch_norm,
            noise_inputs=config.noise_inputs,
        )
        decoder = Decoder(
            side,
            channels,
            config.style,
            kinds,
            as_map=config.use == "map",
            architecture=config.architecture,
            width=config.width,
        )
    except ValueError as error:
        raise UserError(f"--architecture {config.architecture}: {error}; choose another --size, such as 32") from None
    about = {name: getattr(config, name) for name in ("use", "prior", "prior_scale", "style", "labels")}
    return AdversarialAutoencoder(encoder, decoder, about | {"classes": collection.kinds})


def plan_of(config: AutoencodeConfig, collection: Collection) -> Plan:
    """Epochs over the pictures, in steps; a line of the log after each."""
    epoch = max(1, len(collection.training) // config.batch)
    return Plan(
        COMMAND,
        config.epochs * epoch,
        tick=epoch,
        snapshot=config.snapshot_epochs * epoch,
        pictures=config.batch,
        remedy="lower --learning-rate and --regularisation-rate or use --precision float32",
        postfix={"reconstruction": ".4f", "test_error": ".4f", "cluster_error": ".4f"},
        draws=True,
        tracker=config.tracker,
    )


def run(config: AutoencodeConfig) -> Path:
    """Train, or go on, then examine and write the report; returns the exported file. Raises UserError for a user's mistakes."""
    print_notice(config.ops)
    with open_run(config.out, COMMAND, config, pictures={"--data": config.data}) as resuming:
        device = choose_device(config.device)
        collection = open_collection(config)
        print(collection.summary())
        prepare_process(config)
        torch.manual_seed(derived_seed(config.seed, COMMAND))
        work, plan = Training(config, collection, device), plan_of(config, collection)
        start = loop.resume(work, plan, config.out) if resuming else Progress()
        loop.run(work, plan, config.out, start)
        results.report(work.average, collection, work.prior, config)
        return config.out / EXPORT_NAME
