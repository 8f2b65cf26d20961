# SPDX-License-Identifier: Apache-2.0
"""What registers a new picture to the templates of a set, whatever its size; made of the state that the set keeps."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from gangealing_fast.congealing import (
    FeatureNetwork,
    Funnel,
    Templates,
    build_templates,
    efficientnet_features,
    load_features,
    register,
    self_supervised_features,
)
from gangealing_fast.congealing.folder import SavedSet
from gangealing_fast.congealing.methods import OWN
from gangealing_fast.congealing.placing import resized
from gangealing_fast.congealing.records import Registered
from gangealing_fast.geometry.warps import resize_grid
from gangealing_fast.runtime.errors import UserError

LONGEST = 512
"""Pictures with a longer side are registered at that many pixels."""


class Register(Protocol):
    """Finds how a picture `[3, H, W]` in [-1, 1] lies on templates; start: the matrix `[3, 3]` near which it is sought."""

    def __call__(self, image: Tensor, *, start: Tensor | None = None) -> Registered: ...


class ByFeatures:
    """Registers to templates of features (`congealing.register`)."""

    def __init__(self, templates: Templates, features: FeatureNetwork, *, flow: bool = True) -> None:
        self.templates, self.features, self.flow = templates, features, flow

    def __call__(self, image: Tensor, *, start: Tensor | None = None) -> Registered:
        whole = (image.shape[2], image.shape[1])
        image, size = reduced(image)
        near = None if start is None else resized(start, whole, size)[None]
        found = register(image[None], self.templates, features=self.features, start=near, flow=self.flow)
        return dataclasses.replace(found, matrix=resized(found.matrix[0], size, whole)[None])


class ByUnknownFeatures:
    """Of a set whose network is a file that runs code when it is read: only the user can say that it may be."""

    def __init__(self, path: Path, network: str) -> None:
        self._path, self._network = path, network

    def __call__(self, image: Tensor, *, start: Tensor | None = None) -> Registered:
        raise UserError(
            f"{self._path} was made with the network {self._network}, whose file runs code when it is read: to register new "
            "pictures give it as --set-features, or as Aligner.load(SET, features=...)"
        )


class ByFunnel:
    """Registers by the funnel of the entropy method."""

    def __init__(self, saved: SavedSet) -> None:
        self._funnel = Funnel.from_state(saved.state)

    def __call__(self, image: Tensor, *, start: Tensor | None = None) -> Registered:
        return self._funnel.align([image])


def reduced(image: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """A picture `[C, H, W]` with no side longer than `LONGEST`, and its (width, height)."""
    height, width = image.shape[1:]
    scale = min(1.0, LONGEST / max(width, height))
    size = (max(2, round(width * scale)), max(2, round(height * scale)))
    if size == (width, height):
        return image, size
    return F.interpolate(image[None], size[::-1], mode="bilinear", antialias=True)[0].clamp(-1, 1), size


def template_of(pictures: Sequence[Tensor], matrices: Tensor, *, side: int, flow: bool, seed: int) -> ByFeatures:
    """Registers to one template, of pictures `[3, H, W]` whose matrices `[N, 3, 3]` are known; errors as `build_templates`."""
    small = [reduced(picture) for picture in pictures]
    near = [
        resized(matrix, (picture.shape[2], picture.shape[1]), size)
        for matrix, picture, (_, size) in zip(matrices, pictures, small, strict=True)
    ]
    features = efficientnet_features()
    made = build_templates([picture for picture, _ in small], torch.stack(near), features=features, side=side, seed=seed)
    return ByFeatures(made, features, flow=flow)


def register_of(saved: SavedSet, path: Path, features: FeatureNetwork | str | Path | None = None) -> Register:
    """What registers new pictures to the templates of the set in `path`.

    features: the user's own network if it was made with one, or where that lies, which is a program that is run.
    Raises UserError if the set's state is damaged, if `contrast`'s features are missing, or if the network cannot be loaded.
    """
    try:
        if saved.method == "entropy":
            return ByFunnel(saved)
        templates, flow = Templates.from_state(saved.state), bool(saved.settings["flow"])
        network = saved.settings["features"]
        if not isinstance(network, str):
            raise ValueError("its network is no name")
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"{path} is damaged ({' '.join(str(error).split())[:120]}); congeal again, or restore it") from None
    if isinstance(features, (str, Path)):
        features = _own(path, features, saved.settings)
    if features is not None:
        return ByFeatures(templates, features, flow=flow)
    if network == "efficientnet":
        return ByFeatures(templates, efficientnet_features(), flow=flow)
    if network.startswith(OWN):
        return ByFeatures(templates, self_supervised_features(Path(network.removeprefix(OWN))), flow=flow)
    return ByUnknownFeatures(path, network)


def _own(path: Path, features: str | Path, settings: Mapping[str, Any]) -> FeatureNetwork:
    """The network at `features`, read as the set was made. Raises UserError if the set was made with one of the package's."""
    network, stride = settings["features"], settings.get("stride")
    if network == "efficientnet" or network.startswith(OWN):
        raise UserError(f"{path} was made with the features {network}, which it finds by itself: leave out --set-features")
    mean, std = (settings.get(name) for name in ("mean", "std"))
    if not isinstance(stride, int) or not isinstance(mean, list) or not isinstance(std, list):
        raise UserError(f"{path} is damaged (its network's stride, mean or std is none); congeal again, or restore it")
    return load_features(features, stride=stride, mean=mean, std=std)


def joined_places(found: Sequence[Registered]) -> Registered:
    """One record of several; flows of the finest of their grids."""
    if not found:
        none = torch.zeros(0, dtype=torch.int64)
        return Registered(torch.zeros(0, 3, 3, dtype=torch.float64), torch.zeros(0, 2, 2, 2), none.bool(), none, none.float())
    finest = max(one.flow.shape[1] for one in found)
    flows = [one.flow if one.flow.shape[1] == finest else resize_grid(one.flow, finest) for one in found]
    return Registered(
        torch.cat([one.matrix for one in found]),
        torch.cat(flows),
        torch.cat([one.mirrored for one in found]),
        torch.cat([one.cluster for one in found]),
        torch.cat([one.confidence for one in found]),
    )
