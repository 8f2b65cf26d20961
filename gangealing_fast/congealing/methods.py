# SPDX-License-Identifier: Apache-2.0
"""Joint alignment by the method that the options name; its result in one form."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from gangealing_fast.congealing import (
    FeatureNetwork,
    congeal,
    congeal_entropy,
    efficientnet_features,
    load_features,
    self_supervised_features,
)
from gangealing_fast.congealing.config import CongealConfig
from gangealing_fast.congealing.records import Congealed
from gangealing_fast.congealing.stages import Stages
from gangealing_fast.data.originals import Reduced
from gangealing_fast.runtime.errors import UserError

Progress = Callable[[str, int, int], None]
_FLIPS: Mapping[str, bool | Literal["auto"]] = {"auto": "auto", "yes": True, "no": False}
OWN = "self:"
"""Before the folder that `contrast` wrote."""


@dataclass(frozen=True)
class Made:
    """What a method found of a set.

    state, settings: what new pictures are registered by, for the set's file. matches: of pictures by number, `[M, 5]`: places in
    [0, 1] of the square that holds the picture, places in [0, 1] of the template, and a weight.
    """

    found: Congealed
    state: Mapping[str, Tensor]
    settings: Mapping[str, Any]
    matches: Mapping[int, Tensor] = field(default_factory=dict)


def congeal_by(config: CongealConfig, pictures: Reduced, *, progress: Progress, keep: Stages) -> Made:
    """Raises UserError for a user's mistakes."""
    return _by_entropy(config, pictures, progress) if config.method == "entropy" else _by_features(config, pictures, progress, keep)


def _by_features(config: CongealConfig, pictures: Reduced, progress: Progress, keep: Stages) -> Made:
    settings = {
        "features": config.features,
        "stride": config.features_stride,
        "mean": list(config.features_mean),
        "std": list(config.features_std),
        "flow": config.flow,
    }
    found = congeal(
        pictures,
        flips=_FLIPS[config.flips],
        clusters=clusters_of(config.clusters),
        features=network_of(config),
        model=config.model,
        flow=config.flow,
        side=config.side,
        seed=config.seed,
        names=pictures.names,
        progress=progress,
        keep=keep,
    )
    matches = {k: _in_squares(found.matches[k], pictures[k], found.templates.side) for k in range(len(pictures))}
    return Made(found, found.templates.state(), settings, matches)


def _in_squares(matches: Tensor, picture: Tensor, side: int) -> Tensor:
    """Matches in pixels to [0, 1] of the square that holds the picture, and of the template."""
    height, width = picture.shape[1:]
    largest = max(height, width)
    x, y = (matches[:, 0] + 0.5 + (largest - width) / 2) / largest, (matches[:, 1] + 0.5 + (largest - height) / 2) / largest
    placed = torch.stack([x, y, *((matches[:, 2:4] + 0.5) / side).unbind(1), matches[:, 4]], 1)
    return placed[matches[:, 4] > 0]


def _by_entropy(config: CongealConfig, pictures: Reduced, progress: Progress) -> Made:
    if clusters_of(config.clusters) not in ("auto", 1):
        raise UserError("--method entropy makes one template: leave out --clusters")
    if config.model == "homography":
        raise UserError("--method entropy finds a similarity or an affine map: give --model similarity or --model affine")
    found, funnel = congeal_entropy(pictures, model=config.model, names=pictures.names, progress=progress)
    return Made(found, funnel.state(), {"flow": False})


def clusters_of(text: str) -> int | Literal["auto"]:
    """What --clusters says. Raises UserError unless it is "auto" or a number from 1 to 1000."""
    if text == "auto":
        return "auto"
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 1000:
        raise UserError(f"--clusters must be auto or a number from 1 to 1000, got {text}")
    return int(text)


def network_of(config: CongealConfig) -> FeatureNetwork:
    """The network that --features names. Raises UserError if there is none."""
    if config.features == "efficientnet":
        return efficientnet_features()
    if config.features.startswith(OWN):
        return self_supervised_features(Path(config.features.removeprefix(OWN)))
    if not config.features_stride:
        raise UserError(
            f"--features {config.features} needs --features-stride: how many pixels lie between two places of its features"
        )
    return load_features(config.features, stride=config.features_stride, mean=config.features_mean, std=config.features_std)
