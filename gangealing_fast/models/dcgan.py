# SPDX-License-Identifier: Apache-2.0
"""Plain convolutional networks: a generator, a critic and an autoencoder (Radford et al. 2016, arXiv 1511.06434, section 3).

Strided convolutions instead of pooling, no fully connected hidden layers, ReLU and a final tanh in the generator, leaky ReLU with
slope 0.2 in the critic; weights drawn from N(0, 0.02²). Labels, where there are any, go through a linear map: its result joins the
latent of the generator, and the features of the critic as constant maps (arXiv 1611.04076, section 3.3).
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from gangealing_fast.models.generator import Widths
from gangealing_fast.ops.bias_act import bias_act

Norm = Literal["batch", "layer", "none"]


class Reconstruction(NamedTuple):
    """What the autoencoder makes of pictures: the pictures as decoded and the code `[N, C]` between its halves."""

    samples: Tensor
    code: Tensor


class Described(NamedTuple):
    """A critic's numbers `[N, K]` and the features `[N, C]` they were computed from."""

    numbers: Tensor
    features: Tensor


class Activation(nn.Module):
    """ReLU with a slope on the negative side, without gain."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = slope

    def forward(self, x: Tensor) -> Tensor:
        return bias_act(x, None, slope=self.slope, gain=1.0)


def _norm(kind: Norm, channels: int) -> list[nn.Module]:
    if kind == "batch":
        return [nn.BatchNorm2d(channels)]
    # One group over all channels and pixels of a sample.
    return [nn.GroupNorm(1, channels)] if kind == "layer" else []


def _initialise(network: nn.Module, norm: Norm) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            if norm == "none":
                # Nothing normalises the activations: N(0, 0.02²) would let them die out over the depth.
                nn.init.kaiming_normal_(module.weight, 0.2)
            else:
                nn.init.normal_(module.weight, 0.0, 0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.02)


def _check_size(name: str, size: int) -> None:
    if size < 8 or size & (size - 1):
        raise ValueError(f"{name}: size must be a power of two of at least 8, got {size}")


class LabelMap(nn.Module):
    """The linear map Phi of one-hot labels, `[N]` int64 → `[N, dim]`. Raises ValueError for a label that is no class."""

    def __init__(self, classes: int, dim: int) -> None:
        super().__init__()
        self.classes = classes
        self.map = nn.Linear(classes, dim, bias=False)

    def forward(self, labels: Tensor | None) -> Tensor:
        if labels is None:
            raise ValueError("this network is conditional: give it labels [N]")
        # A label outside of the classes would have no one-hot vector.
        one_hot = (labels[:, None] == torch.arange(self.classes, device=labels.device)).to(self.map.weight.dtype)
        return self.map(one_hot)


def _decoder(inputs: int, size: int, widths: Widths, norm: Norm, slope: float) -> nn.Sequential:
    """`[N, inputs, 1, 1]` → `[N, 3, size, size]`, any numbers."""
    plain = norm == "none"
    layers: list[nn.Module] = [nn.ConvTranspose2d(inputs, widths.at(4), 4, bias=plain)]
    layers += [*_norm(norm, widths.at(4)), Activation(slope)]
    resolution = 4
    while 2 * resolution < size:
        here, there = widths.at(resolution), widths.at(2 * resolution)
        layers += [nn.ConvTranspose2d(here, there, 4, stride=2, padding=1, bias=plain), *_norm(norm, there), Activation(slope)]
        resolution *= 2
    return nn.Sequential(*layers, nn.ConvTranspose2d(widths.at(resolution), 3, 4, stride=2, padding=1))


def _encoder(size: int, widths: Widths, norm: Norm) -> nn.Sequential:
    """`[N, 3, size, size]` → `[N, widths.at(4), 4, 4]`; the first layer is never normalised."""
    layers: list[nn.Module] = []
    channels, resolution = 3, size
    while resolution > 4:
        resolution //= 2
        kind: Norm = "none" if channels == 3 else norm
        layers.append(nn.Conv2d(channels, widths.at(resolution), 4, stride=2, padding=1, bias=kind == "none"))
        layers += [*_norm(kind, widths.at(resolution)), Activation(0.2)]
        channels = widths.at(resolution)
    return nn.Sequential(*layers)


class DcganGenerator(nn.Module):
    """z `[N, latent_dim]` → pictures `[N, 3, size, size]` in (-1, 1), with batch normalisation.

    size: a power of two >= 8. max_channels, channel_base: see `Widths`. classes: number of classes of the conditional variant, 0
    for none; label_dim: length of the label's linear map. Raises ValueError for another size or another shape of z.
    """

    def __init__(
        self,
        size: int,
        latent_dim: int = 128,
        *,
        max_channels: int = 512,
        channel_base: int | None = 4096,
        classes: int = 0,
        label_dim: int = 32,
    ) -> None:
        super().__init__()
        _check_size("DcganGenerator", size)
        self.size, self.latent_dim, self.classes, self.label_dim = size, latent_dim, classes, label_dim
        self.widths = Widths(2.0, max_channels, channel_base)
        self.label_map = LabelMap(classes, label_dim) if classes else None
        self.layers = _decoder(latent_dim + (label_dim if classes else 0), size, self.widths, "batch", 0.0)
        _initialise(self, "batch")

    def config(self) -> dict[str, Any]:
        """The constructor's arguments: `DcganGenerator(**config)` rebuilds the network."""
        widths = asdict(self.widths)
        options = {name: getattr(self, name) for name in ("size", "latent_dim", "classes", "label_dim")}
        return options | {"max_channels": widths["maximum"], "channel_base": widths["base"]}

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        if z.dim() != 2 or z.shape[1] != self.latent_dim:
            raise ValueError(f"DcganGenerator: z must be [N, {self.latent_dim}], got {list(z.shape)}")
        if self.label_map is not None:
            z = torch.cat([z, self.label_map(labels).to(z.dtype)], 1)
        return torch.tanh(self.layers(z[:, :, None, None]).float())


class DcganCritic(nn.Module):
    """Pictures `[N, 3, size, size]` → `[N]`, or `[N, outputs]` where outputs is more than 1 (classes).

    norm: "batch" as in the paper; "layer" or "none" for objectives that penalise the gradient at single samples.
    features: return `Described`, the numbers with the last layer's input.
    classes, label_dim: as for the generator; `forward` then takes labels `[N]`.
    """

    def __init__(
        self,
        size: int,
        *,
        outputs: int = 1,
        norm: Norm = "batch",
        max_channels: int = 512,
        channel_base: int | None = 4096,
        features: bool = False,
        classes: int = 0,
        label_dim: int = 32,
    ) -> None:
        super().__init__()
        _check_size("DcganCritic", size)
        self.widths = widths = Widths(2.0, max_channels, channel_base)
        self.size, self.outputs, self.norm, self.features = size, outputs, norm, features
        self.classes, self.label_dim = classes, label_dim
        self.label_map = LabelMap(classes, label_dim) if classes else None
        self.layers = _encoder(size, widths, norm)
        self.head = nn.Conv2d(widths.at(4) + (label_dim if classes else 0), outputs, 4)
        _initialise(self, norm)

    def config(self) -> dict[str, Any]:
        """The constructor's arguments: `DcganCritic(**config)` rebuilds the network."""
        widths = asdict(self.widths)
        options = {name: getattr(self, name) for name in ("size", "outputs", "norm", "features", "classes", "label_dim")}
        return options | {"max_channels": widths["maximum"], "channel_base": widths["base"]}

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor | Described:
        if images.dim() != 4 or images.shape[1:] != (3, self.size, self.size):
            raise ValueError(f"DcganCritic: images must be [N, 3, {self.size}, {self.size}], got {list(images.shape)}")
        x = self.layers(images)
        if self.label_map is not None:
            x = torch.cat([x, self.label_map(labels).to(x.dtype)[:, :, None, None].expand(-1, -1, 4, 4)], 1)
        numbers = self.head(x).flatten(1).float()
        numbers = numbers.squeeze(1) if self.outputs == 1 else numbers
        return Described(numbers, x.flatten(1).float()) if self.features else numbers


class Autoencoder(nn.Module):
    """A critic that reconstructs pictures `[N, 3, size, size]` through a code of `code_dim` numbers; norm as for `DcganCritic`.

    Without a tanh at its end, as in arXiv 1703.10717: pixels that are driven far to the wrong side would stay there.
    """

    def __init__(
        self,
        size: int,
        code_dim: int = 64,
        *,
        norm: Norm = "none",
        max_channels: int = 512,
        channel_base: int | None = 4096,
    ) -> None:
        super().__init__()
        _check_size("Autoencoder", size)
        widths = Widths(2.0, max_channels, channel_base)
        self.size = size
        self.encoder = nn.Sequential(*_encoder(size, widths, norm), nn.Conv2d(widths.at(4), code_dim, 4))
        self.decoder = _decoder(code_dim, size, widths, norm, 0.2)
        _initialise(self, norm)

    def forward(self, images: Tensor) -> Reconstruction:
        if images.dim() != 4 or images.shape[1:] != (3, self.size, self.size):
            raise ValueError(f"Autoencoder: images must be [N, 3, {self.size}, {self.size}], got {list(images.shape)}")
        code = self.encoder(images)
        return Reconstruction(self.decoder(code).float(), code.flatten(1).float())
