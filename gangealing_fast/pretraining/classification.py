# SPDX-License-Identifier: Apache-2.0
"""The critic of catGAN and of the semi-supervised GAN as what it is trained to be: a classifier, averaged, examined and shipped."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gangealing_fast.adversarial.objectives.record import scales
from gangealing_fast.data.digits import random_similarity, training_digits, warp_digits
from gangealing_fast.data.mnist import find_images
from gangealing_fast.metrics.clusters import majority
from gangealing_fast.models import DcganCritic, Discriminator
from gangealing_fast.pretraining.config import PretrainConfig
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.runtime.precision import autocast
from gangealing_fast.storage.exports import export_safetensors, load_safetensors
from gangealing_fast.storage.networks import build_network
from gangealing_fast.storage.settings import is_whole

ARCHITECTURES: dict[str, type[DcganCritic] | type[Discriminator]] = {"dcgan": DcganCritic, "stylegan2": Discriminator}
ASSIGNED = 10_000


@torch.no_grad()
def settle_statistics(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Give the batch normalisation of `network` the statistics of `batches` of pictures; nothing else of it changes.

    In training, batches of real and of generated pictures alternate and the weights were others: neither suits an averaged critic
    that is to judge real pictures.
    """
    layers = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if not layers:
        return
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # a plain mean over the batches
        layer.train()
    for batch in batches:
        network(batch)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
        layer.eval()


@torch.no_grad()
def logits_of(network: nn.Module, images: Tensor, categories: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Class logits `[N, categories]` of pictures `[N, 3, S, S]`, in parts of 250; outputs for generated samples are left out."""
    with autocast(images.device, dtype):
        return torch.cat([scales(network(part))[0][:, :categories].float() for part in images.split(250)])


@dataclass
class Classifier:
    """A shipped critic. `classifier(images)`: probabilities `[N, K]` of pictures `[N, 3, S, S]` in [-1, 1].

    names: what each of the K outputs stands for: with labels the digits named with `--digit`, without them the majority's digit,
    for other pictures than digits the output's number.
    """

    network: nn.Module
    names: list[int]

    def __call__(self, images: Tensor) -> Tensor:
        return logits_of(self.network, images, len(self.names)).softmax(1)

    @classmethod
    def load(cls, path: str | Path) -> Classifier:
        """What `pretrain` wrote as classifier.safetensors. Raises UserError for anything else."""
        tensors, about = load_safetensors(path)
        advice = "give the classifier.safetensors that pretrain --objective catgan writes"
        if about.get("kind") != "classifier" or about.get("architecture") not in list(ARCHITECTURES):
            raise UserError(f"{path} holds no classifier; {advice}")
        try:
            network = build_network(ARCHITECTURES[about["architecture"]], about.get("critic"), tensors)
            names = check_names(about.get("names"), about["critic"].get("outputs", 1))
        except ValueError as error:
            raise UserError(f"{path} holds no classifier that fits ({str(error)[:120]}); {advice}") from None
        return cls(network, names)


def check_names(names: object, outputs: int) -> list[int]:
    """What the outputs of a classifier stand for, if a file says it as it has to. Raises ValueError if not."""
    if not isinstance(names, list) or not 1 <= len(names) <= outputs or not all(is_whole(name, 0, outputs + 9) for name in names):
        raise ValueError(f"its names must be 1 to {outputs} numbers of classes")
    return names


def export_classifier(network: DcganCritic | Discriminator, names: list[int], path: Path, statistics: dict[str, Any]) -> None:
    """Write what `Classifier.load` reads."""
    architecture = "dcgan" if isinstance(network, DcganCritic) else "stylegan2"
    about = {"kind": "classifier", "architecture": architecture, "critic": network.config(), "names": names}
    export_safetensors(path, network.state_dict(), about | {"statistics": statistics})


class Examination:
    """How well a critic tells MNIST's test digits apart, if these are what it is trained on and the folder has them.

    With --labels the outputs stand for the digits. Without, each stands for the digit that most of the first 10 000 training digits
    have for which it is the largest; their labels serve nothing else.
    """

    def __init__(self, config: PretrainConfig, categories: int, dtype: torch.dtype) -> None:
        self.config, self.categories, self.dtype = config, categories, dtype
        self.labelled, self.test, self.training = config.labels > 0, None, None
        if not config.digit:
            return
        if not self.labelled:
            images, classes = training_digits(config.data, config.digit)
            self.training = self._shown(images[:ASSIGNED]), classes[:ASSIGNED]
        try:
            images, classes = training_digits(find_images(config.data, "t10k"), config.digit)
        except UserError as error:
            print(f"no test error: {error}")
            return
        self.test = self._shown(images), classes

    def _shown(self, images: Tensor) -> Tensor:
        if not self.config.warp:
            return warp_digits(images)
        return warp_digits(images, random_similarity(len(images), generator=torch.Generator().manual_seed(0)))

    def _outputs(self, network: nn.Module, images: Tensor) -> Tensor:
        device = next(network.parameters()).device
        return logits_of(network, images.to(device), self.categories, self.dtype).argmax(1).cpu()

    def __call__(self, network: nn.Module) -> tuple[list[int], dict[str, float]]:
        """What each output stands for, and `test_error`, the share of test digits that get another class."""
        standing = list(range(self.categories))
        if self.training is not None:
            standing = majority(self._outputs(network, self.training[0]), self.training[1], self.categories)
        names = [self.config.digit[k] if k < len(self.config.digit) else k for k in standing] if self.config.digit else standing
        if self.test is None:
            return names, {}
        found = torch.tensor(standing)[self._outputs(network, self.test[0])]
        return names, {"test_error": (found != self.test[1]).float().mean().item()}
