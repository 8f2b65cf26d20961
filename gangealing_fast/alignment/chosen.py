# SPDX-License-Identifier: Apache-2.0
"""Templates that the user chooses: training begins where the generator makes the given pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gangealing_fast.alignment.config import TrainConfig
from gangealing_fast.data.decoding import decode
from gangealing_fast.data.pictures import read_or_reason, to_float
from gangealing_fast.inversion.inverter import Inverter
from gangealing_fast.models.generator import Generator
from gangealing_fast.models.latent_target import LatentTarget
from gangealing_fast.report.pictures import save_grid
from gangealing_fast.runtime.distributed import Group
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.runtime.text import printable
from gangealing_fast.storage.files import make_folder

FAR = 0.5
"""A template whose distance to its picture is a greater part of the mean's than this was not found."""


def begin_at_pictures(
    config: TrainConfig, target: LatentTarget, generator: Generator, perceptual: Any, group: Group
) -> LatentTarget:
    """A target that begins where the generator makes the pictures of --template, each as near as `invert` comes to it.

    A few principal directions seldom reach a picture. So each template adds a direction of its own, in which it may move too.
    Process 0 alone looks for the latents; the others get a target of the same shape, and its numbers with the first weights.
    Writes template-begin.png: the pictures, and what the generator makes of their latents.
    Raises UserError for pictures that cannot be read, or an encoder of another generator.
    """
    w = target.lat_mean.expand(config.clusters, -1)
    if group.lead:
        pictures = read_pictures(config.template, generator.size).to(target.lat_mean.device)
        if config.inverter is None:
            inverter = Inverter(generator, None, perceptual)
        else:
            inverter = Inverter.load(config.inverter, generator, perceptual=perceptual)
        found = inverter.optimise(pictures, config.template_steps)
        mean = perceptual(inverter.decode(inverter.mean).expand_as(pictures), pictures)
        for path, distance, from_mean in zip(config.template, found.distance.tolist(), mean.tolist(), strict=True):
            print(f"template {printable(path)}: perceptual distance {distance:.3f}; the generator's mean has {from_mean:.3f}")
            if distance > FAR * from_mean:
                print(f"notice: the generator hardly makes {printable(path)}; choose a picture of what it was trained on")
        make_folder(config.out)
        save_grid(torch.cat([pictures, found.images]), config.out / "template-begin.png", columns=len(pictures), scale=4)
        w = found.w
    return reaching(target, w)


def reaching(target: LatentTarget, w: Tensor) -> LatentTarget:
    """A target that begins at w `[K, D]`, with K more directions than `target` has: what its own leave of w, orthonormal."""
    offsets = w - target.lat_mean
    left = offsets - offsets @ target.directions.T @ target.directions
    # Twice, as what is left of an offset in the span is rounding, and need not be orthogonal to it.
    more = torch.linalg.qr(torch.cat([target.directions, left]).T.double()).Q[:, len(target.directions) :].T.float()
    made = LatentTarget(torch.cat([target.directions, more]), target.lat_mean, len(w)).to(w.device)
    with torch.no_grad():
        made.coefficients.copy_(offsets @ made.directions.T)
    return made


def read_pictures(paths: Sequence[Path], size: int) -> Tensor:
    """Pictures `[N, 3, size, size]` in [-1, 1], cut to a square. Raises UserError for one that cannot be read."""
    found = []
    for path in paths:

        def read(path: Path = path) -> Any:
            return decode(path.read_bytes(), size, "center")

        picture = read_or_reason(read)
        if isinstance(picture, str):
            raise UserError(f"--template {path} {picture}; give a picture")
        found.append(torch.from_numpy(picture).permute(2, 0, 1))
    return to_float(torch.stack(found))
