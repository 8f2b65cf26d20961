# SPDX-License-Identifier: Apache-2.0
"""Encoders, decoders and critics of codes: the paper's dense ones (arXiv 1511.05644, appendix A), and convolutional ones."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Kind = Literal["deterministic", "gaussian", "universal"]
Architecture = Literal["dense", "convolutional"]
SHARPNESS = 2.0
"""Deviation of normalised logits before anything is learned."""
SMALLEST = 4
"""Side at which a convolutional network stops halving."""


class Code(NamedTuple):
    """style `[N, style]`. logits `[N, categories]` of the categorical code; None without one."""

    style: Tensor
    logits: Tensor | None

    @property
    def probabilities(self) -> Tensor | None:
        """The softmax of the logits, which enters the categorical critic itself: an arg max has no gradient."""
        return None if self.logits is None else self.logits.softmax(1)


class Encoder(nn.Module):
    """Pictures `[N, channels, side, side]` in [0, 1] to codes.

    categories: 0 for no categorical code. kind: "gaussian" draws the style from a Gaussian of the picture, by reparametrisation;
    "universal" has `noise_inputs` random numbers as a further input. In evaluation mode a Gaussian encoder gives the mean, unless
    it is asked to draw.
    """

    def __init__(
        self,
        side: int,
        channels: int,
        style: int,
        categories: int = 0,
        *,
        kind: Kind = "deterministic",
        architecture: Architecture = "dense",
        width: int = 1000,
        batch_norm: bool = False,
        noise_inputs: int = 20,
    ) -> None:
        super().__init__()
        self.settings = {
            "side": side,
            "channels": channels,
            "style": style,
            "categories": categories,
            "kind": kind,
            "architecture": architecture,
            "width": width,
            "batch_norm": batch_norm,
            "noise_inputs": noise_inputs,
        }
        self.kind, self.categories, self.noise_inputs = kind, categories, noise_inputs if kind == "universal" else 0
        self.body, features = _body(side, channels, architecture, width, batch_norm)
        features += self.noise_inputs
        self.hidden = _layer(features, width, batch_norm)
        self.to_style = nn.Linear(width, style * (2 if kind == "gaussian" else 1))
        self.to_category = _Logits(width, categories, batch_norm) if categories else None

    def config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return dict(self.settings)

    def forward(self, images: Tensor, drawn: bool = False) -> Code:
        """drawn: whether a Gaussian encoder draws in evaluation mode, too."""
        features = self.body(images)
        if self.noise_inputs:
            noise = torch.randn(len(features), self.noise_inputs, device=features.device, dtype=features.dtype)
            features = torch.cat([features, noise], 1)
        hidden = self.hidden(features)
        # Under autocast too: codes that are rounded would not be the prior's.
        with torch.autocast(hidden.device.type, enabled=False):
            return self._code(hidden.float(), drawn)

    def _code(self, hidden: Tensor, drawn: bool) -> Code:
        style = self.to_style(hidden)
        if self.kind == "gaussian":
            mean, log_deviation = style.chunk(2, 1)
            style = mean + log_deviation.clamp(-10, 5).exp() * torch.randn_like(mean) if self.training or drawn else mean
        return Code(style, None if self.to_category is None else self.to_category(hidden))


class _Logits(nn.Module):
    """Logits of categories. batch_norm: each is normalised over the batch, and all are scaled alike by a factor that is learned.

    A category that no picture falls into has no gradient by which it could come back: the softmax is flat there. Normalised logits
    are each the largest for some pictures.
    """

    def __init__(self, inputs: int, categories: int, batch_norm: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, categories)
        self.norm = nn.BatchNorm1d(categories, affine=False) if batch_norm else None
        self.log_scale = nn.Parameter(torch.zeros(())) if batch_norm else None

    def forward(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self.linear(hidden)
        if self.norm is None or self.log_scale is None:
            return logits
        normalised: Tensor = self.norm(logits) * (SHARPNESS * self.log_scale.exp())
        return normalised


class Decoder(nn.Module):
    """Codes to pictures `[N, channels, side, side]` in [0, 1].

    categories: numbers of the categorical code that it gets beside the style, 0 for none. as_map: the categorical code chooses a
    point of the style's space instead, which is added to the style (section 7 of the paper): a map.
    """

    def __init__(
        self,
        side: int,
        channels: int,
        style: int,
        categories: int = 0,
        *,
        as_map: bool = False,
        architecture: Architecture = "dense",
        width: int = 1000,
    ) -> None:
        super().__init__()
        self.settings = {
            "side": side,
            "channels": channels,
            "style": style,
            "categories": categories,
            "as_map": as_map,
            "architecture": architecture,
            "width": width,
        }
        self.side, self.channels, self.style, self.categories = side, channels, style, categories
        self.heads = nn.Parameter(3 * torch.randn(categories, style)) if as_map else None
        self.hidden = _layer(style + (0 if as_map else categories), width)
        self.body = _unfold(side, channels, architecture, width)

    def config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return dict(self.settings)

    def place(self, style: Tensor, category: Tensor | None) -> Tensor:
        """What the hidden layers see: of a map the place `[N, style]`, else the codes side by side."""
        if self.heads is not None:
            assert category is not None
            return style + category @ self.heads
        return style if category is None else torch.cat([category, style], 1)

    def forward(self, style: Tensor, category: Tensor | None = None) -> Tensor:
        return self.from_place(self.place(style, category))

    def from_place(self, place: Tensor) -> Tensor:
        """Pictures of what `place` returns."""
        pictures: Tensor = self.body(self.hidden(place)).float().sigmoid()
        return pictures.reshape(-1, self.channels, self.side, self.side)


class CodeCritic(nn.Module):
    """A number `[N]` for each code `[N, dimensions]`, beside `told` `[N, T]` if the code's part of the prior is told.

    No normalisation: statistics of a batch would tell whether it is the prior's or the encoder's.
    """

    def __init__(self, dimensions: int, told: int = 0, width: int = 1000) -> None:
        super().__init__()
        # Smooth, as the penalty R1 is on this network's own gradient.
        hidden = (_layer(inputs, width, activation=nn.SiLU) for inputs in (dimensions + told, width))
        self.layers = nn.Sequential(*hidden, nn.Linear(width, 1))

    def forward(self, code: Tensor, told: Tensor | None = None) -> Tensor:
        seen = code if told is None else torch.cat([code, told], 1)
        return self.layers(seen).flatten()


def heads_too_near(heads: Tensor, distance: float) -> Tensor:
    """Scalar: mean over pairs of heads `[K, D]` of max(0, distance - their Euclidean distance), squared; 0 for a single head."""
    if len(heads) < 2:
        return heads.new_zeros(())
    return F.relu(distance - F.pdist(heads)).square().mean()


def _layer(inputs: int, outputs: int, batch_norm: bool = False, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    linear = nn.Linear(inputs, outputs)
    nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
    nn.init.zeros_(linear.bias)
    return nn.Sequential(linear, *([nn.BatchNorm1d(outputs)] if batch_norm else []), activation())


def _widths(side: int, width: int) -> list[int]:
    """Channels after each halving, the last of them `width`. Raises ValueError for a side that cannot be halved down to 4."""
    halvings = max(0, side // SMALLEST).bit_length() - 1
    if side != SMALLEST << max(halvings, 0) or halvings < 1:
        raise ValueError(f"convolutional networks need a side of 8, 16, 32, ..., got {side}")
    return [max(16, width >> (halvings - 1 - level)) for level in range(halvings)]


def _body(side: int, channels: int, architecture: Architecture, width: int, batch_norm: bool) -> tuple[nn.Sequential, int]:
    """Layers before the last hidden one, and how many features they give."""
    if architecture == "dense":
        return nn.Sequential(nn.Flatten(), _layer(channels * side * side, width, batch_norm)), width
    layers: list[nn.Module] = []
    for outputs in _widths(side, width):
        layers.append(nn.Conv2d(channels, outputs, 4, stride=2, padding=1))
        layers += [nn.BatchNorm2d(outputs)] if batch_norm else []
        layers.append(nn.LeakyReLU(0.2))
        channels = outputs
    return nn.Sequential(*layers, nn.Flatten()), channels * SMALLEST * SMALLEST


def _unfold(side: int, channels: int, architecture: Architecture, width: int) -> nn.Sequential:
    """Layers after the first hidden one, down to numbers before the sigmoid."""
    if architecture == "dense":
        return nn.Sequential(_layer(width, width), nn.Linear(width, channels * side * side))
    widths = _widths(side, width)[::-1]
    layers: list[nn.Module] = [_layer(width, widths[0] * SMALLEST * SMALLEST), nn.Unflatten(1, (widths[0], SMALLEST, SMALLEST))]
    for level, inputs in enumerate(widths):
        outputs = widths[level + 1] if level + 1 < len(widths) else channels
        layers.append(nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1))
        if level + 1 < len(widths):
            layers.append(nn.LeakyReLU(0.2))
    return nn.Sequential(*layers)
