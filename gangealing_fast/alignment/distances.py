# SPDX-License-Identifier: Apache-2.0
"""Clusters of real pictures by their true distance to the templates, which takes their latents (arXiv 2112.05143, section 3.2).

The paper trains a classifier for want of a quick inversion. An encoder (`invert`) gives a picture's latent in one pass; a template
that looks like the picture in all but the layers that templates set can then be made for it, as for a sample.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gangealing_fast.alignment.clustering import Assignment
from gangealing_fast.alignment.evaluation import Evaluation, Figures
from gangealing_fast.inversion.inverter import Inverter
from gangealing_fast.models.generator import Generator
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.storage.files import write_json

if TYPE_CHECKING:
    from gangealing_fast.alignment.config import ClassifyConfig

BATCH = 64
BY_DISTANCE = "by distance"


@dataclass(frozen=True)
class Chooser:
    """`chooser(pictures)`: cluster `[N]` and mirror `[N]` of real pictures `[N, 3, S, S]` in [-1, 1].

    judge(pictures, w): the cluster of pictures of known latents. steps: of the search that refines the encoder's latents.
    """

    judge: Callable[[Tensor, Tensor], Assignment]
    inverter: Inverter
    steps: int

    def __call__(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        found = [self._some(part) for part in pictures.split(BATCH)]
        return torch.cat([one.cluster for one in found]).cpu(), torch.cat([one.mirrored for one in found]).cpu()

    def _some(self, pictures: Tensor) -> Assignment:
        pictures = pictures.to(self.inverter.device)
        w = self.inverter.optimise(pictures, self.steps).w if self.steps else self.inverter.encode(pictures)
        return self.judge(pictures, w)


def check_distance(config: ClassifyConfig) -> None:
    """Raise UserError for options of --by distance that do not go together."""
    if config.by == "distance" and config.inverter is None:
        raise UserError("--by distance needs pictures' latents: train an encoder with invert and give its folder with --inverter")
    if config.by != "distance" and config.inverter is not None:
        raise UserError("--inverter is for --by distance: give both, or neither")


def make_chooser(config: ClassifyConfig, generator: Generator, perceptual: Any, judge: Callable[..., Assignment]) -> Chooser | None:
    """What chooses by distance, if the options want it. Raises UserError for an encoder of another generator."""
    if config.inverter is None:
        return None
    inverter = Inverter.load(config.inverter, generator, perceptual=perceptual)
    return Chooser(lambda pictures, w: judge(pictures, w, "fixed"), inverter, config.inverter_steps)


def beside(out: Path, classified: Evaluation, chosen: Evaluation | None) -> Figures:
    """Figures of the choice by distance, and how often the classifier's is the same; writes clusters.json, both choices."""
    assert chosen is not None
    same = float((classified.cluster == chosen.cluster).float().mean())
    write_json(
        out / "clusters.json", {"classifier": classified.cluster.tolist(), "distance": chosen.cluster.tolist(), "agreement": same}
    )
    figures = {f"{name}, {BY_DISTANCE}": figure for name, figure in chosen.figures.items()}
    return figures | {"Classifier and distance agree": {"ratio": same, "note": f"of {len(chosen.cluster)} pictures"}}
